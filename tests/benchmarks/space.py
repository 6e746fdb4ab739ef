"""What the Space's own code costs on the embedded pair: time to first token beside a direct `generate`; many requests.

One side is `comparing.compare`, from its call to the first frame with text of the original, of both models; the other
is `generate` of the original alone, to the first token in its streamer. They take turns, with the ratio pair by pair.
What the page and HTTP add is not in it.
"""

import statistics
import time
from typing import Any, cast

import psutil
import torch
from transformers.generation.streamers import BaseStreamer

from hf_prune.space import comparing, pairs
from hf_prune.space.cache import give_memory_back
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO, Loaded, Visitor

RUNS = 15
REQUESTS = 200
PROMPT = "The old man looked at the sea and"
SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=48)


class _Clock(BaseStreamer):
    """Notes when the first new token came; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


def direct(loaded: Loaded) -> float:
    """Seconds from the text of a prompt to the first token, by the original alone."""
    clock, started = _Clock(), time.perf_counter()
    ids = loaded.tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        cast(Any, loaded.original).generate(
            **ids, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=48, pad_token_id=0, streamer=clock
        )
    return clock.times[1] - started


def compared() -> tuple[float, float]:
    """Seconds from the same to the first frame with text of the original, and with text of both."""
    started, first = time.perf_counter(), None
    for frame in comparing.compare(DEMO, PROMPT, SAMPLING, Visitor()):
        first = time.perf_counter() if first is None and frame.original else first
        if first is not None and frame.pruned:
            return first - started, time.perf_counter() - started
    raise AssertionError("a model wrote nothing")


def main(requests: int = REQUESTS) -> dict[str, object]:
    """Time both sides, then let so many visitors come one after the other."""
    with pairs.opened(pairs.find(DEMO, Visitor()), Visitor()) as loaded:
        list(comparing.compare(DEMO, PROMPT, SAMPLING, Visitor()))  # warm-up; figures of cost are known from here on
        direct(loaded)
        times = [(*compared(), direct(loaded)) for _ in range(RUNS)]
        resident, started = [], time.perf_counter()
        for seed in range(requests):
            sampling = Sampling(0.8, 0.95, SAMPLING.max_new_tokens, seed)
            list(comparing.compare(DEMO, PROMPT, sampling, Visitor()))
            if seed in (requests // 10, requests - 1):
                give_memory_back()
                resident.append(psutil.Process().memory_info().rss)
        took = time.perf_counter() - started
    ratios = sorted(first / alone for first, _, alone in times)
    return {
        "first token of the original, compared (median seconds)": _median(first for first, _, _ in times),
        "first tokens of both, compared (median seconds)": _median(both for _, both, _ in times),
        "first token, direct generate (median seconds)": _median(alone for _, _, alone in times),
        "ratio, original (median of pairs)": round(statistics.median(ratios), 2),
        "ratio, original (min, max)": (round(ratios[0], 2), round(ratios[-1], 2)),
        f"requests per minute ({SAMPLING.max_new_tokens} tokens of both, one after the other)": round(
            60 * requests / took, 1
        ),
        f"memory of the process after {requests // 10 + 1} requests": resident[0],
        f"memory of the process after {requests} requests": resident[-1],
    }


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)
