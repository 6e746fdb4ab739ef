"""Transformers' Trainer, with our loss, our measurement of held-out text, and checkpoints of what is trained alone."""

from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from hf_prune.distributed import Group
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.healing.cost import TrainingCost
from hf_prune.healing.keeper import TRAINED, checkpoint_at
from hf_prune.healing.step import Step
from hf_prune.healing.trained import Trainable


class Judged(TypedDict):
    """Held-out figures: next-token loss in nats per token, and the divergence from the original, where it is known."""

    loss: float
    kl: float | None


class Judge(Protocol):
    """Measures a model on the held-out text."""

    def __call__(self, model: torch.nn.Module, /) -> Judged:
        """Figures of a model, which is left as it was."""
        ...


class HealingTrainer(Trainer):
    """Trainer with the loss of `Step`, whose checkpoints hold what is trained alone.

    Args:
        chosen: what is trained.
        step: the loss of a micro-batch.
        judge: measures on held-out text.
        cost: of the run.
        group: the processes that train together.
        kwargs: of Trainer.
    """

    def __init__(
        self, chosen: Trainable, step: Step, judge: Judge, cost: TrainingCost, group: Group, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._chosen, self._step, self._trainee = chosen, step, kwargs["model"]
        self._judge, self._cost, self._group = judge, cost, group
        self._terms: dict[str, torch.Tensor] = {}
        self._terms_since = 0
        self._tokens: torch.Tensor | None = None  # seen since the last log
        # Labels are told apart from ids by `Step`, which sums; Trainer is to count them as they are.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False
        # Nothing but `evaluate` would look at it, and that is our own.
        self.eval_dataset = ()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean over the positions of a whole optimizer step, of which this micro-batch is a part."""
        total, terms = self._step(model, inputs)
        assert num_items_in_batch is not None
        if not self._terms:
            self._terms_since = self.state.global_step
        for name, value in terms.items():
            part = value / num_items_in_batch
            self._terms[name] = self._terms[name] + part if name in self._terms else part
        loss = total / num_items_in_batch
        return loss * self.accelerator.num_processes  # the mean of all processes is taken of gradients

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does; with several terms of the loss, each of them too, nats per position."""
        if self._tokens is not None:
            self.state.num_input_tokens_seen += int(self.accelerator.gather(self._tokens).sum())
            self._tokens = None
        if "loss" in logs and self._terms:
            steps = self.state.global_step - self._terms_since
            if len(self._terms) > 1:
                totals = torch.stack([total.cpu() for total in self._terms.values()]).double()
                self._group.add([totals])
                logs |= {
                    f"loss_{name}": total / steps for name, total in zip(self._terms, totals.tolist(), strict=True)
                }
            self._terms = {}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure on the held-out text; no random number of the training is used up."""
        self.store_flos()
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            found = self._group.share(lambda: self._judge(self._trainee))
        if self.args.metric_for_best_model == "kl" and found["kl"] is None:
            raise ConfigError(
                "healing.stop_on='kl', and no divergence is measured, as the original is not at hand; expected "
                "stop_on='loss', or the original beside (--original)"
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        logged: dict[str, Any] = metrics | {"total_flos": self._cost.before + self.state.total_flos}
        self.log(logged)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of a micro-batch, forward and backward; Trainer adds them up, over sessions too."""
        rows, length = inputs["input_ids"].shape
        return round(self._cost.of(rows, length, self.state.epoch or 0.0))

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        # Trainer counts by the mask, which there is none of where sequences share rows. The sum is read when it is
        # logged, which it is before each checkpoint: to read it here would let a GPU wait in each micro-batch.
        tokens = inputs["lengths"].sum().to(self.args.device)
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state = self._chosen.state(self._trainee)
        broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise MeasureError(f"{len(broken)} trained tensors hold numbers that are not finite, '{broken[0]}' first")
        if not self._group.leads:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self._chosen.restore(self._trainee, load_file(Path(resume_from_checkpoint) / TRAINED))

    def _load_best_model(self) -> None:
        # The step, not the path that the state has: run folders may be moved between two sessions.
        assert self.state.best_global_step is not None
        best = checkpoint_at(Path(str(self.args.output_dir)), self.state.best_global_step)
        self._load_from_checkpoint(str(best))
