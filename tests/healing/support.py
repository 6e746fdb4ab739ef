"""What the healing tests share: tiny pruned checkpoints, text, settings that train in a second."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.config import HealingConfig
from hf_prune.healing.adapter import Adapters
from hf_prune.healing.budget import Throughput
from hf_prune.records import TextUse
from hf_prune.samples import Samples, digest
from tests.tiny import VOCAB, tiny_model

SPEED = Throughput(flops=1e12, dtype="bfloat16")

SETTINGS = HealingConfig(
    rank=4, alpha=4, dropout=0.05, target="mlp", loss="next_token", learning_rate=0.01, warmup_steps=2,
    schedule="cosine", beta2=0.999, batch_size=4, micro_batch_size=2, steps=12, tokens=10_000, max_length=16,
    eval_steps=2, save_steps=2, recompute=False, quantize="none",
)  # fmt: skip


def settings(**changes: Any) -> HealingConfig:
    return dataclasses.replace(SETTINGS, **changes)


def attached(model: PreTrainedModel, config: HealingConfig, state: Any, base: str) -> Any:
    """A plain model with trained adapters on it."""
    adapters = Adapters.of(decoder_of(model), config.target)  # type: ignore[arg-type]
    return adapters.attach(model, config, state, base)


def text(count: int, seed: int, length: int = 12) -> Samples:
    """Sequences that can be learned: each counts upwards from a random start."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randperm(VOCAB - 3, generator=generator)[:count] + 3
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator)
    sequences = tuple(
        (start - 3 + torch.arange(int(n))) % (VOCAB - 3) + 3 for start, n in zip(starts, lengths, strict=True)
    )
    use = TextUse(
        dataset="counting", config=None, split=None, revision=None, samples=count,
        tokens=sum(len(s) for s in sequences), max_length=length, seed=seed, sha256=digest(sequences),
    )  # fmt: skip
    return Samples(sequences, use)


def split_text(train: int = 20, held_out: int = 6) -> tuple[Samples, Samples]:
    """Disjoint training and held-out text."""
    whole = text(train + held_out, seed=0)
    parts = whole.sequences[:train], whole.sequences[train:]
    first, second = (
        Samples(
            part, dataclasses.replace(whole.use, samples=len(part), tokens=sum(map(len, part)), sha256=digest(part))
        )
        for part in parts
    )
    return first, second


def pruned_checkpoint(folder: Path, model_type: str = "llama", depth: int = 2, **overrides: Any) -> Path:
    """A tiny bfloat16 checkpoint."""
    model = tiny_model(model_type, depth, **overrides).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    return folder


def with_shortcuts(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Give each block linear maps of the residual, as sliced models have them; the model runs through all of them."""

    def before(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, *rest = args
        for name in names:
            hidden_states = block.get_submodule(name)(hidden_states)
        return (hidden_states, *rest)

    for block in decoder_of(model).blocks:
        for name in names:
            setattr(block, name, nn.Linear(32, 32, bias=False))
        block.register_forward_pre_hook(before)
    return model


class ShortcutLlamaConfig(LlamaConfig):
    """Of a Llama that has what slicing adds."""

    model_type = "shortcut_llama"
    auto_map = {
        "AutoModelForCausalLM": "code.that_is_not_asked_for"
    }  # a type of one's own is prunable with code alone


class ShortcutLlama(LlamaForCausalLM):
    """A Llama that has what slicing adds: shortcuts in the blocks, a map behind the last norm."""

    config_class = ShortcutLlamaConfig

    def __init__(self, config: ShortcutLlamaConfig) -> None:
        super().__init__(config)
        with_shortcuts(self, "attn_shortcut", "mlp_shortcut")
        self.model.norm.map = nn.Linear(32, 32, bias=False)
        self.model.norm.register_forward_hook(lambda norm, args, output: norm.map(output))


AutoConfig.register("shortcut_llama", ShortcutLlamaConfig)
AutoModelForCausalLM.register(ShortcutLlamaConfig, ShortcutLlama)
