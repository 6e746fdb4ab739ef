"""`python -m tests.benchmarks [measure] [evaluation] [demo] ... [--text FILE] ...`: the figures as JSON."""

import argparse
import importlib
import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_prune import environment, serial

from . import table
from .checkpoints import SEVEN_B, SMALL, Shapes, checkpoint


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tests.benchmarks.{name}")


def _streamed_measure(given: Namespace) -> Any:
    # The small one proves that it runs; its figures say nothing of large models.
    sizes = {"sequences": 8, "length": 256, "batch": 4, "memory": 10**9} if given.small else {}
    if given.sequences is not None:
        sizes["sequences"] = given.sequences
    return _module("streamed_measure").main(_shapes(given), folder=given.model, scratch=given.scratch, **sizes)


def _streamed_surgery(given: Namespace) -> Any:
    main = _module("streamed_surgery").main
    return main(_shapes(given), folder=given.model, scratch=given.scratch, environment=given.mergekit)


_BENCHMARKS: dict[str, Callable[[Namespace], Any]] = {
    "measure": lambda given: _module("measure").main(),
    "evaluation": lambda given: _module("evaluation").main(),
    "demo": lambda given: _module("demo").main(given.text),
    "slicing": lambda given: _module("slicing").main(given.calibration, given.text),
    "slicing-cost": lambda given: _module("slicing_cost").main(),
    "blimp": lambda given: _module("blimp").main(given.blimp),
    "recovery": lambda given: _module("recovery").main(given.blimp, given.text),
    "space": lambda given: _module("space").main(),
    "peers": lambda given: _module("peers").main(),
    "streamed-measure": _streamed_measure,
    "streamed-surgery": _streamed_surgery,
    "range-download": lambda given: _module("range_download").main(scratch=given.scratch),
    "pruned-speed": lambda given: _module("pruned_speed").main(),
    "scaling": lambda given: _module("scaling").main(),
    "observers": lambda given: _module("observers").main(given.small),
    "healing": lambda given: _module("healing").main(given.small),
    "searching": lambda given: _module("searching").main(given.small),
    "gpu": lambda given: _module("gpu").main(scratch=given.scratch),
}
_DEFAULT = ["measure", "demo", "peers", "range-download", "pruned-speed", "scaling"]
_SAME_MODEL = ("streamed-measure", "streamed-surgery")


def main() -> None:
    """Run the benchmarks that were named, a few minutes of them by default."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was written to scratch folders goes
    about = {"hardware": environment.hardware(_device(given)), "versions": environment.versions()}
    results = []
    with ExitStack() as stack:
        if given.mergekit is not None and "streamed-surgery" in given.which:
            _module("mergekit").install(given.mergekit)
        given.model = None
        if set(_SAME_MODEL) <= set(given.which):
            given.model = stack.enter_context(checkpoint(_shapes(given), given.scratch))
        for name in given.which:
            started = time.perf_counter()
            figures = serial.to_dict(_BENCHMARKS[name](given))
            took = round(time.perf_counter() - started, 1)
            results.append({"benchmark": name, **about, "took": took, "figures": figures})
            if given.save is not None:
                given.save.mkdir(parents=True, exist_ok=True)
                (given.save / f"{name}.json").write_text(json.dumps(results[-1], indent=2) + "\n", encoding="utf-8")
    if given.markdown is not None:
        given.markdown.write_text(table.render(results) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(about | {r["benchmark"]: r["figures"] for r in results}, indent=2) + "\n")


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "which", nargs="*", metavar="NAME", help=f"of: {' '.join(_BENCHMARKS)}; default: {' '.join(_DEFAULT)}"
    )
    parser.add_argument("--text", type=Path, help="text to judge models on: of the demo as well, of slicing alone")
    parser.add_argument("--calibration", type=Path, help="text file or folder to slice on")
    parser.add_argument("--blimp", type=Path, help="folder of BLiMP's .jsonl files")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints that go again; 45 GB for the large ones")
    parser.add_argument("--mergekit", type=Path, metavar="DIR", help="environment with mergekit; made where it is not")
    parser.add_argument("--sequences", type=int, help="of the text that is measured from a stream; default: 64")
    parser.add_argument("--small", action="store_true", help="small models to stream, search and heal, in seconds")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write NAME.json into it for each, as in results/")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the results as a table as well")
    given = parser.parse_args()
    given.which = given.which or _DEFAULT
    if unknown := [name for name in given.which if name not in _BENCHMARKS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {' '.join(_BENCHMARKS)}")
    if "gpu" in given.which and given.which != ["gpu"]:
        parser.error("gpu runs alone: its results name another device")
    if "slicing" in given.which and (given.text is None or given.calibration is None):
        parser.error("slicing needs --calibration and --text: two texts, of which no part is the same")
    if {"blimp", "recovery"} & set(given.which) and given.blimp is None:
        parser.error("blimp and recovery need --blimp: a folder of BLiMP's .jsonl files")
    if "recovery" in given.which and given.text is None:
        parser.error("recovery needs --text: a text that was not trained on")
    return given


def _device(given: Namespace) -> str:
    """Where figures of this run come from; those of a GPU are not mixed with others."""
    return "cuda" if given.which == ["gpu"] else "cpu"


def _shapes(given: Namespace) -> Shapes:
    return SMALL if given.small else SEVEN_B


if __name__ == "__main__":
    main()
