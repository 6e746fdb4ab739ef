"""BLiMP from a local folder through lm-evaluation-harness, beside our own scoring of the same pairs."""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.config import EvaluationConfig
from hf_prune.demo import model_folder
from hf_prune.demo.score import blimp_accuracy, read_pairs
from hf_prune.evaluation.harness import run_tasks
from hf_prune.evaluation.task_loading import load_tasks
from tests.evaluation.questions import stock_tasks

STOCK, PLAIN = "blimp_local", "blimp_local_plain"
"""Groups of all paradigms: as the harness has them, with a space before each sentence, and without that space."""


@dataclasses.dataclass(frozen=True)
class BlimpFigures:
    """Accuracy on the same pairs, and what the harness costs.

    Attributes:
        pairs: in all.
        paradigms: files.
        harness: accuracy with the harness's stock settings: a space before each sentence, ties count as right.
        harness_standard_error: of it.
        harness_plain: the same without the space.
        own: accuracy by `hf_prune.demo.score`: no space, ties count as wrong.
        harness_seconds: of the harness's run with questions loaded.
        own_seconds: of our own scoring, with as many sentences at once.
        load_seconds: until the harness had read its task files and the questions.
    """

    pairs: int
    paradigms: int
    harness: float
    harness_standard_error: float | None
    harness_plain: float
    own: float
    harness_seconds: float
    own_seconds: float
    load_seconds: float


def write_tasks(data: Path, folder: Path, name: str = STOCK, delimiter: str = " ") -> None:
    """Write a task file for each of BLiMP's files, and a group that is their mean.

    Args:
        data: folder of .jsonl files with `sentence_good` and `sentence_bad`.
        folder: where the task files go (`task_path`).
        name: of the group.
        delimiter: what stands before each sentence.
    """
    stock = stock_tasks() / "blimp" / "_template_yaml"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in sorted(data.glob("*.jsonl")):
        task = {
            "task": f"{name}_{file.stem}",
            "include": str(stock),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"train": str(file.resolve())}},
            "target_delimiter": delimiter,
        }
        names.append(task["task"])
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    group = {
        "group": name,
        "task": names,
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")


def main(data: Path, limit: int = 20, batch_size: int = 32) -> BlimpFigures:
    """The embedded model on the first pairs of each paradigm."""
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    results, seconds, loading = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, delimiter in ((STOCK, " "), (PLAIN, "")):
            folder = Path(scratch) / name
            write_tasks(data, folder, name, delimiter)
            config = EvaluationConfig(tasks=(name,), task_path=str(folder), limit=limit, batch_size=batch_size)
            loading[name] = _seconds(lambda config=config: load_tasks(config))[0]
            seconds[name], (found, _) = _seconds(lambda config=config: run_tasks(model, tokenizer, config))
            results[name] = next(r for r in found if r.task == name)
    pairs = read_pairs(data, limit)
    flat = [pair for found in pairs.values() for pair in found]
    own_seconds, own = _seconds(lambda: blimp_accuracy(model, tokenizer, flat, batch_size))
    return BlimpFigures(
        pairs=len(flat),
        paradigms=len(pairs),
        harness=results[STOCK].value,
        harness_standard_error=results[STOCK].standard_error,
        harness_plain=results[PLAIN].value,
        own=own,
        harness_seconds=seconds[PLAIN],
        own_seconds=own_seconds,
        load_seconds=loading[STOCK],
    )


def _seconds(call):
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found
