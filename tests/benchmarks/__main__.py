"""`python -m tests.benchmarks [measure] [evaluation] [demo] ... [--text FILE] ...`: the figures as JSON."""

import argparse
import json
import sys
from pathlib import Path

from hf_prune import environment, serial

from . import blimp, demo, evaluation, measure, recovery, slicing, slicing_cost, space

_ALL = ("measure", "evaluation", "demo", "slicing", "slicing-cost", "blimp", "recovery", "space")
_DEFAULT = ["measure", "demo"]


def main() -> None:
    """Run the benchmarks that were named, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*_ALL, []], help=f"default: {' '.join(_DEFAULT)}")
    parser.add_argument("--text", type=Path, help="text to judge models on: of the demo as well, of slicing alone")
    parser.add_argument("--calibration", type=Path, help="text file or folder to slice on")
    parser.add_argument("--blimp", type=Path, help="folder of BLiMP's .jsonl files")
    given = parser.parse_args()
    which = given.which or _DEFAULT
    if "slicing" in which and (given.text is None or given.calibration is None):
        parser.error("slicing needs --calibration and --text: two texts, of which no part is the same")
    if {"blimp", "recovery"} & set(which) and given.blimp is None:
        parser.error("blimp and recovery need --blimp: a folder of BLiMP's .jsonl files")
    if "recovery" in which and given.text is None:
        parser.error("recovery needs --text: a text that was not trained on")
    figures: dict[str, object] = {"hardware": environment.hardware(), "versions": environment.versions()}
    if "measure" in which:
        figures["measure"] = measure.main()
    if "evaluation" in which:
        figures["evaluation"] = evaluation.main()
    if "demo" in which:
        figures["demo"] = demo.main(given.text)
    if "slicing" in which:
        figures["slicing"] = slicing.main(given.calibration, given.text)
    if "slicing-cost" in which:
        figures["slicing-cost"] = slicing_cost.main()
    if "blimp" in which:
        figures["blimp"] = blimp.main(given.blimp)
    if "recovery" in which:
        figures["recovery"] = recovery.main(given.blimp, given.text)
    if "space" in which:
        figures["space"] = space.main()
    sys.stdout.write(json.dumps(serial.to_dict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
