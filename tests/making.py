"""Small finished things that many tests start from: references, scores, a saved model with its tokenizer."""

import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from transformers import PreTrainedModel

from hf_prune.planners.problem import Judge, Problem
from hf_prune.records import Environment, ModelRef, Scores, TextUse
from hf_prune.units import Unit

from .evaluation.text import VOCAB, byte_tokenizer
from .tiny import tiny_model

# No deadlines: machines that run tests are slow at times.
settings.register_profile("steady", deadline=None, database=None)
settings.load_profile("steady")

ENVIRONMENT = Environment("a processor, 1 threads", {"torch": "2.13.0"}, "float32", "cpu")
TEXT = TextUse("org/books", "en", "train", "c0ffee", 4, 100, 32, 0, "5" * 64)


def reference(depth: int, digest: str = "d" * 64, **fields: Any) -> ModelRef:
    """A reference to some Llama."""
    return ModelRef(
        **{"id": "org/model", "revision": None, "model_type": "llama", **fields}, num_layers=depth, digest=digest
    )


def asked(record: Scores | None, size: int, allowed: Sequence[int], judge: Judge | None = None) -> Problem:
    """A problem that asks for `size` of these blocks."""
    depth = max(allowed) + 1 if record is None else record.model.num_layers
    return Problem("org/model", depth, tuple(Unit(i) for i in allowed), size, record, judge)


def scores(distances: Sequence[Sequence[float]], errors: Sequence[Sequence[float]] | None = None) -> Scores:
    """A record with these (L+1) x (L+1) distances; standard errors are zero unless given."""
    table = tuple(tuple(map(float, row)) for row in distances)
    spread = (
        tuple(tuple(map(float, row)) for row in errors) if errors is not None else ((0.0,) * len(table),) * len(table)
    )
    return Scores(reference(len(table) - 1), "angular", {}, table, spread, TEXT, ENVIRONMENT, 1.5)


def base_folder(folder: Path, model_type: str = "llama", **overrides: Any) -> tuple[PreTrainedModel, Path]:
    """A tiny model with a working byte tokenizer, saved as a base model would be; returns the model and its folder."""
    model = tiny_model(model_type, vocab_size=VOCAB, **overrides)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model, folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data, indent=2))


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """(batch, length, vocabulary) logits without a cache."""
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def act_between_blocks(base: Any) -> None:
    """Let a Llama's inner model change the hidden states between two blocks."""
    inner = type(base).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        handles = [block.register_forward_hook(lambda _m, _a, out: out * 1.01) for block in self.layers[:-1]]
        try:
            return inner(self, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    base.forward = types.MethodType(forward, base)
