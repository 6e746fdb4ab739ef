"""Which points a sweep has: methods and amounts, checked before any work."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_prune.amounts import check_amount
from hf_prune.calibration import model_limit
from hf_prune.comparing.allowed import check_forwards
from hf_prune.config import PAPER, SAME, CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError
from hf_prune.methods import METHODS, get_method
from hf_prune.recipes import papers
from hf_prune.records import ModelRef
from hf_prune.registry import Entry, measure, planner, surgery_named
from hf_prune.scored import check_scored
from hf_prune.slicing.costs import Costs
from hf_prune.slicing.families import check_sliceable
from hf_prune.slicing.plan import check_reachable
from hf_prune.slicing.read_costs import costs_of_config
from hf_prune.slicing.slicer import check_tokens


@dataclass(frozen=True)
class Wanted:
    """One point to come.

    Attributes:
        name: of its folder.
        config: its recipe.
        amount: layers, or share.
        amount_of: what the amount counts.
        impossible: why it is skipped, where it cannot exist.
    """

    name: str
    config: PrunerConfig
    amount: float
    amount_of: Literal["layers", "width", "parameters"]
    impossible: str | None = None


def wanted_points(
    config: PrunerConfig,
    ref: ModelRef,
    model_config: Any,
    *,
    methods: Sequence[str] | None,
    min_drop: int | None,
    max_drop: int | None,
    step: int,
    shares: Sequence[float] | None,
) -> tuple[Wanted, ...]:
    """List the points of a sweep.

    Args:
        config: what all points share; its amount is not looked at.
        ref: the base model.
        model_config: its text config.
        methods: recipe names; None takes `uidl` and `simple`, and those that slice where the family can be sliced.
        min_drop: fewest layers dropped; None takes `step`.
        max_drop: most layers dropped; None takes half of them.
        step: layers between two points.
        shares: sparsities of methods that slice; None takes n / L for each number n of dropped layers.

    Raises:
        ConfigError: an unknown method, more layers than can go, or amounts that mean nothing.
        ArchitectureError: a method was named that slices, and the family cannot be sliced.
    """
    depth = ref.num_layers
    names = _methods(methods, model_config, ref.id)
    counts = _counts(min_drop, max_drop, step, depth, ref.id)
    sizes = [count / depth for count in counts] if shares is None else list(shares)
    check_texts(config, names)
    points: list[Wanted] = []
    for name in names:
        if get_method(name).cuts == "weights":
            raise ConfigError(
                f"method '{name}' zeroes weights and removes no parameters, against which a sweep draws; compare it "
                "with others instead (hf-prune bench-methods)"
            )
        if get_method(name).cuts == "layers":
            for count in counts:
                own = config_of(config, name, drop_layers=count)
                if own.recipe().unit != "block":
                    raise ConfigError(
                        f"method '{name}' silences parts of blocks and removes no parameters, against which a sweep "
                        "draws; compare it with others instead (hf-prune bench-methods)"
                    )
                check_amount(own, depth, ref.id)
                check_scored(own.recipe())
                check_forwards(own, ref)
                points.append(Wanted(f"{name}-{count}", own, float(count), "layers"))
        else:
            points += _sliced(config, name, sizes, ref, model_config)
    twice = sorted({p.name for p in points if sum(q.name == p.name for q in points) > 1})
    if twice:
        raise ConfigError(f"the sweep would have the point {twice[0]} twice; expected shares that differ")
    return tuple(points)


def _sliced(
    config: PrunerConfig, method: str, shares: Sequence[float], ref: ModelRef, model_config: Any
) -> list[Wanted]:
    costs, points = slicing_costs(config, ref, model_config), []
    for share in shares:
        own = config_of(config, method, sparsity=share)
        why = None
        try:
            check_reachable(own, ref, costs)
        except ConfigError as error:
            why = str(error)
        of: Literal["width", "parameters"] = "width" if own.amount_of == "width" else "parameters"
        points.append(Wanted(f"{method}-{share:.4g}", own, share, of, why))
    return points


def slicing_costs(config: PrunerConfig, ref: ModelRef, model_config: Any) -> Costs:
    """What widths cost in a model that can be sliced on the calibration text at hand.

    Args:
        config: says how much text there is.
        ref: the base model.
        model_config: its text config.

    Raises:
        ArchitectureError: the family cannot be sliced.
        CheckpointError: the weights are quantized.
        ConfigError: the text has too few tokens.
    """
    check_sliceable(model_config, ref.id)
    calibration = config.calibration
    tokens = calibration.samples * min(calibration.max_length, model_limit(model_config))
    check_tokens(tokens, model_config.hidden_size, ref.id)
    return costs_of_config(model_config, ref.id)


def config_of(config: PrunerConfig, method: str, **amount: Any) -> PrunerConfig:
    """The recipe of one method: options that its parts know are taken over, others belong to other methods.

    Args:
        config: what all points share.
        method: recipe name.
        amount: `drop_layers` or `sparsity`; nothing where only texts and scores are wanted.

    Raises:
        ConfigError: an option does not go with the method.
    """
    changes: dict[str, Any] = {"method": method, "layers": None, "drop_layers": None, "sparsity": None}
    recipe = get_method(method)
    if method != config.method:
        changes |= {"measure": None, "planner": None, "surgery": None, "unit": None}
        changes["measure_kwargs"] = _known(measure.get, recipe.measure, config.measure_kwargs)
        changes["planner_kwargs"] = _known(planner.get, recipe.planner, config.planner_kwargs)
        changes["surgery_kwargs"] = _known(surgery_named, recipe.surgery, config.surgery_kwargs)
    of = None
    if recipe.cuts != "layers":
        changes |= {"protect_first": None, "protect_last": None, "protect": ()}
    if recipe.cuts == "width":
        of = config.sparsity_of if config.sparsity_of in ("width", "parameters") else None
    return dataclasses.replace(config, **changes | {"sparsity_of": of} | amount)


def _known(look_up: Callable[[str], Entry], name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    if not options or name is None:
        return {}
    known = look_up(name).options()
    return {key: value for key, value in options.items() if key in known}


def _methods(methods: Sequence[str] | None, model_config: Any, name: str) -> list[str]:
    if methods is not None:
        if not methods:
            raise ConfigError(f"no methods to sweep '{name}' with; expected some of: {', '.join(METHODS)}")
        for method in methods:
            get_method(method)
        return list(dict.fromkeys(methods))
    try:
        check_sliceable(model_config, name)
    except (ArchitectureError, CheckpointError):
        return [m.name for m in papers.METHODS if m.cuts == "layers"]
    return [m.name for m in papers.METHODS]


def _counts(min_drop: int | None, max_drop: int | None, step: int, depth: int, name: str) -> range:
    """Numbers of layers that are dropped."""
    if step < 1:
        raise ConfigError(f"step={step}; expected a whole number of layers, at least 1")
    for key, value in (("min_drop", min_drop), ("max_drop", max_drop)):
        if value is not None and not 1 <= value < depth:
            raise ConfigError(f"{key}={value}: '{name}' has {depth} layers; expected 1 to {depth - 1}")
    least = step if min_drop is None else min_drop
    most = max(1, depth // 2) if max_drop is None else max_drop
    if least > most:
        told = f"step={step}" if min_drop is None else f"min_drop={min_drop}"
        raise ConfigError(f"{told} is above max_drop={most}, which leaves no point; take a smaller one")
    return range(least, most + 1, step)


def check_texts(config: PrunerConfig, methods: Sequence[str]) -> None:
    """All methods see the same text: figures on different texts do not compare.

    Raises:
        ConfigError: the config names the dataset of the paper, and the methods have different ones.
    """
    stages: tuple[CalibrationConfig | HealingConfig | EvaluationConfig, ...] = (
        config.calibration, config.healing, config.evaluation,
    )  # fmt: skip
    named = [config.calibration.dataset if stage.dataset == SAME else stage.dataset for stage in stages]
    papers = {method: get_method(method).dataset for method in methods}
    if PAPER in named and len(set(papers.values())) > 1:
        told = ", ".join(f"{method}: {paper[0] if paper else 'none'}" for method, paper in papers.items())
        raise ConfigError(
            f"dataset='{PAPER}' is another text for each method ({told}), and figures on different texts do not "
            "compare; name one dataset for all (--dataset)"
        )
