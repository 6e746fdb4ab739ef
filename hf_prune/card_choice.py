"""What a card says of how it was chosen what goes, and of what became of the numbers that stayed."""

from typing import Any

from hf_prune import card_tables as tables
from hf_prune.config import PrunerConfig
from hf_prune.markdown import Markdown, bullets, code, escape, link, one_line, table
from hf_prune.methods import get_method
from hf_prune.planners.choice import in_words
from hf_prune.records import Operation, Plan, Scores, Trial, ranges
from hf_prune.registry import Registry, fitted, measure, planner, surgery
from hf_prune.units import layers_of, parts_of

MOST_TRIALS = 16
"""Decisions of a search that a card shows; `plan.json` holds all of them."""

_MOST_FACTORS = 4
"""Operations that scale which are told one by one."""

_UNITS = {"block": "whole layers", "attention": "attentions", "mlp": "MLPs", "joint": "attentions and MLPs"}
_PARTS = (("attention", "attention"), ("mlp", "MLP"))


def facts(plan: Plan, config: PrunerConfig, scores: Scores | None, healed: bool) -> dict[str, Any]:
    """Everything that the template places of a choice.

    Args:
        plan: what was removed, checked by `card_consistency`.
        config: the recipe.
        scores: what was measured.
        healed: whether the weights that are shipped were trained after the cut.

    Returns:
        Finished text by name.

    Raises:
        MeasureError: a figure is not finite.
    """
    judged = measured_by(plan, config, scores)
    return {
        "how": how(plan, config, scores),
        "close": escape(close(plan)),
        "trials": trials_table(plan.trials, judged) if 0 < len(plan.trials) <= MOST_TRIALS else Markdown(""),
        "many_trials": len(plan.trials) if len(plan.trials) > MOST_TRIALS else 0,
        "text": _text(plan),
        "fits": bullets([one_line(sentence, 600) for sentence in plan.fits]) if plan.fits else Markdown(""),
        "lead": lead(plan),
        "stayed": stayed(plan, healed),
        "no_gain": no_gain(plan),
        "only_drops": plan.only_drops,
        "drops": bool(plan.dropped),
        "takes_parts_out": plan.hard and not plan.dropped,
    }


def in_a_sentence(plan: Plan) -> str:
    """What a plan does, with a capital."""
    told = plan.describe()
    return told[:1].upper() + told[1:]


def close(plan: Plan) -> str:
    """Distance, runner-up and gap, as far as the planner had them; plain text."""
    parts = []
    if plan.distance is not None:
        parts.append(f"The distance across the removed layers is {tables.number(plan.distance)}.")
    if (second := runner_up(plan)) != "":
        parts.append(second)
    return " ".join(parts)


def runner_up(plan: Plan) -> str:
    """How close the choice was; empty where nothing was held against it. Plain text."""
    if plan.runner_up is None:
        return ""
    gap = ""
    if plan.gap is not None:
        # A distance has a unit; what other planners score may have any.
        far = "farther" if plan.distance is not None else "worse by the measure"
        gap = f", {tables.number(plan.gap, plan.gap_standard_error)} {far}"
    return f"The next best choice was layers {ranges(plan.runner_up)}{gap}."


def measured_by(plan: Plan, config: PrunerConfig, scores: Scores | None) -> str | None:
    """Registry name of the measure that decided; None where nothing was measured."""
    if scores is not None:
        return scores.measure
    return _recipe(plan, config).measure if plan.trials or plan.forwards is not None or config.rounds > 1 else None


def how(plan: Plan, config: PrunerConfig, scores: Scores | None) -> Markdown:
    """Measure, planner and surgery with their options, what was chosen among, and what was protected."""
    recipe, judged = _recipe(plan, config), measured_by(plan, config, scores)
    same = config.method == plan.method
    told: list[str] = []
    if judged is not None:
        options = scores.options if scores is not None else config.options("measure") if same else {}
        told.append(f"Measure {_named(judged, options, measure)}")
    if plan.planner != "named":
        options = config.options("planner") if same and plan.planner == recipe.planner else {}
        told.append(f"Planner {_named(plan.planner, options, planner)}")
        if plan.sparsity is None:
            unit = recipe.unit if same else _unit(plan)
            told.append(f"Chosen among {_UNITS[unit]}{_protected(config) if same else ''}")
    options = config.options("surgery") if same else {}
    told.append(f"Surgery {_named(recipe.surgery, options, fitted, surgery)}")
    taken = plan.forwards if plan.forwards is not None else scores.forwards if scores is not None else None
    if taken is not None:
        told.append(f"Passes of the text through the whole model: {tables.number(taken)}")
    return bullets([Markdown(line + ".") for line in told])


def trials_table(trials: tuple[Trial, ...], judged: str | None) -> Markdown:
    """What a search decided, step by step.

    Args:
        trials: of the plan.
        judged: registry name of the measure that it scored by.
    """
    score = f"{one_line(judged, 40)} ↓" if judged else "score ↓"
    rows = [
        [str(step), in_words(trial.removed), tables.number(trial.score), f"{trial.tried:,}"]
        for step, trial in enumerate(trials, 1)
    ]
    return table(["step", "gone behind it", score, "best of"], rows)


