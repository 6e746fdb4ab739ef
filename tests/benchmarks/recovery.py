"""What the embedded model loses and wins back where a quarter and a third of its layers go.

`python -m tests.benchmarks recovery --blimp FOLDER --text FILE`: BLiMP through lm-evaluation-harness, and perplexity
of a text that nothing was trained on; healing as in the demo, on text that the original wrote itself.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from hf_prune import Pruner, demo

from .blimp import PLAIN, write_tasks

DROPPED = (3, 4)
PAIRS = 100
"""Of each paradigm."""


def main(data: Path, text: Path) -> dict[str, Any]:
    """Prune, heal and evaluate at each amount.

    Args:
        data: folder of BLiMP's .jsonl files; the first pairs of each are asked.
        text: a text file that was not trained on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(data, Path(scratch) / "tasks", PLAIN, "")
        return {f"{count} of 12 layers": _recover(count, text, Path(scratch)) for count in DROPPED}


def _recover(count: int, text: Path, scratch: Path) -> dict[str, Any]:
    started, base = time.perf_counter(), demo.config()
    evaluation = dataclasses.replace(
        base.evaluation,
        limit=PAIRS,
        dataset=str(text),
        tasks=(PLAIN,),
        task_path=str(scratch / "tasks"),
        batch_size=32,
        speed=False,
    )
    config = dataclasses.replace(base, drop_layers=count, evaluation=evaluation)
    pruner = Pruner.from_pretrained(demo.model_folder(), config, run_folder=scratch / f"{count}.run", progress=False)
    pruner.prepare_healing()
    pruner.evaluate_as("original")
    pruner.prune()
    pruner.evaluate_as("pruned")
    pruner.heal()
    pruner.evaluate_as("healed")
    return {
        "dropped": pruner.plan().dropped,
        **{figures.label: _figures(figures) for figures in pruner.judge.figures},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _figures(figures: Any) -> dict[str, Any]:
    task = next(result for result in figures.tasks if result.task == PLAIN and result.main)
    [read] = figures.perplexity
    return {
        "blimp": round(task.value, 4),
        "blimp standard error": None if task.standard_error is None else round(task.standard_error, 4),
        "pairs": task.samples,
        "stability": None if task.stability is None else round(task.stability, 4),
        "perplexity": round(read.perplexity, 2),
        "bits per byte": round(read.bits_per_byte, 4),
        "tokens": read.tokens,
    }
