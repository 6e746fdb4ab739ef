"""`python -m tests.hub --root DIR`: serve a loopback Hub until killed; its address is the first line on stdout."""

import argparse
import sys
import threading
from pathlib import Path

from .server import LoopbackHub


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder for the Hub's data")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--user", default="demo", help="name of the one user")
    parser.add_argument("--token", default="hf_loopback", help="access token of the user")
    given = parser.parse_args()
    with LoopbackHub(given.root, {given.token: given.user}, port=given.port) as hub:
        sys.stdout.write(f"{hub.endpoint}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
