"""`python -m hf_prune.cli` is `hf-prune`."""

from hf_prune.cli import main

main()