def lead(plan: Plan) -> str:
    """What was done, behind the base's name."""
    depth, told = plan.model.num_layers, []
    if plan.sparsity is not None:
        told.append(f"with {tables.percent(plan.sparsity)} of the weights of its layers' linear maps set to zero")
    if plan.dropped:
        told.append(f"without {len(plan.dropped)} of its {depth} decoder layers")
    parts = [
        f"the {name} of {len(layers)}"
        for part, name in _PARTS
        if (layers := layers_of(plan.removed, part))  # type: ignore[arg-type]
    ]
    if parts:
        of = "of them" if told else f"of its {depth} decoder layers"
        told.append(f"with {' and '.join(parts)} {of} {became(plan)}")
    return " and ".join(told)


def became(plan: Plan) -> str:
    """What was done to attentions and MLPs."""
    if any(op.kind == "linearize" for op in plan.operations):
        return "replaced by linear maps"
    return "taken out" if plan.hard else "silenced"


def stayed(plan: Plan, healed: bool) -> Markdown:
    """What became of the numbers that stayed.

    Args:
        plan: what was done.
        healed: whether they were trained after the cut.
    """
    order = "The layers that stayed keep their order" if plan.dropped else "All layers stay, in their order"
    cut = "the embeddings, the final norm and the head were not cut."
    if plan.only_drops:
        return Markdown(f"{order} and {'were changed by healing only' if healed else 'their weights'}; {cut}")
    scales = [op for op in plan.operations if op.kind == "scale"]
    told = [Markdown(f"{order}; {cut}")]
    if len(scales) > _MOST_FACTORS:
        factors = [float(op.options["factor"]) for op in scales]
        layers = ranges(tuple(sorted({i for op in scales for i in op.layers})))
        low, high = tables.number(min(factors)), tables.number(max(factors))
        told.append(Markdown(f"Weights of layers {layers} were multiplied by factors from {low} to {high}."))
    else:
        told += map(_scaled, scales)
    for op in plan.operations:
        if op.kind == "replace":
            told.append(
                Markdown(f"Tensors of layers {ranges(op.layers)} were replaced by ones that were fitted to the model.")
            )
        elif op.kind == "mask":
            told.append(Markdown(f"Single weights of layers {ranges(op.layers)} were set to zero."))
        elif op.kind == "patch":
            told.append(Markdown(f"Maps of the stream that were fitted were put behind layers {ranges(op.layers)}."))
        elif op.kind == "linearize":
            told.append(
                Markdown(f"Linear maps that were fitted stand in for attention in layers {ranges(op.layers)}.")
            )
        elif op.kind == "remove":
            name = dict(_PARTS)[op.options["part"]]
            told.append(Markdown(f"The {name} of layers {ranges(op.layers)} was taken out, with the norm before it."))
        elif op.kind == "silence":
            name = dict(_PARTS)[op.options["part"]]
            told.append(Markdown(f"What the {name} of layers {ranges(op.layers)} writes was set to zero."))
    told.append(
        Markdown("Healing came after that, and changed the weights that it names below.")
        if healed
        else Markdown("All other weights are the base's.")
    )
    return Markdown(" ".join(told))


def no_gain(plan: Plan) -> str:
    """Why what was set to zero saves nothing; empty where nothing was."""
    kinds = {op.kind for op in plan.operations}
    if "silence" in kinds:
        return (
            "Silenced parts are not taken out: their weights stay in the checkpoint, and are computed with. They make "
            "the model neither smaller nor faster."
        )
    if "mask" in kinds:
        return (
            "Zeros are stored and computed with like all other numbers: without a format and a kernel for sparse "
            "weights, they make the model neither smaller nor faster."
        )
    return ""


def _text(plan: Plan) -> Markdown:
    """Which text a search or a fit looked at."""
    if plan.data is None:
        return Markdown("")
    done = " and ".join(
        word for word, is_so in (("Searched", plan.forwards is not None), ("fitted", bool(plan.fits))) if is_so
    )
    return Markdown(f"{(done or 'Chosen').capitalize()} on {tables.text_use(plan.data)}.")


def _recipe(plan: Plan, config: PrunerConfig) -> Any:
    """The recipe of the plan: the config's, or the method's own where the config speaks of another."""
    return config.recipe() if config.method == plan.method else get_method(plan.method)


def _unit(plan: Plan) -> str:
    parts = {unit.part for unit in plan.removed}
    return next((kind for kind in _UNITS if parts == set(parts_of(kind))), "block")  # type: ignore[arg-type]


def _protected(config: PrunerConfig) -> str:
    recipe = config.recipe()
    told = [f"the first {recipe.protect_first}"] if recipe.protect_first else []
    told += [f"the last {recipe.protect_last}"] if recipe.protect_last else []
    told += [f"layers {ranges(tuple(sorted(config.protect)))}"] if config.protect else []
    return f" but {', '.join(told)}" if told else ""


def _named(name: str, options: dict[str, Any], *registries: Registry) -> Markdown:
    """A registered function with what it does and its options; a name that nobody knows stays a name."""
    entry = next((entry for registry in registries for entry in registry if entry.name == name), None)
    told = code(name, 60) if entry is None else Markdown(f"{code(name)}: {link(entry.title, entry.url)}")
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Markdown(f"{told} ({code(given)})") if given else Markdown(told)


def _scaled(op: Operation) -> Markdown:
    names = " and ".join(code(name) for name in op.options["weights"])
    factor = tables.number(float(op.options["factor"]))
    return Markdown(f"In layers {ranges(op.layers)}, {names} were multiplied by {factor}.")
