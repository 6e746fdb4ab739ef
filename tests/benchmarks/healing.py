"""What healing costs: its loop beside a plain one of PEFT and Trainer, and what a prefix that is computed once spares.

A Llama of random weights, with a small and a large vocabulary: the head costs what no prefix spares. LoRA on all
blocks, in turns with a loop that a user of PEFT and Trainer would write, of the same settings. Then the last third of
the blocks alone, their weights or LoRA on them, over three passes: with the frozen blocks computed each time, or
stored in the first pass, which counts. Then KL to the original in memory, with the same blocks computed by both
models, or once for both. Each run is a process of its own, whose peak memory counts from when all is imported.

The ideal that a ratio is held against are floating point operations, the head's among them: of E passes, one computes
the frozen blocks and E - 1 do not.
"""

import copy
import dataclasses
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.healing.adapter import Adapters
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.cost import Cost as OperationCost
from hf_prune.healing.cost import block_costs, training_cost
from hf_prune.healing.loop import Judged
from hf_prune.healing.origin import Origin
from hf_prune.healing.prefix_store import open_prefix
from hf_prune.healing.registries import trainable
from hf_prune.healing.rows import Row, Rows
from hf_prune.healing.step import Step, parse_losses
from hf_prune.healing.teacher import Resident
from hf_prune.healing.trained import Trainable
from hf_prune.healing.trainer import train
from hf_prune.surgery import prune_layers
from hf_prune.units import Unit

from .costs import Cost, run_child

FULL = {"layers": 12, "width": 512, "rows": 16, "length": 96, "micro": 4}
SMALL = {"layers": 6, "width": 64, "rows": 8, "length": 16, "micro": 2}
VOCABULARIES = {4096: ("weights", "LoRA"), 32768: ("LoRA",)}  # and what of the last third is trained
PASSES = 3
RANK = 16
DROPPED = 2  # blocks that the original has more

Shape = dict[str, int]


def main(small: bool = False) -> dict[str, Any]:
    """Train in every way, each in a process of its own.

    Args:
        small: a narrow model and a few tokens, which proves that it runs.
    """
    shape, runs = (SMALL, 1) if small else (FULL, 2)
    vocabularies = {4096: ("LoRA",)} if small else VOCABULARIES
    found: dict[str, Any] = {
        "model": {**shape, "vocabularies": list(vocabularies), "frozen blocks": _frozen(shape)},
        "dtype": "float32",
        "tokens a pass": shape["rows"] * shape["length"],
        "passes": PASSES,
        "bytes a stored token": 4 * shape["width"],
        "LoRA on all blocks": {},
        "last third": {},
    }
    for vocabulary, kinds in vocabularies.items():
        given = {**shape, "vocabulary": vocabulary}
        found["LoRA on all blocks"][str(vocabulary)] = _beside_plain(given, runs)
        found["last third"][str(vocabulary)] = {what: _two_ways(given, what, "next_token", "store") for what in kinds}
    given = {**shape, "vocabulary": min(vocabularies)}
    found["last third, KL to the original in memory"] = {"LoRA": _two_ways(given, "LoRA", "kl", "share")}
    return found


def _beside_plain(shape: Shape, runs: int) -> dict[str, Any]:
    """Our loop in turns with the plain one: tokens a second, the ratio pair by pair."""
    pairs = []
    for _ in range(runs):
        # To save, PEFT would ask the Hub about the base.
        plain = run_child("healing:plain_loop", {"shape": shape}, environment={"HF_HUB_OFFLINE": "1"})
        ours = run_child("healing:our_loop", {"shape": shape, "what": "all", "loss": "next_token", "way": "recompute"})
        pairs.append((ours, plain))
    ratios = [plain.result["seconds"] / ours.result["seconds"] for ours, plain in pairs]
    return {
        "tokens/s": _rate(shape, 1, [ours for ours, _ in pairs]),
        "tokens/s of the plain loop": _rate(shape, 1, [plain for _, plain in pairs]),
        "ratio (median of pairs)": round(statistics.median(ratios), 3),
        "ratio (min, max)": [round(min(ratios), 3), round(max(ratios), 3)],
        "memory above imports": max(ours.above_imports for ours, _ in pairs),
        "memory above imports of the plain loop": max(plain.above_imports for _, plain in pairs),
    }


