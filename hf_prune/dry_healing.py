"""What healing would do, told without a forward pass."""

from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.healable import fitted_to, healing_recipe
from hf_prune.healing.budget import Throughput, eta, in_words, probe
from hf_prune.healing.choice import choose
from hf_prune.healing.origin import Origin
from hf_prune.healing.prefix import frozen_depth
from hf_prune.healing.registries import kind_of, trainable
from hf_prune.healing.settings import resolve
from hf_prune.healing.step import compared_positions, parse_losses
from hf_prune.healing.teacher_store import Kept
from hf_prune.healing.teaching import asked
from hf_prune.origins import origin_of
from hf_prune.placement import device_of
from hf_prune.records import Plan
from hf_prune.surgery import apply_plan


@dataclass(frozen=True)
class Preview:
    """What healing would do.

    Attributes:
        settings: resolved.
        text: of the row "heal".
    """

    settings: HealingConfig
    text: str


def preview_healing(
    config: PrunerConfig, blank: Any, plan: Plan | None, *, base_model: str, limit: int, device_map: Any
) -> Preview:
    """Resolve the settings, check the target, and say what would be trained, against what, for how long.

    Sizes on disk are those of a text that is as long as the token budget; a shorter one is read several times.

    Args:
        config: the recipe, without "auto" in it.
        blank: the uncut model without weights; cut where the plan is known.
        plan: what would be dropped; None where that is not known yet, or not dropping alone. Then the time is that of
            an uncut model.
        base_model: Hub id or name of the base.
        limit: longest sequence that the model takes, in tokens.
        device_map: from `placement.load_kwargs`.

    Raises:
        PruneError: whatever a real run would refuse before work.
    """
    original_size = _count(blank)
    decoder = decoder_of(blank, base_model)
    origin = Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
    if plan is not None:
        decoder, origin = apply_plan(decoder, plan), origin_of(plan, lambda: blank)
    parameters, device = _count(blank), device_of(device_map) or torch.device("cpu")
    speed = probe(device, parameters)
    settings = resolve(
        config.healing,
        recipe=healing_recipe(config, plan),
        base_model=base_model,
        limit=limit,
        parameters=parameters,
        device=device,
        throughput=speed,
    )
    settings = fitted_to(config, decoder, settings, None if plan is None else origin)
    assert settings.tokens and settings.batch_size and settings.max_length and settings.steps
    tokens = min(settings.tokens, settings.steps * settings.batch_size * settings.max_length)
    full_steps = max(1, tokens // (settings.batch_size * settings.max_length))
    beside = original_size / 3 if settings.teacher else 0  # a forward alone, of forward and backward
    duration = in_words(eta(tokens, round(parameters + beside), speed))
    told = [
        f"recipe '{settings.method}': {_what(settings)}, loss {settings.loss}",
        *([] if settings.teacher is None else [f"the original {_TEACHER[settings.teacher]}"]),
        f"{tokens:,} tokens in about {full_steps:,} steps, about {duration} on {device.type}",
    ]
    if plan is not None:
        told += _reused(decoder, settings, origin, tokens, speed)
    return Preview(settings, "; ".join(told))


_TEACHER = {"resident": "in memory beside", "nf4": "in 4 bits beside", "stored": "run once, what it says on disk"}


def _what(settings: HealingConfig) -> str:
    target = str(settings.target)
    if target not in trainable:
        return f"LoRA of rank {settings.rank} on {target}"
    title = trainable.get(target).title
    if kind_of(target) == "adapters":
        return f"{title} (target {target}), rank {settings.rank}"
    return f"{title[0].lower()}{title[1:]} (target {target})"


def _reused(decoder: Decoder, settings: HealingConfig, origin: Origin, tokens: int, speed: Throughput) -> list[str]:
    """What is computed once, and what is stored, as far as that is known without the text."""
    chosen, terms = choose(decoder, settings, origin), parse_losses(settings)
    positions = compared_positions(terms, origin)
    width, dtype = int(decoder.config.hidden_size), getattr(torch, speed.dtype)
    told = []
    wanted = asked(settings, terms, positions)
    if wanted is not None and wanted.mode == "stored" and wanted.trained:
        top_k = min(settings.top_k or 0, int(decoder.config.vocab_size)) if wanted.predictions else 0
        kept = Kept(top_k, settings.temperature, positions, width, dtype)
        told.append(f"stored of the original: {_size(_token_bytes(kept.fields), tokens)}")
    frozen = frozen_depth(chosen.lowest, positions)
    if frozen == 0:
        return [*told, "no frozen prefix: the first block is trained or compared"]
    of = f"the first {frozen} of {decoder.num_layers} blocks are frozen"
    if settings.prefix == "recompute":
        return [*told, f"{of}, and computed each time"]
    stored = _size(width * dtype.itemsize, tokens)
    if settings.prefix == "store":
        return [*told, f"{of}, their states stored: {stored}"]
    shared = min(frozen, origin.same_below) if settings.teacher in ("resident", "nf4") else 0
    once = f", {shared} of them computed once for both models" if shared else ""
    return [*told, f"{of}{once}" + ("" if settings.prefix == "share" else f"; stored where that pays: {stored}")]


def _token_bytes(fields: Any) -> int:
    return sum(width * dtype.itemsize for width, dtype in fields.values())


def _size(token_bytes: int, tokens: int) -> str:
    return f"{token_bytes:,} bytes a token, at most {token_bytes * tokens / 1e9:.2f} GB"


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
