"""`hf-prune`: the command line. Installed as an extension of `hf`, it is `hf prune`."""

import os
import sys

from hf_prune.cli.app import app
from hf_prune.errors import PruneError

_INTERRUPTED = 130
_RESUMABLE = ("run", "demo", "measure", "plan", "heal", "sweep")


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except PruneError as error:
        if os.environ.get("HF_DEBUG"):
            raise
        print("Error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(1)
    except SystemExit as done:  # typer has turned Ctrl-C into this
        if done.code == _INTERRUPTED:
            resumable = len(sys.argv) > 1 and sys.argv[1] in _RESUMABLE
            hint = " Finished stages are kept; run the same command again to go on." if resumable else ""
            print(f"Interrupted.{hint}", file=sys.stderr)
        raise