def _two_ways(shape: Shape, what: str, loss: str, way: str) -> dict[str, Any]:
    """The frozen blocks computed in each pass, and once."""
    costs = {
        name: run_child("healing:our_loop", {"shape": shape, "what": what, "loss": loss, "way": name})
        for name in ("recompute", way)
    }
    again, once = (costs[name].result for name in ("recompute", way))
    extra = once["seconds a pass"][0] - again["seconds a pass"][0]
    spared = again["seconds a pass"][1] - once["seconds a pass"][1]
    return {
        "tokens/s": {name: _rate(shape, PASSES, [cost]) for name, cost in costs.items()},
        "ratio": round(again["seconds"] / once["seconds"], 3),
        "ideal by operations": round(once["operations, all of it computed"] / once["operations"], 3),
        "share of the head in all operations": round(again["operations of the head"] / again["operations"], 3),
        "passes to break even": round(1 + max(0.0, extra) / spared, 2) if spared > 0 else None,
        "bytes on disk": once["bytes on disk"],
        "memory above imports": {name: cost.above_imports for name, cost in costs.items()},
    }


def _rate(shape: Shape, passes: int, costs: list[Cost]) -> float:
    tokens = passes * shape["rows"] * shape["length"]
    return round(tokens / statistics.median(cost.result["seconds"] for cost in costs), 1)


def _frozen(shape: Shape) -> int:
    return shape["layers"] - shape["layers"] // 3


def our_loop(shape: Shape, what: str, loss: str, way: str) -> dict[str, Any]:
    """Train as healing does; run in a child process.

    Args:
        shape: of model and text.
        what: "all" for LoRA on all blocks, "LoRA" or "weights" of the last third.
        loss: as in `HealingConfig`.
        way: what is done about the frozen blocks.
    """
    passes = 1 if what == "all" else PASSES
    config = _settings(shape, passes, loss)
    original, decoder, kept = _models(shape, loss == "kl")
    chosen, rows = _chosen(decoder, what, config), _text(shape)
    frozen = chosen.lowest
    with quiet_peft(), tempfile.TemporaryDirectory() as folder:
        trainee = chosen.begin(decoder.model, config)
        teacher = None
        if original is not None:
            shared = frozen if way == "share" else 0
            teacher = Resident(
                original, kept, (), predictions=True, shared=shared, device=torch.device("cpu"), owned=True
            )
        opened = open_prefix(
            decoder, rows, way, frozen=frozen, shared=frozen if way == "share" else 0, passes=passes, room=10**12,
            folder=Path(folder) / "prefix", fingerprint="random", made_by=("float32",), autocast=False,
        )  # fmt: skip
        timed = _Timed(
            decoder, parse_losses(config), teacher=teacher, frozen=frozen, prefix=opened.prefix, tuples=opened.tuples
        )
        spared_from = {"recompute": math.inf, "store": 1, "share": 0}[way]
        beside = None if teacher is None else teacher.cost(shape["length"])
        cost = training_cost(
            decoder, trainee, chosen, length=shape["length"], prefix=frozen, spared_from=spared_from, beside=beside
        )
        done = train(
            trainee, chosen, timed, rows, config, steps=config.steps or 1, folder=Path(folder) / "checkpoints",
            device=torch.device("cpu"), autocast=False, judge=_nothing, cost=cost, progress=False,
        )  # fmt: skip
        on_disk = sum(path.stat().st_size for path in (Path(folder) / "prefix").glob("*.bin"))
    size = shape["rows"], shape["length"]
    whole = dataclasses.replace(cost, spared_from=math.inf)
    calls = len(timed.started) // passes
    return {
        "seconds": done.seconds,
        "seconds a pass": [
            timed.started[(number + 1) * calls] - timed.started[number * calls] for number in range(passes - 1)
        ],
        "operations": sum(cost.of(*size, number) for number in range(passes)),
        "operations, all of it computed": passes * whole.of(*size),
        "operations of the head": passes * _head(decoder, trained=what == "weights", length=size[1]).of(*size),
        "bytes on disk": on_disk,
    }


