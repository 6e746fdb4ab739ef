"""What a model answers to fixed ids, by which it is told again."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_prune.architecture.decoder import first_device, keep_quantized_bits
from hf_prune.runner import evaluating

_LENGTH, _NEW = 16, 8


def probe(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model answers to fixed ids: `ids` (2, 16), their `logits`, and `greedy` (2, 24) from cached decoding."""
    keep_quantized_bits(model)
    ids = probe_ids(model.config.get_text_config(decoder=True).vocab_size).to(first_device(model))
    # Neither stops early nor takes sampling settings from the model: always the same number of tokens.
    settings = GenerationConfig(max_new_tokens=_NEW, do_sample=False, pad_token_id=0, use_cache=True)
    own, model.generation_config = model.generation_config, settings
    try:
        with evaluating(model), torch.inference_mode():
            mask = torch.ones_like(ids)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            generate: Any = model.generate
            greedy = generate(ids, attention_mask=mask, generation_config=settings)
    finally:
        model.generation_config = own
    return {"ids": ids.cpu(), "logits": logits.cpu().contiguous(), "greedy": greedy.cpu().contiguous()}


def probe_ids(vocabulary: int) -> torch.Tensor:
    """(2, 16) int64 token ids, always the same ones of a vocabulary of that size."""
    return (torch.arange(2 * _LENGTH).reshape(2, _LENGTH) * 7919 + 13) % vocabulary
