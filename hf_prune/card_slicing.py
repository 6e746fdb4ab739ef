"""What a card says of a sliced model: its widths, what they cost and save, and what it takes to load it."""

from typing import Any

from hf_prune import card_tables as tables
from hf_prune.errors import ConfigError
from hf_prune.markdown import Markdown, fence, table
from hf_prune.records import ModelEvaluation, Plan, Slicing

SLICEGPT = "https://arxiv.org/abs/2401.15024"
"""The paper behind every slicing method."""

CITATIONS = {
    SLICEGPT: """@inproceedings{ashkboos2024slicegpt,
  title     = {SliceGPT: Compress Large Language Models by Deleting Rows and Columns},
  author    = {Ashkboos, Saleh and Croci, Maximilian L. and Gennari do Nascimento, Marcelo and Hoefler, Torsten and Hensman, James},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2401.15024}
}""",  # noqa: E501
    "https://arxiv.org/abs/2411.03513": """@inproceedings{dumitru2024change,
  title     = {Change Is the Only Constant: Dynamic {LLM} Slicing based on Layer Redundancy},
  author    = {Dumitru, Razvan-Gabriel and Clotan, Paul-Ioan and Yadav, Vikas and Peteleaza, Darius and Surdeanu, Mihai},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2024},
  year      = {2024},
  url       = {https://arxiv.org/abs/2411.03513}
}""",  # noqa: E501
}
"""BibTeX of the slicing papers, by URL."""

_NOT_THE_BASE = "Kept tensors were not compared byte for byte with the base."
_RELOAD = {
    ("full", False): "After saving, the modeling code that is shipped was loaded by `AutoModelForCausalLM` with "
    "`trust_remote_code=True` in a process of its own. Logits and greedily generated tokens for fixed inputs were "
    f"compared with the model in memory, and agree. {_NOT_THE_BASE}",
    ("full", True): "After saving, the weights were loaded again by plain `AutoModelForCausalLM` in a process of its "
    "own. Logits and greedily generated tokens for fixed inputs were compared with the model in memory, and agree. "
    f"{_NOT_THE_BASE}",
    ("streamed", False): "After saving, keys, shapes and dtypes were compared with the modeling code that is shipped, "
    "loaded by `AutoModelForCausalLM` with `trust_remote_code=True`. The whole model was not loaded at once. "
    f"{_NOT_THE_BASE}",
    ("streamed", True): "After saving, keys, shapes and dtypes were compared with the stock model class. The whole "
    f"model was not loaded at once. {_NOT_THE_BASE}",
}
_BASIS = {
    "per_block": "one rotation at each point, shortcuts between them",
    "global": "one rotation for the whole model, no shortcuts",
}
_MAP_COLUMNS = 16
"""Layers in a row of the width list, as in the layer map."""


def check(plan: Plan, slicing: Slicing) -> None:
    """Refuse a slicing that contradicts itself or its plan.

    Args:
        plan: what was done.
        slicing: of that plan.

    Raises:
        ConfigError: names what is wrong.
    """
    layers, hidden = plan.model.num_layers, slicing.hidden_size
    if plan.dropped:
        raise ConfigError(
            f"the plan of method '{plan.method}' drops layers and slices those that stay; a card tells of one of them"
        )
    for name, values, allowed in (
        ("attn_out", slicing.attn_out, (0, layers)),
        ("mlp_out", slicing.mlp_out, (layers,)),
        ("redundancy", slicing.redundancy or (), (layers,) if slicing.redundancy is not None else (0,)),
        *(("search widths", candidate.widths, (layers,)) for candidate in slicing.search),
    ):
        if len(values) not in allowed:
            raise ConfigError(f"the plan's {name} has {len(values)} entries; the model has {layers} layers")
    for width in (slicing.embed, *slicing.attn_out, *slicing.mlp_out):
        if not 1 <= width <= hidden:
            raise ConfigError(f"the plan holds width {width}; expected 1 to {hidden}, the width before slicing")
    if slicing.basis not in _BASIS:
        raise ConfigError(f"the plan's basis is {slicing.basis!r}; expected one of: {', '.join(_BASIS)}")
    if (
        not 0 <= slicing.shortcut_parameters <= slicing.parameters
        or min(slicing.parameters, slicing.original_parameters) < 1
    ):
        raise ConfigError(
            f"the plan counts {slicing.parameters} parameters, {slicing.shortcut_parameters} of them in shortcuts, "
            f"and {slicing.original_parameters} before slicing; expected positive counts that contain each other"
        )
    if slicing.search and slicing.selection is None:
        raise ConfigError("the plan holds a search over schedules, but not the text that chose among them")
    if slicing.search and slicing.widths not in [candidate.widths for candidate in slicing.search]:
        raise ConfigError("the plan's widths are those of no schedule that its search tried")


def check_parameters(slicing: Slicing, model: ModelEvaluation) -> None:
    """Refuse an evaluation whose count of parameters is not the plan's: one of both would be wrong on the card.

    Args:
        slicing: what the plan counted.
        model: the original or the pruned model, as evaluated.

    Raises:
        ConfigError: names both counts.
    """
    expected = slicing.original_parameters if model.label == "original" else slicing.parameters
    if model.parameters != expected:
        raise ConfigError(
            f"the evaluation's {model.label} model has {model.parameters:,} parameters; the plan says {expected:,}"
        )


