"""Every setting of healing that the user left open gets its value, once, in writing."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.budget import Throughput, machine_tokens, probe, tokens_per_forward
from hf_prune.healing.recipes import ADAPTER_RATE, LAST_BLOCKS, LOWEST_RATE, RATES, RECIPES, HealingRecipe, recipe_for
from hf_prune.healing.registries import kind_of
from hf_prune.healing.step import parse_losses
from hf_prune.healing.teacher_store import TOP_K

log = logging.getLogger(__name__)

SETTINGS_FILE = "healing_settings.json"
"""In the run folder: what was asked and what it was resolved to, so that a continued run uses the same values."""

RECOMPUTE_FROM = 1_000_000_000
"""Parameters from which activations are computed again in the backward pass."""

_SHORT_RUN = 1000
_PARTS = 10
"""Checkpoints, and at most so many measurements on held-out text, in a run."""

_MEASURING = 0.1
"""Part of the training's time that these measurements may take."""

_FORWARDS = 3
"""What a token costs in training, in forwards of one that is measured."""


def resolve(
    config: HealingConfig,
    *,
    recipe: str,
    base_model: str,
    limit: int,
    parameters: int,
    device: torch.device | str,
    original: bool = False,
    seam: bool = False,
    run_folder: Path | None = None,
    throughput: Throughput | None = None,
) -> HealingConfig:
    """Fill every setting that is None, but for those that mean something as None.

    Rank, alpha, learning rate and length come from the paper's row of the model, the rest from the recipe. Where the
    row has no alpha it is the rank, also a rank that the user set; weights that are trained themselves have neither.
    The row's learning rate belongs to what the recipe trains: for weights elsewhere it is that of the paper that
    trained those (`recipes.RATES`), for adapters in a recipe of weights `recipes.ADAPTER_RATE`. `max_length` is
    clipped to `limit`. The token budget is the recipe's on a GPU; on a CPU it is the power of two that fits about half
    an hour, and never more than the recipe's. In a short run, of fewer than 1000 full steps and fewer than the
    recipe's, the warm-up is a tenth of the steps, at most the recipe's.

    These stay None: where the text comes from, `prefix` and `store_budget` (decided when the text is known),
    `patience`, `last_rank` and `top_k`, and what the target or the loss has no use for.

    Args:
        config: what the user set.
        recipe: name of a recipe; "auto" is settled here, and its outcome is the resolved `method`.
        base_model: Hub id or name of the base.
        limit: longest sequence that the model takes, in tokens.
        parameters: of the pruned model.
        device: where healing will run.
        original: whether the original is at hand, for "auto".
        seam: whether whole blocks went, for "auto".
        run_folder: remembers what was resolved; the same question there gets the same answer (the speed of a machine
            is never measured twice the same).
        throughput: measured speed; None measures it where a budget has to be chosen.

    Raises:
        ConfigError: there is no such recipe or loss, or `micro_batch_size` does not divide `batch_size`.
    """
    recipe = recipe_for(recipe, original=original, seam=seam)
    device = torch.device(device)
    asked = {
        "config": serial.to_dict(config),
        "recipe": recipe,
        "base_model": base_model,
        "limit": limit,
        "parameters": parameters,
        "device": device.type,
    }
    remembered = _recall(run_folder, asked)
    if remembered is not None:
        return remembered
    resolved = _sized(for_model(config, recipe, base_model), base_model, limit, parameters, device, throughput)
    if run_folder is not None:
        text = serial.dumps({"asked": asked, "resolved": serial.to_dict(resolved)})
        serial.write_text(Path(run_folder) / SETTINGS_FILE, text)
    return resolved


def named(config: HealingConfig, recipe: str) -> HealingConfig:
    """Fill what neither model nor machine has a say in: what is trained, against what, and who teaches.

    Args:
        config: what the user set.
        recipe: name in `RECIPES`.

    Raises:
        ConfigError: an unknown loss.
    """
    found = RECIPES[recipe]
    target, loss = config.target or found.target, config.loss or found.loss
    config = dataclasses.replace(config, method=recipe, target=target, loss=loss)
    teacher = config.teacher
    if teacher is None and any(term.needs != "nothing" for term in parse_losses(config)):
        teacher = "resident"
    return dataclasses.replace(
        config,
        teacher=teacher,
        top_k=TOP_K if teacher == "stored" and config.top_k is None else config.top_k,
        last_blocks=LAST_BLOCKS if target == "last" and config.last_blocks is None else config.last_blocks,
    )


