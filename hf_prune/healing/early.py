"""What of healing can be refused before any model, text or machine is looked at."""

import dataclasses
from dataclasses import dataclass

from hf_prune import extras
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.optimizer import optimizer_names
from hf_prune.healing.prefix import check_frozen, no_sharing
from hf_prune.healing.ranks import VARIANTS, check_of_adapters
from hf_prune.healing.recipes import RECIPES, recipe_for
from hf_prune.healing.registries import kind_of
from hf_prune.healing.registries import loss as losses
from hf_prune.healing.reporting import check_reporting
from hf_prune.healing.settings import check_micro_batch, named
from hf_prune.healing.step import parse_losses
from hf_prune.healing.teaching import rescaled_stream
from hf_prune.memory_budget import parse_memory
from hf_prune.registry import did_you_mean


@dataclass(frozen=True)
class Cut:
    """What a cut leaves for some targets, as far as that is known before it is made.

    Attributes:
        seam: whether whole blocks go, so that there are blocks beside a gap.
        replaced: whether blocks with fitted tensors stand in for what goes.
        patched: whether maps of the stream do, in place of blocks or attentions.
        whole: whether whole blocks alone go, so that every one that stays keeps all of its parts.
        rescaled: whether the stream behind a gap gets another size than the original's; see `Origin.rescaled`.
    """

    seam: bool = True
    replaced: bool = True
    patched: bool = True
    whole: bool = False
    rescaled: bool = False


_NEEDED = {
    "seam": ("seam", "trains the blocks beside those that went, and no whole block goes. Take target 'mlp' or 'last'"),
    "replaced": (
        "replaced",
        "trains the blocks that stand in for others, and nothing stands in. Take surgery 'streamline', or target "
        "'seam', which trains the blocks beside a gap",
    ),
    "patch": (
        "patched",
        "trains maps of the stream, and there are none. Take surgery 'linear_patch', or target 'seam'",
    ),
}
"""Targets that not every cut has, what of `Cut` they need, and what is said without."""


def check_settings(config: HealingConfig, recipe: str, *, original: bool = True, cut: Cut = Cut()) -> HealingConfig:  # noqa: B008
    """Refuse healing that cannot be, or that says something which nothing listens to.

    Args:
        config: what the user set.
        recipe: name of a healing recipe, where the config names none.
        original: whether the original is at hand.
        cut: what is known of the cut.

    Returns:
        The settings, those filled in that need neither model nor machine.

    Raises:
        ConfigError: an unknown recipe, loss, optimizer or logger; settings that do not go together, or not with the
            cut; or the original is needed and not at hand.
        MissingExtraError: a package that is needed is not installed.
    """
    found = named(config, recipe_for(config.method or recipe, original=original, seam=cut.seam))
    _check_kind(config, found)
    needed, why_not = _NEEDED.get(str(found.target), ("", ""))
    if needed and not getattr(cut, needed):
        raise ConfigError(f"healing.target='{found.target}' {why_not}")
    _check_losses(config, found, cut)
    _check_sizes(found)
    _check_prefix(found, cut)
    _check_packages(found)
    if found.store_budget is not None:
        try:
            parse_memory(found.store_budget)
        except ConfigError as error:
            raise ConfigError(f"healing.store_budget={found.store_budget!r}; expected a size such as 8GB") from error
    why = why_original(found)
    if why and not original:
        raise ConfigError(
            f"{why}, and the original is not at hand. Name it (--original), or do without (--heal-loss next_token)"
        )
    return found


def why_original(config: HealingConfig) -> str | None:
    """What the original is needed for while healing; None where nothing asks for it.

    Args:
        config: its loss is known.
    """
    for term in parse_losses(config):
        if term.needs != "nothing":
            return f"healing.loss='{config.loss}' compares with the original"
    if config.stop_on == "kl":
        return "healing.stop_on='kl' measures the distance from the original"
    if config.self_distill:
        return "healing.self_distill lets the original answer"
    return None if config.teacher is None else f"healing.teacher='{config.teacher}' is the original"


def _check_kind(config: HealingConfig, found: HealingConfig) -> None:
    """What belongs to adapters alone, or to some weights."""
    target = str(found.target)
    asked = dataclasses.replace(config, target=target)
    check_of_adapters(asked, ("rank", "alpha", "dropout", *VARIANTS))
    if kind_of(target) == "weights" and found.output == "adapter":
        raise ConfigError(
            f"healing.output='adapter', and target '{target}' trains weights themselves: there is no adapter. "
            "Take output 'merged', or target 'mlp' or 'all'"
        )
    if target == "full" and found.quantize == "nf4":
        raise ConfigError(
            "healing.quantize='nf4' keeps what is frozen in 4 bits, and target 'full' freezes nothing. Take quantize "
            "'none', or another target"
        )
    if config.last_blocks is not None and target != "last":
        raise ConfigError(f"healing.last_blocks={config.last_blocks} is of target 'last'; the target is '{target}'")


def _check_losses(config: HealingConfig, found: HealingConfig, cut: Cut) -> None:
    """Terms that would have nothing to look at, and options that no term has."""
    terms = parse_losses(found)
    for term in terms:
        if term.needs in ("seams", "behind") and not cut.seam:
            raise ConfigError(
                f"healing.loss '{term.name}' compares hidden states behind dropped blocks, and no whole block goes. "
                "Take loss 'kl'"
            )
        if term.needs in ("seams", "behind") and cut.rescaled:
            raise rescaled_stream(term.name)
    known = {name for term in terms for name in losses.get(term.name).options()}
    for name in ("temperature", "top_k"):
        value = getattr(config, name)
        if value != getattr(HealingConfig(), name) and name not in known:
            raise ConfigError(
                f"healing.{name}={value} is of losses that compare predictions, and the loss is '{found.loss}'. Take "
                "loss 'kl', or leave it out"
            )


def _check_sizes(found: HealingConfig) -> None:
    """Sequences and batches."""
    if found.max_length == 1:
        raise ConfigError("healing.max_length=1 leaves no next token to learn; expected at least 2")
    check_micro_batch(found.micro_batch_size, found.batch_size or RECIPES[str(found.method)].batch_size)


def _check_prefix(found: HealingConfig, cut: Cut) -> None:
    """A prefix that is to be kept, and cannot be whichever blocks go."""
    if found.target == "full" or (cut.whole and found.target in ("mlp", "all")):
        check_frozen(found.prefix, 0)
    compares = any(term.needs != "nothing" for term in parse_losses(found))
    if found.prefix == "share" and (not compares or found.teacher == "stored"):
        raise no_sharing()


def _check_packages(config: HealingConfig) -> None:
    """The packages of healing, of the optimizer and of the loggers."""
    for module in ("peft", "accelerate"):
        extras.require(module, "heal", "healing")
    if config.quantize == "nf4":
        extras.require("bitsandbytes", "heal", "healing with quantize='nf4'")
    known = optimizer_names()
    if config.optimizer not in known:
        raise ConfigError(
            f"healing.optimizer={config.optimizer!r}; expected one of: {', '.join(known)}."
            f"{did_you_mean(config.optimizer, known)}"
        )
    check_reporting(config.report_to)
