"""What a healing recipe stands for: every setting that the user left open gets its value, once, in writing."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.budget import Throughput, machine_tokens, probe, tokens_per_forward
from hf_prune.registry import did_you_mean

log = logging.getLogger(__name__)

SETTINGS_FILE = "healing_settings.json"
"""In the run folder: what was asked and what it was resolved to, so that a continued run uses the same values."""

_SHORT_RUN = 1000


@dataclass(frozen=True)
class ModelRecipe:
    """What a paper used for one model.

    Attributes:
        rank: LoRA rank.
        alpha: LoRA alpha, whatever the rank; None takes the rank.
        learning_rate: peak.
        max_length: tokens per sequence.
    """

    rank: int = 64
    alpha: int | None = None
    learning_rate: float = 3e-4
    max_length: int = 2048


@dataclass(frozen=True)
class HealingRecipe:
    """One named way of healing.

    Attributes:
        paper: URL.
        steps: optimizer steps.
        batch_size: sequences per step.
        warmup_steps: linear warm-up of a full run.
        target: what carries adapters, as in `HealingConfig`.
        dropout: of the adapters.
        schedule: how the learning rate falls after the warm-up.
        beta2: AdamW's second beta (the first is 0.9 in every recipe, as in torch).
        models: lower-case Hub id to what the paper used for it.
        other: for every other model.
        loss: what is brought down, as in `HealingConfig`.
    """

    paper: str
    steps: int
    batch_size: int
    warmup_steps: int
    target: str
    dropout: float
    schedule: Literal["cosine", "linear"]
    beta2: float
    models: dict[str, ModelRecipe]
    other: ModelRecipe = ModelRecipe()
    loss: str = "next_token"

    def of(self, base_model: str) -> ModelRecipe:
        """The row of one model, upper or lower case alike."""
        return self.models.get(base_model.lower(), self.other)


RECIPES: dict[str, HealingRecipe] = {
    "uidl": HealingRecipe(
        paper="https://arxiv.org/abs/2403.17887",
        steps=5000,
        batch_size=16,
        warmup_steps=100,
        target="mlp",
        dropout=0.05,
        schedule="cosine",
        beta2=0.999,
        models={
            "meta-llama/llama-2-7b-hf": ModelRecipe(rank=2),
            "meta-llama/llama-2-13b-hf": ModelRecipe(max_length=4096),
            "meta-llama/llama-2-70b-hf": ModelRecipe(rank=8, learning_rate=3e-5, max_length=4096),
            "qwen/qwen-7b": ModelRecipe(),
            "qwen/qwen-14b": ModelRecipe(max_length=4096),
            "mistralai/mistral-7b-v0.1": ModelRecipe(rank=4, learning_rate=3e-6),
            "microsoft/phi-2": ModelRecipe(learning_rate=2e-4),
        },
    ),
    # One pass over 8000 sequences, in batches of 3 of which 4 make a step: 8000 // 12 steps of 12, for every model.
    # The paper's code also stops early on a validation loss; here the length of a run is fixed before it starts, and
    # the held-out text stays for proof alone.
    "slicegpt": HealingRecipe(
        paper="https://arxiv.org/abs/2401.15024",
        steps=666,
        batch_size=12,
        warmup_steps=400,
        target="all",
        dropout=0.05,
        schedule="linear",
        beta2=0.95,
        models={},
        other=ModelRecipe(rank=32, alpha=10, learning_rate=2e-4, max_length=1024),
    ),
}


def resolve(
    config: HealingConfig,
    *,
    recipe: str,
    base_model: str,
    limit: int,
    parameters: int,
    device: torch.device | str,
    run_folder: Path | None = None,
    throughput: Throughput | None = None,
) -> HealingConfig:
    """Fill every setting that is None.

    Rank, alpha, learning rate and length come from the paper's row of the model, the rest from the recipe. Where the
    row has no alpha it is the rank, also a rank that the user set. `max_length` is clipped to `limit`. The token
    budget is the recipe's on a GPU; on a CPU it is the power of two that fits about half an hour, and never more than
    the recipe's. In a short run, of fewer than 1000 full steps and fewer than the recipe's, the warm-up is a tenth of
    the steps, at most the recipe's.

    Args:
        config: what the user set.
        recipe: name in `RECIPES`.
        base_model: Hub id or name of the base.
        limit: longest sequence that the model takes, in tokens.
        parameters: of the pruned model.
        device: where healing will run.
        run_folder: remembers what was resolved; the same question there gets the same answer (the speed of a machine
            is never measured twice the same).
        throughput: measured speed; None measures it where a budget has to be chosen.

    Raises:
        ConfigError: there is no such recipe, or `micro_batch_size` does not divide `batch_size`.
    """
    if recipe not in RECIPES:
        raise ConfigError(
            f"unknown healing recipe '{recipe}'; expected one of: {', '.join(RECIPES)}."
            f"{did_you_mean(recipe, list(RECIPES))}"
        )
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
    resolved = _fill(config, RECIPES[recipe], base_model, limit, parameters, device, throughput)
    if run_folder is not None:
        text = serial.dumps({"asked": asked, "resolved": serial.to_dict(resolved)})
        serial.write_text(Path(run_folder) / SETTINGS_FILE, text)
    return resolved


def _recall(run_folder: Path | None, asked: dict[str, Any]) -> HealingConfig | None:
    if run_folder is None or not (Path(run_folder) / SETTINGS_FILE).is_file():
        return None
    stored = serial.read_json(Path(run_folder) / SETTINGS_FILE)
    if not isinstance(stored, dict) or stored.get("asked") != asked:
        return None
    return serial.from_dict(HealingConfig, stored.get("resolved"))


def _fill(
    config: HealingConfig,
    recipe: HealingRecipe,
    base_model: str,
    limit: int,
    parameters: int,
    device: torch.device,
    throughput: Throughput | None,
) -> HealingConfig:
    row = recipe.of(base_model)
    rank = config.rank or row.rank
    max_length = min(config.max_length or row.max_length, limit)
    if config.max_length is not None and max_length < config.max_length:
        log.warning("healing.max_length=%d is above the model's limit; using %d", config.max_length, limit)
    batch_size = config.batch_size or recipe.batch_size
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
        rank=rank,
        alpha=config.alpha or row.alpha or rank,
        dropout=recipe.dropout if config.dropout is None else config.dropout,
        target=config.target or recipe.target,
        loss=config.loss or recipe.loss,
        learning_rate=config.learning_rate or row.learning_rate,
        warmup_steps=warmup,
        schedule=config.schedule or recipe.schedule,
        beta2=recipe.beta2 if config.beta2 is None else config.beta2,
        batch_size=batch_size,
        micro_batch_size=_micro_batch(config.micro_batch_size, batch_size, max_length, device),
        steps=steps,
        tokens=tokens,
        max_length=max_length,
        save_steps=config.save_steps or max(1, full_steps // 10),
    )


def _micro_batch(asked: int | None, batch_size: int, max_length: int, device: torch.device) -> int:
    if asked is not None:
        if batch_size % asked:
            raise ConfigError(
                f"healing.micro_batch_size={asked} does not divide batch_size={batch_size}; expected one of: "
                f"{', '.join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)}"
            )
        return asked
    fits = max(1, tokens_per_forward(device) // max_length)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fits)
