"""Figures of the shipped weights for machines: the card's `model-index`, and `.eval_results/` for Hub benchmarks."""

from collections.abc import Sequence

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_prune import card_choice
from hf_prune.card_metadata import dataset_name, is_hub_id, plain
from hf_prune.card_tasks import Key, find, label
from hf_prune.errors import MeasureError
from hf_prune.records import Healing, ModelEvaluation, Plan, TaskResult
from hf_prune.units import Part, layers_of

EVAL_RESULTS_FILE = ".eval_results/hf-prune.yaml"
"""Where results for registered benchmarks lie in a folder and a repo."""

BENCHMARKS = {
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    "gpqa_diamond_cot_zeroshot": ("Idavidrein/gpqa", "diamond"),
    "gsm8k": ("openai/gsm8k", "gsm8k"),
}
"""The harness's name of a task: Hub dataset that is registered as a benchmark, and the task id there.

From result files that the Hub's own staff committed to models (MiniMaxAI/MiniMax-M2.5: gpqa "diamond", M2:
"mmlu_pro"), and for gsm8k from the EvalEval coalition's guide to the format. Values there are percentages.
"""


def results(model: ModelEvaluation, tasks: Sequence[Key]) -> list[EvalResult]:
    """Everything that the `model-index` holds of one model.

    Args:
        model: figures of the weights that the card accompanies.
        tasks: benchmarks that the card quotes.
    """
    return [*text_results(model), *task_results(model, tasks)]


def text_results(model: ModelEvaluation) -> list[EvalResult]:
    """Perplexity and bits per byte of one model, for the `model-index`.

    A text that is no Hub dataset has type "unknown", and the hash of its token ids as revision, so that two of them
    stay apart.
    """
    results = []
    for text in model.perplexity:
        data = text.data
        on_hub = is_hub_id(data.dataset, data.revision)
        for kind, title, value in (
            ("perplexity", "Perplexity", text.perplexity),
            ("bits_per_byte", "Bits per byte", text.bits_per_byte),
        ):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=str(data.dataset) if on_hub else "unknown",
                    dataset_name=plain(text.name) or dataset_name(data),
                    dataset_config=plain(data.config),
                    dataset_split=plain(data.split),
                    dataset_revision=plain(data.revision) if on_hub else plain(data.sha256[:16]),
                    metric_type=kind,
                    metric_name=f"{title} (window {text.window}, stride {text.stride})",
                    metric_value=float(f"{value:.6g}"),
                )
            )
    return results


def task_results(model: ModelEvaluation, tasks: Sequence[Key]) -> list[EvalResult]:
    """Benchmark figures of one model, for the `model-index`.

    A group of tasks has no dataset of its own: its type is "unknown", and its name stands for the config, so that two
    groups stay apart.

    Raises:
        MeasureError: a figure is not finite.
    """
    found = []
    for wanted in tasks:
        result = find(model, wanted)
        if result is None:
            continue
        on_hub = is_hub_id(result.dataset, None)
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=str(result.dataset) if on_hub else "unknown",
                dataset_name=plain(result.task) or "unnamed",
                dataset_config=plain(result.dataset_config) or (None if on_hub else plain(result.task)),
                dataset_split=plain(result.split),
                metric_type=plain(result.metric) or "unknown",
                metric_name=label(result),
                metric_value=_rounded(result.value, result.task),
            )
        )
    return found


def benchmark_entries(
    model: ModelEvaluation, plan: Plan, healing: Healing | None, chat_template: bool = False
) -> list[EvalResultEntry]:
    """Results for registered benchmarks, in percent; only of whole runs on the benchmark's own questions.

    Args:
        model: figures of the weights that are shipped.
        plan: what was cut.
        healing: how it was healed; None when it was not.
        chat_template: whether questions went through the tokenizer's chat template.

    Raises:
        MeasureError: a figure is not finite.
    """
    found: list[EvalResultEntry] = []
    for result in model.tasks:
        dataset, task_id = BENCHMARKS.get(result.task, ("", ""))
        if not dataset or not result.main or result.limit is not None or _datasets(model, result) != {dataset}:
            continue
        if dataset in [entry.dataset_id for entry in found]:
            continue  # the Hub takes one value a benchmark and file
        notes = [_made(plan, healing), f"lm-evaluation-harness {label(result)}"]
        if chat_template:
            notes.append("chat template")
        value = _rounded(100 * result.value, result.task)
        found.append(EvalResultEntry(dataset, task_id, value, notes=", ".join(notes)))
    return found


def benchmark_yaml(entries: list[EvalResultEntry]) -> str:
    """The text of `EVAL_RESULTS_FILE`."""
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _datasets(model: ModelEvaluation, result: TaskResult) -> set[str | None]:
    """Datasets behind a task; of a group those of its parts."""
    if not result.group:
        return {result.dataset}
    return {r.dataset for r in model.tasks if r.parent == result.task}


_REMOVED: dict[Part, str] = {
    "block": "layer-pruned",
    "attention": "attention silenced",
    "mlp": "MLP silenced",
}


def _made(plan: Plan, healing: Healing | None) -> str:
    if plan.slicing is not None:
        cut = "sliced"
    else:
        became = card_choice.became(plan)
        cut = ", ".join(
            f"{words} {len(layers)}/{plan.model.num_layers}"
            for part, words in (
                ("block", "layer-pruned"),
                ("attention", f"attention {became}"),
                ("mlp", f"MLP {became}"),
            )
            if (layers := layers_of(plan.removed, part))  # type: ignore[arg-type]
        )
    return cut + (", healed" if healing is not None else "")


def _rounded(value: float, name: str) -> float:
    rounded = float(f"{value:.6g}")
    if rounded != rounded or rounded in (float("inf"), float("-inf")):
        raise MeasureError(f"the result of the task {name!r} is {value}; expected a finite number. Evaluate again")
    return rounded
