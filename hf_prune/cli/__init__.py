"""`hf-prune`: the command line. Installed as an extension of `hf`, it is `hf prune`."""

import os
import sys

from hf_prune.cli.app import app
from hf_prune.errors import PruneError


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except PruneError as error:
        if os.environ.get("HF_DEBUG"):
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. Finished stages are kept; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