def for_model(config: HealingConfig, recipe: str, base_model: str) -> HealingConfig:
    """Fill what the machine has no say in, nor the model's size: `named`, and the adapters' rank, alpha and dropout.

    Args:
        config: what the user set.
        recipe: name in `RECIPES`.
        base_model: Hub id or name of the base.

    Raises:
        ConfigError: an unknown loss.
    """
    config = named(config, recipe)
    if kind_of(str(config.target)) == "weights":
        return config
    row = RECIPES[recipe].of(base_model)
    rank = config.rank or row.rank
    return dataclasses.replace(
        config,
        rank=rank,
        alpha=config.alpha or row.alpha or rank,
        dropout=RECIPES[recipe].dropout if config.dropout is None else config.dropout,
    )


def _recall(run_folder: Path | None, asked: dict[str, Any]) -> HealingConfig | None:
    if run_folder is None or not (Path(run_folder) / SETTINGS_FILE).is_file():
        return None
    stored = serial.read_json(Path(run_folder) / SETTINGS_FILE)
    if not isinstance(stored, dict) or stored.get("asked") != asked:
        return None
    return serial.from_dict(HealingConfig, stored.get("resolved"))


def _sized(
    config: HealingConfig,
    base_model: str,
    limit: int,
    parameters: int,
    device: torch.device,
    throughput: Throughput | None,
) -> HealingConfig:
    recipe = RECIPES[str(config.method)]
    row = recipe.of(base_model)
    max_length = min(config.max_length or row.max_length, limit)
    if config.max_length is not None and max_length < config.max_length:
        log.warning("healing.max_length=%d is above the model's limit; using %d", config.max_length, limit)
    batch_size = config.batch_size or recipe.batch_size
    check_micro_batch(config.micro_batch_size, batch_size)
    steps = config.steps or recipe.steps
    tokens = config.tokens
    if tokens is None:
        tokens = steps * batch_size * max_length
        if device.type != "cuda":
            tokens = machine_tokens(throughput or probe(device, parameters), parameters, at_most=tokens)
    full_steps = max(1, min(steps, tokens // (batch_size * max_length)))
    warmup = config.warmup_steps
    if warmup is None:
        short = full_steps < min(_SHORT_RUN, recipe.steps)
        warmup = min(recipe.warmup_steps, full_steps // 10) if short else recipe.warmup_steps
    return dataclasses.replace(
        config,
        learning_rate=config.learning_rate or _rate(str(config.target), recipe, base_model),
        warmup_steps=warmup,
        schedule=config.schedule or recipe.schedule,
        beta2=recipe.beta2 if config.beta2 is None else config.beta2,
        recompute=parameters >= RECOMPUTE_FROM if config.recompute is None else config.recompute,
        batch_size=batch_size,
        micro_batch_size=_micro_batch(config.micro_batch_size, batch_size, max_length, device),
        steps=steps,
        tokens=tokens,
        max_length=max_length,
        eval_steps=config.eval_steps or _measured_every(config, full_steps, tokens, max_length),
        save_steps=config.save_steps or max(1, full_steps // _PARTS),
    )


def _measured_every(config: HealingConfig, steps: int, tokens: int, max_length: int) -> int:
    """Steps between measurements on held-out text: ten in a run, or fewer where these would take long beside it.

    Divergences from the original run both models, and so cost twice.
    """
    models = 1 if config.teacher in (None, "stored") else 2
    once = models * config.held_out_samples * max_length
    fit = int(_MEASURING * _FORWARDS * tokens / once)
    return max(1, steps // max(1, min(_PARTS, fit)))


def _rate(target: str, recipe: HealingRecipe, base_model: str) -> float:
    """Peak of the learning rate for a target, which need not be the recipe's."""
    both_adapters = kind_of(target) == kind_of(recipe.target) == "adapters"
    if target == recipe.target or both_adapters:
        return recipe.of(base_model).learning_rate
    return ADAPTER_RATE if kind_of(target) == "adapters" else RATES.get(target, LOWEST_RATE)


def check_micro_batch(asked: int | None, batch_size: int) -> None:
    """Refuse forward passes that do not add up to a step.

    Args:
        asked: `HealingConfig.micro_batch_size`.
        batch_size: sequences per step.

    Raises:
        ConfigError: it does not divide the batch.
    """
    if asked is not None and batch_size % asked:
        raise ConfigError(
            f"healing.micro_batch_size={asked} does not divide batch_size={batch_size}; expected one of: "
            f"{', '.join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)}"
        )


def _micro_batch(asked: int | None, batch_size: int, max_length: int, device: torch.device) -> int:
    if asked is not None:
        return asked
    fits = max(1, tokens_per_forward(device) // max_length)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fits)
