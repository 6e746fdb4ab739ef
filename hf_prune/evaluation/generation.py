"""What a model writes after fixed prompts, greedily."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.architecture.decoder import first_device
from hf_prune.errors import DataError
from hf_prune.evaluation.scoring import max_positions
from hf_prune.precision import fast_arithmetic
from hf_prune.records import Completion
from hf_prune.runner import evaluating


@torch.inference_mode()
def completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    progress: bool = False,
) -> tuple[Completion, ...]:
    """Let a model continue prompts: the likeliest token at each step, cached, until it ends or has written enough.

    Of the model's generation settings only the special tokens count; sampling, penalties and lengths do not, so that
    original and pruned model are asked the same. The settings themselves stay as they are.

    Args:
        model: the causal LM; put in eval mode, and back.
        tokenizer: its tokenizer.
        prompts: one by one, so nothing is padded.
        new_tokens: most tokens written after each; fewer where the model's limit comes first.
        progress: whether to show a bar.

    Returns:
        One completion a prompt; its text leaves special tokens out.

    Raises:
        DataError: a prompt has no tokens, or leaves no room for a new one.
    """
    encoded = [_encode(model, tokenizer, prompt) for prompt in prompts]
    limit = max_positions(model)
    device = first_device(model)
    own = model.generation_config
    done = []
    with evaluating(model), fast_arithmetic(model):
        try:
            pairs = list(zip(prompts, encoded, strict=True))
            for prompt, ids in tqdm(pairs, desc="writing", unit="prompt", leave=False, disable=not progress):
                room = new_tokens if limit is None else min(new_tokens, limit - ids.shape[1])
                model.generation_config = _greedy(own, tokenizer, room)
                ids = ids.to(device)
                output = cast(Any, model).generate(input_ids=ids, attention_mask=torch.ones_like(ids))
                new = output[0, ids.shape[1] :].tolist()
                done.append(Completion(prompt, str(tokenizer.decode(new, skip_special_tokens=True)), tuple(new)))
        finally:
            model.generation_config = own
    return tuple(done)


def _greedy(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> GenerationConfig:
    end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    first_end = end[0] if isinstance(end, list) else end
    pad = next((i for i in (own.pad_token_id, tokenizer.pad_token_id, first_end) if i is not None), 0)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
    )


def _encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The prompt's ids, (1, tokens) int64, with whatever special tokens the tokenizer puts in front."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    limit = max_positions(model)
    if not ids.numel():
        raise DataError(f"the prompt {prompt!r} has no tokens; give some text")
    if limit is not None and ids.shape[1] >= limit:
        raise DataError(
            f"the prompt {prompt[:40]!r} has {ids.shape[1]} tokens; the model sees {limit}, so nothing can follow. "
            "Give a shorter one"
        )
    return ids
