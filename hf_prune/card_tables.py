"""Records as the tables, sentences and drawings of a model card; every number is formatted here."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from hf_prune.card_metadata import HUB, SELF_GENERATED, dataset_name, is_hub_id
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.layer_states import State, layer_states, layers_in
from hf_prune.markdown import Markdown, bullets, code, escape, fence, link, table
from hf_prune.records import Environment, Evaluation, ModelEvaluation, Perplexity, Plan, Rate, TextUse
from hf_prune.writing import REPEATED, repetition

NOT_MEASURED = "not measured"

_MAP_WIDTH = 16
"""Layers in a row of the layer map: 32 and 64 layers fall into even rows."""

_MARKS: dict[State, str] = {
    "kept": "█",
    "weights changed": "▓",
    "attention silenced": "a",
    "MLP silenced": "m",
    "attention and MLP silenced": "░",
    "without attention": "A",
    "without MLP": "M",
    "without attention and MLP": "-",
    "removed": "·",
}


def number(value: float, error: float | None = None) -> str:
    """A figure for people: four significant digits, or down to the second digit of its standard error.

    Raises:
        MeasureError: not finite.
    """
    finite(value)
    finite(error or 0.0)
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-4:
        return f"{value:.3g}" + ("" if error is None else f" ± {error:.2g}")
    digits = 4 if error is None or error <= 0 else 2
    leading = error if error else abs(value) or 1.0
    decimals = min(6, max(0, digits - 1 - math.floor(math.log10(leading))))
    return f"{value:,.{decimals}f}" + ("" if error is None else f" ± {error:,.{decimals}f}")


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    Raises:
        MeasureError: not finite.
    """
    return f"{finite(share):z.1%}"  # z: what rounds to nothing has no minus


