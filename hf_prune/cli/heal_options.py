"""The options of healing: one for each setting of `HealingConfig` that no other option sets."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer


def _heal(help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help_text, rich_help_panel="Healing", metavar=metavar)


@dataclass(frozen=True)
class HealOptions:
    """How the damage is healed."""

    heal_method: Annotated[
        str | None, _heal("Recipe; see `hf-prune methods --healing`. Default: that of the pruning method.")
    ] = None
    heal_target: Annotated[
        str | None,
        _heal(
            "What is trained: mlp, all (LoRA), last, seam, replaced, patch, full (weights), or names of modules with "
            "commas between. Default: the recipe's."
        ),
    ] = None
    heal_loss: Annotated[
        str | None,
        _heal("next_token, kl, seam, hidden, or several: next_token=1,kl=0.5. Default: the recipe's."),
    ] = None
    heal_teacher: Annotated[
        str | None, _heal("How the original is at hand: resident (default), nf4 (4 bits), stored (on disk, once).")
    ] = None
    heal_temperature: Annotated[float | None, _heal("Of the divergence. Default: 1.")] = None
    heal_top_k: Annotated[
        int | None, _heal("Tokens of each prediction that the divergence looks at. Default: all, or 64 where stored.")
    ] = None
    heal_prefix: Annotated[
        str | None,
        _heal(
            "Frozen blocks at the start: recompute, share (once for both models), store (on disk). Default: by data."
        ),
    ] = None
    heal_store_budget: Annotated[
        str | None, _heal("Most room on disk for what is stored. Default: a tenth of what is free.", "SIZE")
    ] = None
    heal_tokens: Annotated[
        int | None, _heal("Training tokens. Default: the recipe's on a GPU, half an hour's worth on a CPU.")
    ] = None
    heal_steps: Annotated[int | None, _heal("Most optimizer steps. Default: the recipe's.")] = None
    heal_batch_size: Annotated[int | None, _heal("Sequences a step. Default: the recipe's.")] = None
    heal_micro_batch_size: Annotated[int | None, _heal("Sequences a forward pass. Default: what fits.")] = None
    heal_max_length: Annotated[int | None, _heal("Tokens a training sequence. Default: the recipe's.")] = None
    heal_packing: Annotated[bool | None, _heal("Let short texts share a row; none sees another.")] = None
    heal_messages_column: Annotated[
        str | None, _heal("Column of chat messages, of which the answers alone are learned.")
    ] = None
    heal_self_distill: Annotated[
        bool | None, _heal("Let the original answer the prompts anew, and learn its answers.")
    ] = None
    heal_rank: Annotated[int | None, _heal("LoRA rank. Default: the recipe's.")] = None
    heal_last_rank: Annotated[
        int | None, _heal("LoRA rank in the last block; it grows evenly from --heal-rank in the first (PRILoRA).")
    ] = None
    heal_alpha: Annotated[int | None, _heal("LoRA alpha. Default: the recipe's.")] = None
    heal_dropout: Annotated[float | None, _heal("Of the adapters. Default: the recipe's.")] = None
    heal_use_rslora: Annotated[bool | None, _heal("Scale adapters by alpha / sqrt(rank).")] = None
    heal_use_dora: Annotated[bool | None, _heal("Adapters that learn directions and lengths apart.")] = None
    heal_last_blocks: Annotated[int | None, _heal("Blocks that target last trains. Default: 3.")] = None
    heal_quantize: Annotated[
        str | None, _heal("nf4 (QLoRA), none, or auto (default): nf4 where bitsandbytes is there.")
    ] = None
    heal_optimizer: Annotated[str | None, _heal("One of Transformers', such as adamw_8bit. Default: adamw_torch.")] = (
        None
    )
    heal_learning_rate: Annotated[
        float | None, _heal("Peak. Default: the recipe's; for another target that of its paper.")
    ] = None
    heal_warmup_steps: Annotated[int | None, _heal("Steps up to the peak. Default: the recipe's.")] = None
    heal_schedule: Annotated[str | None, _heal("cosine or linear, to zero. Default: the recipe's.")] = None
    heal_beta2: Annotated[float | None, _heal("AdamW's second beta. Default: the recipe's.")] = None
    heal_recompute: Annotated[
        bool | None, _heal("Compute activations again in the backward pass. Default: from 1 billion parameters.")
    ] = None
    heal_held_out_samples: Annotated[int | None, _heal("Sequences to measure on. Default: 32.")] = None
    heal_eval_steps: Annotated[int | None, _heal("Steps between measurements. Default: ten in a run.")] = None
    heal_patience: Annotated[
        int | None, _heal("Measurements without a gain after which training stops. Default: it does not.")
    ] = None
    heal_stop_on: Annotated[
        str | None, _heal("What tells the best weights: held-out loss (default), or kl from the original.")
    ] = None
    heal_save_steps: Annotated[int | None, _heal("Steps between checkpoints. Default: ten in a run.")] = None
    heal_report_to: Annotated[
        str | None, _heal("tensorboard, wandb, trackio, with commas between. Default: none.")
    ] = None
    heal_output: Annotated[
        str | None, _heal("merged (plain weights, default) or adapter (beside the pruned weights).")
    ] = None