def plain_loop(shape: Shape) -> dict[str, Any]:
    """LoRA with PEFT and Trainer as they come; run in a child process."""
    config = _settings(shape, 1, "next_token")
    _, decoder, _ = _models(shape, False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    clock = _Clock()
    with quiet_peft(), tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=config.steps, per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
            learning_rate=config.learning_rate, lr_scheduler_type=config.schedule, warmup_steps=config.warmup_steps,
            adam_beta2=config.beta2, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_steps=config.steps,
            use_cpu=True, remove_unused_columns=False, disable_tqdm=True, report_to="none", seed=0,
        )  # fmt: skip
        model = get_peft_model(decoder.model, lora)
        rows = [{"input_ids": row.input_ids, "labels": row.input_ids} for row in _text(shape).rows]
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=_stacked, callbacks=[clock])
        trainer.train()
    return {"seconds": clock.seconds}


class _Timed(Step):
    """Notes when each micro-batch begins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started: list[float] = []

    def __call__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        self.started.append(time.perf_counter())
        return super().__call__(model, inputs)


class _Clock(TrainerCallback):
    """Seconds from the first step to the last checkpoint, as healing counts them."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._began


def _settings(shape: Shape, passes: int, loss: str) -> HealingConfig:
    batch = 2 * shape["micro"]
    steps = passes * shape["rows"] // batch
    return HealingConfig(
        target="last", last_blocks=shape["layers"] - _frozen(shape), rank=RANK, alpha=RANK, dropout=0.05, loss=loss,
        learning_rate=1e-4, warmup_steps=1, schedule="cosine", beta2=0.999, batch_size=batch,
        micro_batch_size=shape["micro"], steps=steps, tokens=10**9, max_length=shape["length"], save_steps=steps,
        eval_steps=steps, recompute=False, quantize="none",
    )  # fmt: skip


def _models(shape: Shape, with_original: bool) -> tuple[Decoder | None, Decoder, list[int]]:
    """The original where it is wanted, the pruned model, and which of the original's blocks that has."""
    torch.manual_seed(0)
    layers, width, kept = shape["layers"], shape["width"], list(range(shape["layers"]))
    dropped = list(range(_frozen(shape), _frozen(shape) + DROPPED)) if with_original else []
    config = LlamaConfig(
        vocab_size=shape["vocabulary"], hidden_size=width, intermediate_size=width * 11 // 4,
        num_hidden_layers=layers + len(dropped), num_attention_heads=8, num_key_value_heads=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    if not dropped:
        return None, decoder_of(model, "random"), kept
    original = decoder_of(copy.deepcopy(model), "random")
    kept = [layer for layer in range(layers + DROPPED) if layer not in dropped]
    return original, decoder_of(prune_layers(model, dropped), "random"), kept


def _chosen(decoder: Decoder, what: str, config: HealingConfig) -> Trainable:
    if what == "weights":
        return trainable.get("last").function(
            decoder, config, Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
        )
    # Parts that are to stay silent carry no adapters.
    frozen = range(decoder.num_layers - (config.last_blocks or 0)) if what == "LoRA" else range(0)
    return Adapters.of(decoder, "all", [Unit(layer, part) for layer in frozen for part in ("attention", "mlp")])


def _text(shape: Shape) -> Rows:
    ids = torch.randint(
        shape["vocabulary"], (shape["rows"], shape["length"]), generator=torch.Generator().manual_seed(0)
    )
    return Rows([Row(row, torch.cat((row[1:], torch.tensor([-100])))) for row in ids])


def _stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    made = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return made | {"attention_mask": torch.ones_like(made["input_ids"])}


def _head(decoder: Decoder, *, trained: bool, length: int) -> OperationCost:
    """Of the head: forward, the gradient of what enters it, and that of its weights where they are trained."""
    return block_costs(decoder, length)[1] * (3 if trained else 2)


def _nothing(_model: nn.Module) -> Judged:
    """In place of the held-out text: the plain loop looks at none."""
    return {"loss": 1.0, "kl": None}