def size(count: int) -> str:
    """Bytes in decimal units."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.2f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds in units that are easy to read."""
    if finite(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def layer_map(plan: Plan) -> Markdown:
    """All layers of the base as a drawing in text, one cell a layer, in rows of 16."""
    layers, states = plan.model.num_layers, layer_states(plan)
    width = len(str(layers - 1)) + 1
    lines = []
    for start in range(0, layers, _MAP_WIDTH):
        row = range(start, min(start + _MAP_WIDTH, layers))
        lines.append(f"layer {''.join(f'{i:>{width}}' for i in row)}")
        lines.append(f"      {''.join(_MARKS[states[i]].rjust(width) for i in row)}")
    legend = "   ".join(f"{_MARKS[state]} {state}" for state in layers_in(plan))
    return fence("\n".join([*lines, "", legend]), limit=100_000)


def text_use(data: TextUse | None) -> Markdown:
    """One phrase that says which text was used."""
    if data is None:
        return Markdown("the model alone, without calibration text")
    if data.dataset is None:
        parts = [Markdown(SELF_GENERATED)]
    elif is_hub_id(data.dataset, data.revision):
        parts = [link(data.dataset, f"{HUB}/datasets/{data.dataset}")]
    else:
        parts = [code(dataset_name(data))]
    for name, value in (("config", data.config), ("split", data.split), ("revision", data.revision)):
        if value:
            parts.append(Markdown(f"{name} {code(value, 100)}"))
    parts.append(Markdown(f"{data.samples:,} samples of at most {data.max_length:,} tokens ({data.tokens:,} in all)"))
    parts.append(Markdown(f"seed {data.seed}, sha256 of the token ids {code(data.sha256[:16] + '…')}"))
    return Markdown(", ".join(parts))


def results_table(evaluation: Evaluation) -> Markdown:
    """Original, pruned and healed side by side; one row a figure, one column a model."""
    return table(["", *[m.label for m in evaluation.models]], results_rows(evaluation))


def results_rows(evaluation: Evaluation) -> list[list[str]]:
    """The rows of `results_table` as plain text: the figure's name, and one cell a model."""
    models = evaluation.models
    on_cpu = evaluation.environment.device == "cpu"
    rows: list[list[str]] = []
    for name in _text_names(evaluation):
        texts = [next((p for p in m.perplexity if p.name == name), None) for m in models]
        rows.append([f"Perplexity, {name} ↓", *[_cell(p, _perplexity) for p in texts]])
        rows.append([f"Bits per byte, {name} ↓", *[_cell(p, _bits_per_byte) for p in texts]])
    repeated = [repetition(m.completions) for m in models]
    if any(r is not None for r in repeated):
        rows.append([f"Repeated {REPEATED}-grams in completions ↓", *[_cell(r, percent) for r in repeated]])
    rows += [
        ["KL to the original (nats per token) ↓", *[_fidelity(m, "kl") for m in models]],
        *_top_k(models),
        ["Same most likely token as the original ↑", *[_fidelity(m, "top1") for m in models]],
        ["Five most likely tokens shared with the original ↑", *[_fidelity(m, "top5") for m in models]],
        ["Decoder layers", *[str(m.layers) for m in models]],
        ["Parameters", *[f"{m.parameters:,}" for m in models]],
        ["Weights", *[f"{size(m.bytes)} ({m.dtype})" for m in models]],
        *_optional("Weight files on disk", [m.disk_bytes for m in models], size),
        *_optional("Arithmetic (FLOPs per prompt token) ↓", [m.flops_per_token for m in models], _flops),
        [
            "Peak memory of the process" if on_cpu else "Peak memory above the weights",
            *[size(m.peak_memory) for m in models],
        ],
        *_optional("Time to load (seconds) ↓", [m.load for m in models], _seconds),
        ["Prefill (tokens per second) ↑", *[_cell(m.speed, lambda s: _rate(s.prefill)) for m in models]],
        ["Decode (tokens per second) ↑", *[_cell(m.speed, lambda s: _rate(s.decode)) for m in models]],
    ]
    return rows


def results_notes(evaluation: Evaluation) -> Markdown:
    """Where the figures of the table come from."""
    where = evaluation.environment
    notes = [Markdown(f"Measured on {escape(where.hardware)} ({escape(where.dtype)}).")]
    for name in _text_names(evaluation):
        text = next(p for m in evaluation.models for p in m.perplexity if p.name == name)
        notes.append(
            Markdown(
                f"{escape(name)}: {text_use(text.data)}; windows of {text.window} tokens moved by {text.stride}, "
                f"{text.tokens:,} predicted tokens, {text.bytes:,} bytes."
            )
        )
    if notes[1:]:
        notes.append(Markdown("± is one standard error over windows (of the loss, carried over to first order)."))
    fidelity = next((m.fidelity for m in evaluation.models if m.fidelity), None)
    if fidelity:
        notes.append(
            Markdown(
                f"KL compares the next-token predictions at {fidelity.tokens:,} positions, agreement at "
                f"{fidelity.agreement_tokens:,}."
            )
        )
    if fidelity and fidelity.kl_top_k is not None:
        notes.append(
            Markdown(
                f"KL over the {fidelity.top_k} likeliest tokens (all others counted as one) at "
                f"{fidelity.top_k_tokens:,} positions; it is never above the full KL at the same positions."
            )
        )
    if any(repetition(m.completions) is not None for m in evaluation.models):
        notes.append(
            Markdown(
                f"Repeated {REPEATED}-grams: share of runs of {REPEATED} tokens that stood in the same greedy "
                "completion before."
            )
        )
    speed = next((m.speed for m in evaluation.models if m.speed), None)
    if speed:
        notes.append(
            Markdown(
                f"Speed: median of {speed.runs} runs (slowest to fastest in brackets), batch {speed.batch}, prompts "
                f"of {speed.prompt_tokens} tokens, {speed.new_tokens} new tokens"
                + (f"; the models took turns {speed.rounds} times." if speed.rounds > 1 else ".")
            )
        )
    return bullets(notes)


def generations(evaluation: Evaluation) -> list[tuple[Markdown, list[tuple[str, Markdown]]]]:
    """For each prompt: the fenced prompt, and (label, fenced completion) of each model; first greedy, then sampled."""
    prompts = dict.fromkeys(c.prompt for m in evaluation.models for c in m.completions)
    return [
        (
            fence(prompt),
            [
                (m.label if kind == "greedy" else f"{m.label}, sampled with seed {c.seed}", fence(c.text))
                for kind in ("greedy", "sampled")
                for m in evaluation.models
                for c in m.completions
                if c.prompt == prompt and c.kind == kind
            ],
        )
        for prompt in prompts
    ]


def environments(named: dict[str, Environment]) -> Markdown:
    """Hardware and versions, one line for the stages that share them."""
    groups: list[tuple[Environment, list[str]]] = []
    for stage, environment in named.items():
        same = next((stages for known, stages in groups if known == environment), None)
        if same is None:
            groups.append((environment, [stage]))
        else:
            same.append(stage)
    return bullets(
        [
            Markdown(
                f"{', '.join(stages).capitalize()} on {escape(e.hardware)} ({escape(e.device)}, {escape(e.dtype)}): "
                + ", ".join(f"{escape(name)} {escape(version)}" for name, version in e.versions.items())
                + "."
            )
            for e, stages in groups
        ]
    )


def check_same_texts(evaluation: Evaluation) -> None:
    """Refuse to put figures side by side that come from different texts.

    Raises:
        ConfigError: two models were measured on different text, or with other windows, under one name.
    """
    for name in _text_names(evaluation):
        seen = {
            (p.data.sha256, p.window, p.stride): m.label
            for m in evaluation.models
            for p in m.perplexity
            if p.name == name
        }
        if len(seen) > 1:
            raise ConfigError(
                f"the text {name!r} differs between the models {', '.join(seen.values())} (hash, window or stride); "
                "figures side by side need the same text. Evaluate all of them again"
            )


def finite(value: float, name: str = "a figure of the card") -> float:
    """The figure itself.

    Args:
        value: any float.
        name: what it is called in the error.

    Raises:
        MeasureError: NaN or infinite.
    """
    if not math.isfinite(value):
        raise MeasureError(f"{name} is {value}; expected a finite number. Measure again")
    return value


def _text_names(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(p.name for m in evaluation.models for p in m.perplexity))


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return NOT_MEASURED if value is None else show(value)


def _perplexity(text: Perplexity) -> str:
    return number(text.perplexity, text.perplexity * text.standard_error)


def _bits_per_byte(text: Perplexity) -> str:
    return number(text.bits_per_byte, text.standard_error * text.tokens / (math.log(2) * text.bytes))


def _fidelity(model: ModelEvaluation, figure: str) -> str:
    if model.fidelity is None:
        return "–" if model.label == "original" else NOT_MEASURED
    if figure == "kl":
        return number(model.fidelity.kl, model.fidelity.kl_standard_error)
    if figure == "kl_top_k":
        return _cell(model.fidelity.kl_top_k, number)
    if figure == "top5":
        return _cell(model.fidelity.top5_agreement, percent)
    return percent(model.fidelity.top1_agreement)


def _optional(name: str, values: list[Any], show: Callable[[Any], str]) -> list[list[str]]:
    """A row for figures that not every evaluation holds: none where no model has it."""
    return [[name, *[_cell(value, show) for value in values]]] if any(v is not None for v in values) else []


def _top_k(models: Sequence[ModelEvaluation]) -> list[list[str]]:
    """The row of the divergence over the original's likeliest tokens, which covers the whole text."""
    known = [m.fidelity for m in models if m.fidelity is not None and m.fidelity.kl_top_k is not None]
    if not known:
        return []
    cells = [_fidelity(m, "kl_top_k") for m in models]
    return [[f"KL over the original's {known[0].top_k} likeliest tokens ↓", *cells]]


def _flops(count: float) -> str:
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if finite(count) >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.0f}"


def _seconds(rate: Rate) -> str:
    low, middle, high = (f"{finite(r):.3g}" for r in (rate.minimum, rate.median, rate.maximum))
    return f"{middle} ({low}–{high})"


def _rate(rate: Rate) -> str:
    decimals = 0 if rate.median >= 100 else 1
    low, middle, high = (f"{finite(r):,.{decimals}f}" for r in (rate.minimum, rate.median, rate.maximum))
    return f"{middle} ({low}–{high})"
