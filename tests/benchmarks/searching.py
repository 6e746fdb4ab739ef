"""What searching costs: cuts as a tree against cuts one by one, and greedy searches in forwards and seconds.

A forward is the calibration text through all blocks once; what the head takes of each cut comes on top, and is in the
seconds. The text is random ids, for the trained model as well: what is chosen means nothing here.
"""

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_prune import demo
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.judging import CutJudge
from hf_prune.planners.order import greedy
from hf_prune.planners.problem import Problem
from hf_prune.units import Unit, as_cut

from .checkpoints import Shapes
from .measure import build

_FEW = Shapes(hidden=64, intermediate=128, layers=32, heads=2, vocabulary=512)


def main(small: bool = False) -> dict[str, Any]:
    """Run all of it, in a few minutes.

    Args:
        small: a text of a few tokens and a narrow model of 32 blocks, which proves that it runs.
    """
    trained = decoder_of(AutoModelForCausalLM.from_pretrained(demo.model_folder()).eval(), demo.NAME)
    text = _text(trained, 2, 16) if small else _text(trained, 8, 128)
    found = {
        "tree": {
            "each block": _tree(trained, text, 1),
            "all pairs of blocks": _tree(trained, text, 2),
        },
        "greedy kl, 4 of 12": _greedy(trained, text, 4),
    }
    del trained
    deep = _random_model() if small else build(layers=32)
    return {**found, "greedy kl, 8 of 32": _greedy(deep, _text(deep, 1, 8 if small else 32), 8)}


def _tree(decoder: Decoder, text: Sequence[torch.Tensor], size: int) -> dict[str, Any]:
    """Scores of all cuts of a size, together and one by one. By loss: no whole model is compared with."""
    cuts = [as_cut(chosen) for chosen in combinations(range(decoder.num_layers), size)]
    together, apart = (CutJudge(decoder, text, "loss") for _ in range(2))
    together.scores(cuts[:1])  # warms up
    together.forwards = 0.0
    started = time.perf_counter()
    shared = together.scores(cuts)
    between = time.perf_counter()
    alone = [apart.scores([cut])[0] for cut in cuts]
    ended = time.perf_counter()
    return {
        "cuts": len(cuts),
        "forwards": [round(judge.forwards, 2) for judge in (together, apart)],
        "seconds": [round(between - started, 2), round(ended - between, 2)],
        "largest difference of scores": max(abs(a - b) for a, b in zip(shared, alone, strict=True)),
    }


def _greedy(decoder: Decoder, text: Sequence[torch.Tensor], size: int) -> dict[str, Any]:
    judge = CutJudge(decoder, text, "kl")
    units, depth = tuple(map(Unit, range(decoder.num_layers))), decoder.num_layers
    promised = judge.cost_of_rounds(units, size)
    started = time.perf_counter()
    choice = greedy(Problem(decoder.name, depth, units, size, judge=judge))
    return {
        "parameters": sum(p.numel() for p in decoder.model.parameters()),
        "tokens": sum(map(len, text)),
        "forwards": round(judge.forwards, 2),
        "forwards, promised at most": round(promised, 2),
        "forwards without a tree": sum((depth - gone) * (depth - gone - 1) / depth for gone in range(size)) + size,
        "seconds": round(time.perf_counter() - started, 1),
        "cuts": sum(trial.tried for trial in choice.trials),
        "kl": round(choice.trials[-1].score, 4),
    }


def _text(decoder: Decoder, sequences: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(decoder.config.vocab_size, (sequences, length), generator=generator))


def _random_model() -> Decoder:
    torch.manual_seed(0)
    return decoder_of(LlamaForCausalLM(_FEW.config()).eval(), "random-llama-32l")
