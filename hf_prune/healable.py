"""Whether what a recipe or a plan does can be healed as it is asked for, before any work."""

from hf_prune.amounts import blocks_left
from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import CheckpointError
from hf_prune.healing.choice import check_target, check_trained, fitted
from hf_prune.healing.early import Cut, check_settings
from hf_prune.healing.origin import Origin
from hf_prune.healing.recipes import recipe_for
from hf_prune.healing.registries import trainable
from hf_prune.origins import RESCALING, origin_of
from hf_prune.plan import check_healable
from hf_prune.records import ModelRef, Plan

_STANDING_IN = ("streamline", "merge", "replaceme", "replaceme_cosine", "nbl")
_PATCHING = ("linear_patch", "emulate", "nbl")


def check_healing(config: PrunerConfig, plan: Plan | None = None, *, original: bool = True) -> HealingConfig:
    """Refuse healing that cannot be.

    Args:
        config: the recipe.
        plan: what was decided; None while nothing is.
        original: whether the original is at hand.

    Returns:
        The settings, those filled in that need neither model nor machine.

    Raises:
        ConfigError: healing would undo the cut, or its settings cannot be; see `healing.early.check_settings`.
        MissingExtraError: a package that is needed is not installed.
    """
    check_healable(config, plan)
    return check_settings(config.healing, config.recipe().healing, original=original, cut=cut_of(config, plan))


def check_unquantized(model: ModelRef, quantized: bool) -> None:
    """Refuse to heal a model of quantized weights.

    Args:
        model: the base.
        quantized: whether its weights are.

    Raises:
        CheckpointError: they are.
    """
    if quantized:
        raise CheckpointError(
            f"'{model.id}' holds quantized weights, into which no healing can be merged; prune and heal the "
            "unquantized model it was made from, then quantize the result (pruning alone works here)"
        )


def healing_recipe(config: PrunerConfig, plan: Plan | None = None, *, original: bool = True) -> str:
    """The healing recipe of a recipe: its own, or that of its method; "auto" is settled.

    Args:
        config: the recipe.
        plan: what was decided; None while nothing is.
        original: whether the original is at hand.

    Raises:
        ConfigError: there is no such healing recipe.
    """
    name = config.healing.method or config.recipe().healing
    return recipe_for(name, original=original, seam=cut_of(config, plan).seam)


def cut_of(config: PrunerConfig, plan: Plan | None = None) -> Cut:
    """What the cut leaves for targets of healing, as far as that is known.

    Args:
        config: the recipe.
        plan: what was decided; None while nothing is.
    """
    if plan is not None:
        origin = origin_of(plan)
        maps = any(op.kind in ("patch", "linearize") for op in plan.operations)
        return Cut(bool(origin.seams), bool(origin.replaced), maps, rescaled=origin.rescaled)
    recipe = config.recipe()
    blocks = recipe.cuts == "layers" and recipe.unit == "block"
    rescaled = recipe.surgery == RESCALING
    return Cut(blocks, recipe.surgery in _STANDING_IN, recipe.surgery in _PATCHING, blocks, rescaled)


def fitted_to(config: PrunerConfig, decoder: Decoder, settings: HealingConfig, origin: Origin | None) -> HealingConfig:
    """The settings as this model can have them, or a refusal; see `choice.fitted`.

    Args:
        config: the recipe.
        decoder: the model, also without weights; cut where the cut is known.
        settings: resolved, as far as target, loss, rank, alpha and last_blocks go.
        origin: of the cut model; None where the cut is not known yet. Then what weights a target trains is left open.

    Raises:
        ConfigError: see `choice.check_target` and `choice.check_trained`.
        ArchitectureError: see `choice.choose`.
    """
    if origin is not None:
        settings = fitted(decoder, settings, config.healing, origin)
        check_trained(decoder, settings, origin)
        return settings
    blocks = Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
    left = blocks_left(config, decoder.num_layers)
    grows = config.recipe().cuts == "width" or config.ships_code
    if not grows or str(settings.target) in trainable:
        settings = fitted(decoder, settings, config.healing, blocks, left=left)
    check_target(decoder, settings, blocks, grows=grows, left=left)
    return settings
