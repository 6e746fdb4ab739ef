"""The progress bar of training: steps, time left, loss, perplexities."""

import math
from typing import Any

from transformers import TrainerCallback

from hf_prune.progress import tqdm


class Bar(TrainerCallback):
    """One line on stderr. (Trainer's own bar writes its logs to stdout.)

    Args:
        next_token: name that the log has for the training loss of the next token; None where that is not trained
            against, and the training perplexity not known.
    """

    def __init__(self, next_token: str | None = "loss") -> None:
        self._next_token = next_token
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the bar."""
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="healing", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the training loss since the last log."""
        if not logs or "loss" not in logs:
            return
        self._shown["loss"] = f"{logs['loss']:.4f}"
        if self._next_token in logs:
            self._shown["ppl"] = _perplexity(logs[self._next_token])
        self._show()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the held-out perplexity."""
        if metrics and "eval_loss" in metrics:
            self._shown["held-out ppl"] = _perplexity(metrics["eval_loss"])
            self._show()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar where it is."""
        self._bar.close()

    def _show(self) -> None:
        self._bar.set_postfix(self._shown, refresh=False)


def _perplexity(loss: float) -> str:
    """exp(loss), which no float holds above a loss of 709 nats."""
    return f"{math.exp(loss):.4g}" if loss < 700 else "inf"
