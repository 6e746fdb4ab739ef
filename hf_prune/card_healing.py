"""What a card says of the healing: settings, losses at each station, and what was trained on what."""

import json
from typing import Any

from hf_prune import card_tables as tables
from hf_prune.card_commands import ADAPTER_FOLDER
from hf_prune.card_tables import finite, number
from hf_prune.markdown import Markdown, code, table
from hf_prune.records import Healing


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
    share = healing.merge_loss_share
    merge = ""
    if output == "merged" and share is not None:
        merge = f"Merging the adapter {'lost' if share >= 0 else 'added'} {abs(share):.1%} of what healing had gained."
    return {
        "name": "QLoRA" if healing.quantization else "LoRA",
        "quantization": healing.quantization or "not quantized",
        "settings": settings_table(healing),
        "targets": Markdown(", ".join(code(name) for name in healing.target_modules)),
        "parameters": f"{healing.trained_parameters:,}",
        "steps": f"{healing.steps:,}",
        "tokens": f"{healing.tokens:,}",
        "duration": tables.duration(healing.seconds),
        "hardware": healing.environment.hardware,
        "train_loss": tables.number(healing.train_loss),
        "data": tables.text_use(healing.data),
        "held_out": held_out_table(healing),
        "held_out_tokens": f"{healing.held_out.tokens:,}",
        "held_out_data": tables.text_use(healing.held_out_data),
        "merge": merge,
        "adapter_folder": code(ADAPTER_FOLDER + "/") if output == "adapter" else Markdown(""),
    }


def held_out_table(healing: Healing) -> Markdown:
    """The held-out loss at each station of healing that was measured."""
    return table(["station", "nats per token"], held_out_rows(healing))


def held_out_rows(healing: Healing) -> list[list[str]]:
    """The rows of `held_out_table` as plain text."""
    loss = healing.held_out
    stations = (
        ("original", loss.original),
        ("pruned", loss.pruned),
        ("pruned, quantized", loss.quantized),
        ("healed: adapter on quantized weights", loss.adapter_quantized),
        ("healed: adapter on unquantized weights", loss.adapter),
        ("healed: adapter merged", loss.merged),
    )
    return [[name, number(v)] for name, v in stations if v is not None]


def settings_table(healing: Healing) -> Markdown:
    """The settings that healing used; the data is named elsewhere."""
    elsewhere = ("dataset", "dataset_config", "split", "text_column")
    rows = [
        [code(key), _setting(f"healing setting '{key}'", value)]
        for key, value in healing.settings.items()
        if key not in elsewhere and value is not None
    ]
    return table(["setting", "value"], rows)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{finite(value, name):g}"
    if isinstance(value, str | int):
        return str(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
