"""What a card says of the healing: settings, losses at each station, and what was trained on what."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_prune import card_tables as tables
from hf_prune.card_commands import ADAPTER_FOLDER
from hf_prune.card_tables import finite, number, percent
from hf_prune.markdown import Markdown, code, escape, one_line, table
from hf_prune.records import Evaluation, Healing
from hf_prune.recovery import Regained, recovery, regained, shipped_loss
from hf_prune.writing import REPEATED, repetition

MOST_NAMES = 12
"""Names of what was trained above which they are folded: numbers in them become `*`."""

_MOST_POINTS = 8
_TEACHERS = {
    "resident": "held in memory as it is",
    "nf4": "held in memory in 4 bits (NF4)",
    "stored": "run once, its predictions kept on disk",
}

_ANSWERS = {
    "dataset": "the answers in it alone were learned, not the prompts",
    "original": "to its prompts the original model gave answers of its own, which alone were learned",
}


def facts(healing: Healing, output: str) -> dict[str, Any]:
    """Everything that the template places of a healing.

    Args:
        healing: how it was healed.
        output: "merged" or "adapter".

    Returns:
        Finished text by name.

    Raises:
        MeasureError: a figure is not finite.
    """
    weights = healing.kind == "weights"
    return {
        "by": "by training weights themselves" if weights else f"with {_adapters(healing)}",
        "name": "Weights trained themselves" if weights else _adapters(healing),
        "quantization": healing.quantization or "not quantized",
        "trained": _trained(healing),
        "how": _how(healing),
        "settings": settings_table(healing),
        "parameters": f"{healing.trained_parameters:,}",
        "steps": f"{healing.steps:,}",
        "tokens": f"{healing.tokens:,}",
        "duration": tables.duration(healing.seconds),
        "hardware": healing.environment.hardware,
        "train_loss": _train_loss(healing),
        "data": _text(healing),
        "held_out": held_out_table(healing),
        "held_out_tokens": f"{healing.held_out.tokens:,}",
        "held_out_data": tables.text_use(healing.held_out_data),
        "merge": _merge(healing, output),
        "recovery": recovery_table(healing),
        "recovery_notes": _recovery_notes(healing),
        "adapter_folder": code(ADAPTER_FOLDER + "/") if output == "adapter" else Markdown(""),
    }


def held_out_table(healing: Healing) -> Markdown:
    """The held-out loss at each station of healing that was measured."""
    return table(["station", "nats per token"], held_out_rows(healing))


def held_out_rows(healing: Healing) -> list[list[str]]:
    """The rows of `held_out_table` as plain text."""
    loss = healing.held_out
    names = ("adapter on quantized weights", "adapter on unquantized weights", "adapter merged")
    if healing.kind == "weights":
        names = ("trained weights beside quantized ones", "trained weights, uncast", "trained weights, cast")
    stations = (
        ("original", loss.original),
        ("pruned", loss.pruned),
        ("pruned, quantized", loss.quantized),
        (f"healed: {names[0]}", loss.adapter_quantized),
        (f"healed: {names[1]}", loss.adapter),
        (f"healed: {names[2]}", loss.merged),
    )
    return [[name, number(v)] for name, v in stations if v is not None]


def recovery_table(healing: Healing) -> Markdown:
    """What was back of the lost quality at some points of the training; empty where that is not known."""
    curve = recovery(healing)
    if not curve:
        return Markdown("")
    shown = _spread(curve, healing.best_step)
    divergence = any(r.kl is not None for r in curve)
    header = ["step", "tokens", "FLOPs", "held-out loss", "loss regained", *["KL", "KL regained"] * divergence]
    rows = []
    for r in shown:
        point = r.point
        row = [f"{point.step:,}", f"{point.tokens:,}", f"{finite(point.flops):.3g}"]
        row += [number(point.loss), percent(r.loss)]
        if divergence:
            row += [number(point.kl) if point.kl is not None else tables.NOT_MEASURED]
            row += [percent(r.kl) if r.kl is not None else tables.NOT_MEASURED]
        rows.append(row)
    return table(header, rows)


def folded(names: Sequence[str]) -> list[str]:
    """Names of what was trained, for people: where they are many, those that differ in numbers alone become one.

    Args:
        names: of modules or tensors.

    Returns:
        As they are, or such as "model.layers.*.mlp.up_proj.weight (8)".
    """
    if len(names) <= MOST_NAMES:
        return list(names)
    groups = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    told = [f"{name} ({count})" if count > 1 else name for name, count in groups.items()]
    rest = len(told) - MOST_NAMES
    return told if rest <= 0 else [*told[:MOST_NAMES], f"{rest} more"]


def settings_table(healing: Healing) -> Markdown:
    """The settings that healing used; the data is named elsewhere."""
    elsewhere = ("dataset", "dataset_config", "split", "text_column")
    rows = [
        [code(key), _setting(f"healing setting '{key}'", value)]
        for key, value in healing.settings.items()
        if key not in elsewhere and value not in (None, [], ())
    ]
    return table(["setting", "value"], rows)


def outcome(healing: Healing, evaluation: Evaluation | None = None) -> dict[str, str | None]:
    """What came of a healing, for the report of a command: by name, in words; None where it was not measured.

    Args:
        healing: its record.
        evaluation: of the healed model, where it was evaluated.
    """
    share = regained(healing, shipped_loss(healing))
    told = f"{healing.held_out.pruned:.4f} → {shipped_loss(healing):.4f} nats per token"
    if share is not None:
        told += f" ({percent(share)} of the loss regained; original {healing.held_out.original:.4f})"
    models = evaluation.models if evaluation is not None else ()
    repeated = {model.label: repetition(model.completions) for model in models}
    known = [f"{label} {percent(value)}" for label, value in repeated.items() if value is not None]
    return {"held-out loss": told, f"repeated {REPEATED}-grams in completions": ", ".join(known) or None}


def _adapters(healing: Healing) -> str:
    kind = "DoRA" if healing.settings.get("use_dora") else "LoRA"
    return f"Q{kind}" if healing.quantization else kind


def _trained(healing: Healing) -> Markdown:
    """Lead: what was trained, on what."""
    names = ", ".join(code(name, 200) for name in folded(healing.target_modules))
    if healing.kind == "weights":
        rest = f", beside weights in {escape(healing.quantization)}" if healing.quantization else ""
        return Markdown(f"Weights of the model itself, trained in float32{rest}: {names}")
    return Markdown(f"{_adapters(healing)} adapters ({escape(healing.quantization or 'not quantized')}) on {names}")


def _how(healing: Healing) -> Markdown:
    """The objective, what was computed once for all, and which weights were taken; empty in old records."""
    said, settings = [], healing.settings
    if _loss(healing) != "next_token":
        sentence = f"Trained against {code(_loss(healing), 200)}"
        if settings.get("temperature", 1.0) != 1.0:
            sentence += f" at temperature {_told(settings, 'temperature')}"
        if settings.get("top_k") is not None:
            sentence += f" over the original's {_told(settings, 'top_k')} likeliest tokens"
        if settings.get("teacher") is not None:
            teacher = _told(settings, "teacher")
            sentence += f"; the original was {_TEACHERS.get(teacher, teacher)}"
        said.append(sentence + ".")
    for recorded in (healing.reused, healing.stopped):
        if recorded:
            said.append(_sentence(recorded))
    if healing.best_step is not None:
        said.append(f"The weights after step {healing.best_step:,} were taken, the best on the held-out text.")
    return Markdown(" ".join(said))


def _loss(healing: Healing) -> str:
    loss = healing.settings.get("loss")
    return "next_token" if loss is None else _setting("healing setting 'loss'", loss)


def _train_loss(healing: Healing) -> str:
    unit = "nats per token" if _loss(healing) in ("next_token", "kl") else "(weighted sum of the terms)"
    return f"{number(healing.train_loss)} {unit}"


def _told(settings: dict[str, Any], name: str) -> str:
    return escape(_setting(f"healing setting '{name}'", settings[name]), 100)


def _text(healing: Healing) -> Markdown:
    """Which text was trained on, and what of it was learned."""
    parts = [str(tables.text_use(healing.data))]
    if healing.data.answers is not None:
        parts.append(_ANSWERS[healing.data.answers])
    if healing.settings.get("packing") is True:
        parts.append("short texts shared a row without seeing one another")
    return Markdown("; ".join(parts))


def _merge(healing: Healing, output: str) -> str:
    share = healing.merge_loss_share
    if output != "merged" or share is None:
        return ""
    what = "Casting the weights" if healing.kind == "weights" else "Merging the adapter"
    return f"{what} {'lost' if share >= 0 else 'added'} {abs(share):.1%} of what healing had gained."


def _recovery_notes(healing: Healing) -> Markdown:
    """How to read the recovery table."""
    said = [
        "Regained: (pruned − x) / (pruned − original) of the held-out loss, 0% for the pruned model and 100% for the "
        "original, of the model as it was trained."
    ]
    if any(r.kl is not None for r in recovery(healing)):
        said.append("KL regained: 1 − KL / KL of the first row.")
    if healing.quantization:
        said.append("That was quantized: the first row is the quantized pruned model.")
    if len(healing.curve) > _MOST_POINTS:
        said.append(f"`pruning/healing.json` holds all {len(healing.curve)} points.")
    return Markdown(" ".join(said))


def _spread(curve: Sequence[Regained], best: int | None) -> list[Regained]:
    """At most so many points, spread evenly: the first, the last and the best are among them."""
    last = len(curve) - 1
    if last < _MOST_POINTS:
        return list(curve)
    taken = [i for i, r in enumerate(curve) if r.point.step == best and 0 < i < last]
    slots = _MOST_POINTS - len(taken)
    chosen = {round(i * last / (slots - 1)) for i in range(slots)} | set(taken)
    return [curve[i] for i in sorted(chosen)]


def _sentence(text: str) -> str:
    text = one_line(text, 1000)
    return escape(text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else "."))


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{finite(value, name):g}"
    if isinstance(value, str | int):
        return str(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
