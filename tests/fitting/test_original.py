"""The original of a model that was handed over in memory: pruning it changes no number of it."""

from typing import Any

import pytest
import torch

from hf_prune import Pruner

from ..cli.support import fast, recipe
from ..evaluation.text import VOCAB, byte_tokenizer
from ..making import logits
from ..tiny import tiny_model, tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": [3, 4]},
        {"layers": [3, 4], "surgery": "compensate"},
        {"layers": [3, 4], "surgery": "merge"},
        {"method": "llm-drop-attention", "drop_layers": 2},
        {"method": "magnitude-sparsity", "sparsity": 0.5},
    ],
)
def test_it_stays_as_it_was(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    model = tiny_model("llama", vocab_size=VOCAB)
    before, ids = logits(model, tokens()), {name: p.data_ptr() for name, p in model.named_parameters()}
    pruner = Pruner(model, byte_tokenizer(), recipe(**fields), progress=False)
    pruner.prune()
    assert not torch.equal(logits(pruner.model, tokens()), before)
    original = pruner.models.original()
    assert torch.equal(logits(original, tokens()), before)
    # What no operation changes is not there twice.
    assert original.get_input_embeddings().weight.data_ptr() == ids["model.embed_tokens.weight"]
    assert pruner.model is model
