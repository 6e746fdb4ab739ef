"""`python -m tests.benchmarks [measure] [demo] [--text FILE]`: print the figures as JSON."""

import argparse
import json
import sys
from pathlib import Path

from hf_prune import environment, serial

from . import demo, measure


def main() -> None:
    """Run the benchmarks that were named, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", choices=["measure", "demo", []], help="default: all")
    parser.add_argument("--text", type=Path, help="text file or folder to judge the demo's models on as well")
    given = parser.parse_args()
    which = given.which or ["measure", "demo"]
    figures: dict[str, object] = {"hardware": environment.hardware(), "versions": environment.versions()}
    if "measure" in which:
        figures["measure"] = measure.main()
    if "demo" in which:
        figures["demo"] = demo.main(given.text)
    sys.stdout.write(json.dumps(serial.to_dict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
