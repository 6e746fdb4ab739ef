"""What Trainer is told: our settings in its words."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from hf_prune.config import HealingConfig
from hf_prune.distributed import Group
from hf_prune.errors import ConfigError
from hf_prune.healing.rows import Rows
from hf_prune.healing.together import forwards_per_step


def training_arguments(
    rows: Rows,
    config: HealingConfig,
    steps: int,
    folder: Path,
    device: torch.device,
    autocast: bool,
    group: Group,
    first: bool,
) -> TrainingArguments:
    """What Trainer is told.

    Args:
        rows: training text.
        config: resolved.
        steps: optimizer steps.
        folder: for checkpoints.
        device: where the model is.
        autocast: whether matrix products run in bfloat16.
        group: the processes that train together.
        first: whether the run begins; the untrained model is measured then.

    Raises:
        ConfigError: a batch cannot be shared evenly, or the group is not that of the environment.
    """
    assert config.batch_size and config.micro_batch_size and config.learning_rate and config.save_steps
    assert config.warmup_steps is not None and config.schedule and config.beta2 is not None and config.eval_steps
    micro = min(config.micro_batch_size, len(rows))
    best = config.patience is not None
    save_steps = config.eval_steps if best else config.save_steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=forwards_per_step(config, group),
        ddp_find_unused_parameters=False,
        optim=config.optimizer,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=min(config.warmup_steps, steps),
        adam_beta2=config.beta2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=autocast,
        activation_checkpointing=bool(config.recompute),
        activation_checkpointing_kwargs={"use_reentrant": False} if config.recompute else None,
        logging_steps=max(1, min(save_steps, config.eval_steps, steps // 50)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        eval_on_start=first,
        save_steps=save_steps,
        # The last two, as the last may be cut off; and the best.
        save_total_limit=3 if best else 2,
        load_best_model_at_end=best,
        metric_for_best_model=config.stop_on if best else None,
        greater_is_better=False if best else None,
        restore_callback_states_from_checkpoint=True,
        include_num_input_tokens_seen="non_padding",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device.type == "cpu",
        # An incomplete last forward of each pass is left out; the last step of a pass may have fewer forwards.
        dataloader_drop_last=len(rows) >= micro,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(config.report_to) or "none",
        run_name="healing",  # Trainer's own choice would be a path
        push_to_hub=False,
    )
    if arguments.world_size != group.size:
        raise ConfigError(
            f"WORLD_SIZE says that {arguments.world_size} processes train together, and healing was told of "
            f"{group.size}; expected the group that hf_prune.distributed.processes() gives"
        )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the model sits on one device; without this Trainer would copy it to all of them
    return arguments
