"""What a model writes after fixed prompts: the likeliest token at each step, and tokens drawn with a fixed seed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.architecture.decoder import first_device
from hf_prune.errors import DataError
from hf_prune.evaluation.scoring import max_positions
from hf_prune.precision import fast_arithmetic
from hf_prune.progress import tqdm
from hf_prune.records import Completion
from hf_prune.runner import evaluating


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
    return tuple(
        Completion(prompt, text, new)
        for prompt, text, new in _write(model, tokenizer, prompts, new_tokens, {"do_sample": False}, None, progress)
    )


def sampled_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
    progress: bool = False,
) -> tuple[Completion, ...]:
    """Let a model continue prompts by drawing: as `completions`, but from softmax(logits / temperature).

    Of each distribution the likeliest tokens that have `top_p` together are left, nothing else is cut off. Prompt i is
    drawn with seed `seed + i`, so original and pruned model draw with the same random numbers. torch's own generators
    are as before afterwards.

    Args:
        model: as in `completions`.
        tokenizer: as in `completions`.
        prompts: as in `completions`.
        new_tokens: as in `completions`.
        temperature: above 0.
        top_p: above 0, at most 1.
        seed: of the first prompt.
        progress: whether to show a bar.

    Returns:
        One completion a prompt, with its own seed.

    Raises:
        DataError: as in `completions`.
    """
    settings = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return tuple(
        Completion(prompt, text, new, "sampled", seed + number)
        for number, (prompt, text, new) in enumerate(
            _write(model, tokenizer, prompts, new_tokens, settings, seed, progress)
        )
    )


@torch.inference_mode()
def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    settings: dict[str, Any],
    seed: int | None,
    progress: bool,
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Prompt, text and ids of every completion."""
    encoded = [_encode(model, tokenizer, prompt) for prompt in prompts]
    limit = max_positions(model)
    device = first_device(model)
    own = model.generation_config
    done = []
    with evaluating(model), fast_arithmetic(model), _own_generators(device):
        try:
            pairs = enumerate(zip(prompts, encoded, strict=True))
            bar = tqdm(pairs, "writing", len(prompts), unit="prompt", leave=False, disable=not progress)
            for number, (prompt, ids) in bar:
                room = new_tokens if limit is None else min(new_tokens, limit - ids.shape[1])
                model.generation_config = _asked(own, tokenizer, room, settings)
                if seed is not None:
                    _seed(device, seed + number)
                ids = ids.to(device)
                output = cast(Any, model).generate(input_ids=ids, attention_mask=torch.ones_like(ids))
                new = output[0, ids.shape[1] :].tolist()
                done.append((prompt, str(tokenizer.decode(new, skip_special_tokens=True)), tuple(new)))
        finally:
            model.generation_config = own
    return done


def _seed(device: torch.device, seed: int) -> None:
    """Seed what draws on this device: `torch.manual_seed` alone would leave those of unused GPUs seeded for good."""
    seeded = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seeded(seed)


@contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Give torch's random generators back as they were."""
    state = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
            yield
    finally:
        if state is not None:
            torch.mps.set_rng_state(state)


def _asked(
    own: GenerationConfig, tokenizer: PreTrainedTokenizerBase, new_tokens: int, settings: dict[str, Any]
) -> GenerationConfig:
    end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    first_end = end[0] if isinstance(end, list) else end
    pad = next((i for i in (own.pad_token_id, tokenizer.pad_token_id, first_end) if i is not None), 0)
    return GenerationConfig(
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
        **settings,
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
