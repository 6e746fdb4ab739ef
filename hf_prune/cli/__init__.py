"""`hf-prune`: the command line. Installed as an extension of `hf`, it is `hf prune`."""

import os
import sys

from hf_prune.cli.app import app
from hf_prune.errors import ConfigError, PruneError

_INTERRUPTED = 130
_RESUMABLE = ("run", "demo", "measure", "plan", "prune", "heal", "sweep", "bench-methods")
_SHARED = ("measure", "heal")
"""Commands whose work several processes can share."""


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        _check_processes()
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


def _check_processes() -> None:
    """Refuse several processes that would all do the same, and write to the same files.

    Raises:
        ConfigError: torchrun started a command that one process does.
        SystemExit: it did, and process 0 says so.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") or command in _SHARED:
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(1)
    raise ConfigError(
        f"'{command}' runs in one process; torchrun started {os.environ['WORLD_SIZE']}. Start it without torchrun; "
        f"what several processes share is: {', '.join(_SHARED)}"
    )
