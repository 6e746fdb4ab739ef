"""What measuring a text costs beside a bare forward, logits included, of the same windows.

The embedded demo model, float32, on random token ids, cut by a third for the comparison. Every kind of measuring takes
turns with its own bare forward (bare, measured, bare, measured, ...), and the ratio is told pair by pair. The floor is
1: both sides run the same blocks and the same head on the same windows, which do not overlap. Where two models are
measured at once, the bare forward is that of both.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import demo
from hf_prune.evaluation.fidelity import BUDGET_BYTES
from hf_prune.evaluation.pair import measure_pair
from hf_prune.evaluation.perplexity import measure_text
from hf_prune.evaluation.scoring import cut
from hf_prune.records import TextUse
from hf_prune.samples import Samples, batches, digest
from hf_prune.surgery.drop import prune_layers

RUNS = 7
SEQUENCES, LENGTH, WINDOW, BATCH = 24, 257, 256, 8


def main() -> dict[str, Any]:
    """Time perplexity alone, with the predictions kept, compared with them, and of two models in one pass."""
    folder = demo.model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pruned = copy.deepcopy(model)
    prune_layers(pruned, [4, 5, 6, 7])
    tokenizer, samples = AutoTokenizer.from_pretrained(folder), _samples(model.config.vocab_size)
    settings: dict[str, Any] = {"name": "ids", "window": WINDOW, "stride": WINDOW, "batch_size": BATCH}

    def text(which: Any, **more: Any) -> Any:
        return measure_text(which, tokenizer, samples, **settings, **more)

    reference = text(model, capture_bytes=BUDGET_BYTES).reference
    kinds: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
        "perplexity": (lambda: text(model), (model,)),
        "original, kept": (lambda: text(model, capture_bytes=BUDGET_BYTES), (model,)),
        "pruned, compared": (lambda: text(pruned, compare=reference), (pruned,)),
        "both at once": (lambda: measure_pair(model, pruned, tokenizer, samples, **settings), (model, pruned)),
    }
    return {
        "tokens": samples.tokens,
        "vocabulary": model.config.vocab_size,
        "positions kept": {"likeliest": len(reference.top_positions), "logits": len(reference.positions)},
        **{name: _ratio(work, lambda models=models: _bare(models, samples)) for name, (work, models) in kinds.items()},
    }


def _samples(vocabulary: int) -> Samples:
    ids = torch.randint(vocabulary, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    sequences = tuple(ids)
    use = TextUse(None, None, None, None, SEQUENCES, SEQUENCES * LENGTH, LENGTH, 0, digest(sequences))
    return Samples(sequences, use)


@torch.inference_mode()
def _bare(models: tuple[Any, ...], samples: Samples) -> None:
    spans, _, _ = cut(models[0], samples.sequences, WINDOW, WINDOW, "ids")
    windows = [samples.sequences[span.sequence][span.start : span.end] for span in spans]
    for batch in batches(windows, BATCH):
        for model in models:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def _ratio(work: Callable[[], Any], bare: Callable[[], None]) -> dict[str, Any]:
    pairs = [(_seconds(bare), _seconds(work)) for _ in range(RUNS + 1)][1:]
    ratios = [measured / alone for alone, measured in pairs]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
        "bare seconds": round(statistics.median(alone for alone, _ in pairs), 2),
        "runs": RUNS,
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
