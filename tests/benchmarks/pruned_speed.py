"""Tokens a second of pruned models, over what their sizes promise.

A Llama of 300 M random weights in the dtype that the processor computes fastest, and the same with 10 % to 50 % of its
blocks dropped; all share their weights and take turns. The ideal is time in proportion to the work that is left:
floating point operations for reading a prompt (with the logits of the last position only), bytes of weights
for writing after it, where every pass reads all of them once. What keeps a model from the ideal is the time that does
not depend on weights: launching operations, attention over the cache, the choice of the token.
"""

import copy
import statistics
from typing import Any

import torch
from transformers import LlamaForCausalLM

from hf_prune.evaluation.speed import Run, timed
from hf_prune.precision import faster_dtype
from hf_prune.surgery import prune_layers

from .checkpoints import Shapes

MODEL = Shapes(hidden=1024, intermediate=2816, layers=20, heads=16, vocabulary=32000)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def main(shapes: Shapes = MODEL, *, prompt: int = 512, new: int = 32, rounds: int = 5) -> dict[str, Any]:
    """Time all models in turns.

    Args:
        shapes: of the whole model.
        prompt: tokens that are read.
        new: tokens that are written.
        rounds: turns of each model.
    """
    models = variants(shapes)
    runs: list[list[Run]] = [[] for _ in models]
    for _ in range(rounds):
        for model, found in zip(models, runs, strict=True):
            found += timed(model, prompt_tokens=prompt, new_tokens=new, batch=1, runs=1)
    work = [(prefill_flops(shapes, len(model.model.layers), prompt), decode_bytes(model)) for model in models]
    return {
        "parameters": shapes.bytes // 2,
        "dtype": str(models[0].dtype).removeprefix("torch."),
        "prompt tokens": prompt,
        "new tokens": new,
        "rounds": rounds,
        "dropped": [
            {
                "share": share,
                "blocks": shapes.layers - len(model.model.layers),
                "parameters left": sum(p.numel() for p in model.parameters()),
                "prefill, tokens/s": round(prompt / statistics.median(_prefills(found)), 1),
                "decode, tokens/s": round(new / statistics.median(_decodes(found)), 1),
                "prefill, ideal speedup": round(work[0][0] / flops, 3),
                "decode, ideal speedup": round(work[0][1] / size, 3),
                "prefill over ideal": _over(_prefills(runs[0]), _prefills(found), work[0][0] / flops),
                "decode over ideal": _over(_decodes(runs[0]), _decodes(found), work[0][1] / size),
            }
            for share, model, found, (flops, size) in zip(SHARES, models, runs, work, strict=True)
        ],
    }


def variants(shapes: Shapes) -> list[LlamaForCausalLM]:
    """The whole model, and one with each share of its blocks dropped, from behind the middle; weights are shared."""
    torch.manual_seed(0)
    dtype = faster_dtype(torch.device("cpu"), torch.bfloat16)
    whole = LlamaForCausalLM(shapes.config()).to(dtype).eval()
    found = []
    for share in SHARES:
        model = copy.deepcopy(whole, {id(weight): weight for weight in whole.parameters()})
        gone = round(share * shapes.layers)
        first = min(shapes.layers // 2, shapes.layers - 1 - gone)
        found.append(prune_layers(model, range(first, first + gone)) if gone else model)
    return found


def prefill_flops(shapes: Shapes, layers: int, prompt: int) -> int:
    """Floating point operations of reading a prompt, with the logits of its last position.

    Products with all weights of the blocks, scores and weighted values of the attention, and one row of the head.
    """
    products = 2 * prompt * shapes.block_bytes // 2
    attention = 4 * prompt**2 * shapes.hidden
    return layers * (products + attention) + 2 * shapes.hidden * shapes.vocabulary


def decode_bytes(model: LlamaForCausalLM) -> int:
    """Bytes of weights that one more token reads: all but the embedding, of which it is one row."""
    embedding = model.get_input_embeddings().weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not embedding)


def _over(whole: list[float], cut: list[float], ideal: float) -> list[float]:
    """Speedup over the ideal one, turn by turn: median, smallest, largest."""
    found = [before / after / ideal for before, after in zip(whole, cut, strict=True)]
    return [round(function(found), 3) for function in (statistics.median, min, max)]


def _prefills(runs: list[Run]) -> list[float]:
    return [run.prefill for run in runs]


def _decodes(runs: list[Run]) -> list[float]:
    return [run.decode for run in runs]