def warnings(slicing: Slicing, many: float) -> list[str]:
    """What a reader should know of the slicing before anything else.

    Args:
        slicing: how wide the model is.
        many: share of the width above which its loss is worth a warning.
    """
    found = []
    if slicing.parameters > slicing.original_parameters:
        shortcuts = f"the shortcuts alone hold {slicing.shortcut_parameters:,}" if slicing.shortcut_parameters else ""
        own_head = "" if slicing.tied else "a head that shared the table of the embeddings has one of its own now"
        causes = " and ".join(cause for cause in (shortcuts, own_head) if cause)
        found.append(
            f"The model GREW by {_growth(slicing)}: {slicing.parameters:,} parameters instead of "
            f"{slicing.original_parameters:,}. What slicing adds outweighs what it cut"
            + (f": {causes}." if causes else ".")
        )
    whole = len(slicing.widths) * slicing.hidden_size
    share = (whole - sum(slicing.widths)) / whole  # a single division: exactly 30 % is not more than 30 %
    if share > many:
        found.append(
            f"The residual stream is {share:.1%} narrower on average. Free generation and reasoning in several steps "
            "suffer first and most, before perplexity shows it."
        )
    return found


def facts(plan: Plan, slicing: Slicing) -> dict[str, Any]:
    """Everything that the template places of a sliced model.

    Args:
        plan: what was done, checked by `check`.
        slicing: of that plan.

    Returns:
        Finished text by name.

    Raises:
        MeasureError: a figure is not finite.
    """
    return {
        "layers": plan.model.num_layers,
        "hidden": slicing.hidden_size,
        "mean": _mean(slicing) + ("" if len(set(slicing.widths)) == 1 else " on average"),
        "plain": slicing.plain,
        "table": facts_table(slicing),
        "map": width_map(slicing),
        "last": slicing.mlp_out[-1],
        "redundancy": slicing.redundancy is not None,
        "search": search_table(slicing) if slicing.search else Markdown(""),
        "tried": len(slicing.search),
        "calibration": tables.text_use(slicing.calibration) if slicing.calibration else Markdown(""),
        "selection": tables.text_use(slicing.selection) if slicing.search and slicing.selection else Markdown(""),
        "shortcuts": _shortcuts(slicing),
    }


def facts_table(slicing: Slicing) -> Markdown:
    """What was asked for, and what came of it."""
    share = slicing.parameters / slicing.original_parameters
    grown = f"; the model GREW by {_growth(slicing)}" if slicing.parameters > slicing.original_parameters else ""
    shortcuts = f"{slicing.shortcut_parameters:,} ({tables.percent(slicing.shortcut_share)} of the parameters)"
    rows = [
        ["Asked to cut", f"{tables.percent(slicing.requested)} of the {slicing.requested_of}"],
        ["Mean width kept", f"{_mean(slicing)} of {slicing.hidden_size} ({tables.percent(slicing.mean_width)})"],
        ["Widths", _span(slicing.widths)],
        ["Parameters before", f"{slicing.original_parameters:,}"],
        ["Parameters now", f"{slicing.parameters:,} ({tables.percent(share)} of those before{grown})"],
        ["Of these in shortcuts", shortcuts if slicing.shortcut_parameters else "none"],
        ["Basis", _BASIS[slicing.basis]],
        ["Embeddings and head", "one table (tied)" if slicing.tied else "two tables (untied)"],
    ]
    if slicing.base is not None:
        rows.append(["Slice base (cut from every layer, before redundancy adds)", tables.percent(slicing.base)])
    if slicing.redundancy is not None:
        low, high = (tables.number(end) for end in (min(slicing.redundancy), max(slicing.redundancy)))
        rows.append(["Layer redundancy", f"{low} to {high}"])
    return table(["", "this model"], rows)


def width_map(slicing: Slicing) -> Markdown:
    """Width in which each layer reads the stream, in rows of 16 layers, with its redundancy where there is one."""
    rows = [("layer", [str(layer) for layer in range(len(slicing.widths))]), ("width", list(map(str, slicing.widths)))]
    if slicing.attn_out and slicing.attn_out != slicing.widths:
        rows.append(("after attention", list(map(str, slicing.attn_out))))
    if slicing.redundancy is not None:
        rows.append(("redundancy", [f"{tables.finite(value):.2f}" for value in slicing.redundancy]))
    name_width = max(len(name) for name, _ in rows)
    width = 1 + max(len(cell) for _, cells in rows for cell in cells)
    blocks = [
        "\n".join(
            name.ljust(name_width) + "".join(cell.rjust(width) for cell in cells[start : start + _MAP_COLUMNS])
            for name, cells in rows
        )
        for start in range(0, len(slicing.widths), _MAP_COLUMNS)
    ]
    return fence("\n\n".join(blocks), limit=100_000)


def search_table(slicing: Slicing) -> Markdown:
    """Every schedule that was tried, the chosen one marked."""
    return table(
        ["slice base", "widths", "loss (nats per token) ↓", ""],
        [
            [
                tables.percent(candidate.base),
                _span(candidate.widths),
                tables.number(candidate.loss, candidate.standard_error),
                "chosen" if candidate.widths == slicing.widths else "",
            ]
            for candidate in slicing.search
        ],
    )


def reload_sentence(level: str, slicing: Slicing) -> Markdown:
    """What the reload check of a sliced model did.

    Args:
        level: "full" or "streamed".
        slicing: says whether the repository ships its modeling code.
    """
    return Markdown(_RELOAD[level, slicing.plain])


def _shortcuts(slicing: Slicing) -> str:
    """How many matrix products the shortcuts of a layer cost; empty where there are none."""
    if slicing.basis == "global":
        return ""
    return "two extra matrix products" if slicing.attn_out else "one extra matrix product"


def _growth(slicing: Slicing) -> str:
    return tables.percent(slicing.parameters / slicing.original_parameters - 1)


def _mean(slicing: Slicing) -> str:
    return f"{sum(slicing.widths) / len(slicing.widths):.1f}".removesuffix(".0")


def _span(widths: tuple[int, ...]) -> str:
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low}–{high}"
