"""Which attempts a comparison has: methods, each with the amount in its own unit, checked before any work."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_prune.amounts import check_amount
from hf_prune.auto import AUTO
from hf_prune.comparing.allowed import check_forwards
from hf_prune.comparing.record import AmountOf, Contender
from hf_prune.config import PrunerConfig
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError
from hf_prune.healable import check_healing, healing_recipe
from hf_prune.methods import METHODS, get_method
from hf_prune.records import ModelRef
from hf_prune.slicing.plan import check_reachable
from hf_prune.sweeping.amounts import check_texts, config_of, slicing_costs
from hf_prune.units import UnitKind, parts_of

_UNITS: dict[UnitKind, AmountOf] = {"block": "blocks", "attention": "attentions", "mlp": "MLPs", "joint": "parts"}
_SHARES: dict[str, AmountOf] = {"width": "width", "weights": "weights"}


@dataclass(frozen=True)
class Amount:
    """How much goes by each method.

    Attributes:
        drop_layers: a number of layers, or as large a share in another unit.
        sparsity: a share, where no number is given.
        sparsity_of: what the share is of, as in `PrunerConfig`; None takes each method's own unit.
    """

    drop_layers: int | None = None
    sparsity: float | None = None
    sparsity_of: str | None = None

    def or_of(self, config: PrunerConfig) -> "Amount":
        """This one, or where it is none, that of a recipe."""
        if self.drop_layers is not None or self.sparsity is not None:
            return self
        of = self.sparsity_of or config.sparsity_of
        return Amount(config.drop_layers, config.sparsity, of if config.drop_layers is None else None)


@dataclass(frozen=True)
class Entry:
    """One method to come.

    Attributes:
        config: its recipe with its amount, of the first seed.
        amount: a number of units, or a share.
        amount_of: what the amount counts.
        impossible: why this model cannot have it, where it cannot.
    """

    config: PrunerConfig
    amount: float
    amount_of: AmountOf
    impossible: str | None = None

    @property
    def method(self) -> str:
        """Recipe name."""
        return self.config.method

    def name(self, seed: int) -> str:
        """What the attempt with a seed is called."""
        return f"{self.method}-{self.amount:.4g}-s{seed}"

    def seeded(self, seed: int) -> PrunerConfig:
        """The recipe with another seed: see `Attempt.seed`."""
        return with_seed(self.config, seed)

    @property
    def contender(self) -> Contender:
        """What the record says of the method."""
        recipe = self.config.recipe()
        return Contender(
            recipe.name, recipe.title, recipe.paper, recipe.measure, recipe.planner, recipe.surgery
        )  # fmt: skip


def with_seed(config: PrunerConfig, seed: int) -> PrunerConfig:
    """A recipe with another seed for calibration, planning, fitting and healing; it is judged as before."""
    return dataclasses.replace(
        config,
        calibration=dataclasses.replace(config.calibration, seed=seed),
        healing=dataclasses.replace(config.healing, seed=seed),
    )


def entries(
    config: PrunerConfig,
    amount: Amount,
    ref: ModelRef,
    model_config: Any,
    methods: Sequence[str] | None,
    *,
    heal: bool,
) -> tuple[Entry, ...]:
    """List the methods of a comparison.

    A number n of layers is n blocks, n attentions or n MLPs, 2 n parts where both are in one list, and the share n / L
    of the width or of the weights; a share is one of the layers (attentions, MLPs, parts), of the width or of the
    weights, or of the parameters in all of them where `sparsity_of` says so.

    Args:
        config: what all share; its method says whose options it holds.
        amount: how much goes; where it is none, the config's.
        ref: the base model.
        model_config: its text config.
        methods: recipe names; None takes all but "auto", which becomes one of the others.
        heal: whether each is healed.

    Raises:
        ConfigError: an unknown method, one that is named twice, no amount, or one that means nothing.
    """
    names = [name for name in METHODS if name != AUTO] if methods is None else list(methods)
    if not names:
        raise ConfigError(f"no methods to compare on '{ref.id}'; expected some of: {', '.join(METHODS)}")
    for name in names:
        get_method(name)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"method '{twice[0]}' is named twice; name each once")
    if AUTO in names:
        raise ConfigError(
            f"method '{AUTO}' becomes another one by model, machine and amount, and a comparison tells of named ones; "
            "name what it becomes (hf-prune run --method auto --dry-run tells that)"
        )
    amount = amount.or_of(config)
    if heal and config.healing.method is not None:  # "auto" is one recipe for all
        settled = dataclasses.replace(config.healing, method=healing_recipe(config))
        config = dataclasses.replace(config, healing=settled)
    _check_amount_given(config, amount, ref)
    check_texts(config, names)
    found = [_entry(config, amount, name, ref) for name in names]
    return tuple(dataclasses.replace(e, impossible=_why_not(e.config, ref, model_config, heal)) for e in found)


def _check_amount_given(config: PrunerConfig, amount: Amount, ref: ModelRef) -> None:
    layers, share = amount.drop_layers, amount.sparsity
    if layers is not None and share is not None:
        raise ConfigError(f"drop_layers={layers} and sparsity={share} at once; give one amount")
    if layers is not None and amount.sparsity_of is not None:
        raise ConfigError(f"sparsity_of='{amount.sparsity_of}' says what a share is of; drop_layers={layers} is none")
    if config.layers is not None:
        raise ConfigError(
            f"layers={list(config.layers)} says what goes, and leaves methods nothing to choose; give drop_layers or "
            "sparsity"
        )
    if layers is None and share is None:
        raise ConfigError(
            f"how much of '{ref.id}' shall go? Give drop_layers (1 to {ref.num_layers - 1}), or sparsity, a share "
            "such as 0.25"
        )
    if layers is not None and not 1 <= layers < ref.num_layers:
        raise ConfigError(
            f"drop_layers={layers}: '{ref.id}' has {ref.num_layers} layers; expected 1 to {ref.num_layers - 1}"
        )
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"sparsity={share}; expected a share above 0 and below 1")


def _entry(config: PrunerConfig, amount: Amount, name: str, ref: ModelRef) -> Entry:
    own = config_of(config, name)
    recipe, given = own.recipe(), _given(own, amount, ref)
    own = dataclasses.replace(own, **given)
    of: AmountOf = _UNITS[recipe.unit] if recipe.cuts == "layers" else _SHARES[recipe.cuts]
    if own.sparsity_of in ("parameters", "bytes", "flops"):
        of = own.sparsity_of
    asked = given["drop_layers"] if "drop_layers" in given else given["sparsity"]
    return Entry(own, float(asked), of)


def _given(own: PrunerConfig, amount: Amount, ref: ModelRef) -> dict[str, Any]:
    """The amount in a method's own unit."""
    recipe = own.recipe()
    if amount.drop_layers is not None:
        if recipe.cuts != "layers":
            return {"sparsity": amount.drop_layers / ref.num_layers, "sparsity_of": None}
        return {"drop_layers": amount.drop_layers * len(parts_of(recipe.unit)), "sparsity_of": None}
    of = None if amount.sparsity_of in ("layers", "width", "weights") else amount.sparsity_of
    countable = {"layers": ("parameters", "bytes", "flops"), "width": ("parameters",)}.get(recipe.cuts, ())
    if of is not None and of not in countable:
        raise ConfigError(
            f"sparsity_of='{of}': method '{own.method}' cuts {recipe.cuts}, and counts what goes in "
            f"{' or '.join((recipe.cuts, *countable))}; take one of these, or leave the method out"
        )
    return {"sparsity": amount.sparsity, "sparsity_of": of}


def _why_not(config: PrunerConfig, ref: ModelRef, model_config: Any, heal: bool) -> str | None:
    """Why a model cannot have a method, as far as that is known before work."""
    try:
        if config.recipe().cuts == "width":
            check_reachable(config, ref, slicing_costs(config, ref, model_config))
        else:
            check_amount(config, ref.num_layers, ref.id)
            check_forwards(config, ref)
        if heal:
            check_healing(config)
    except (ArchitectureError, CheckpointError, ConfigError) as error:
        return str(error)
    return None
