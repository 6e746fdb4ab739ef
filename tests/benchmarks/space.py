"""What visitors of the page get, over HTTP: time to first token beside a direct `generate`, requests a minute, memory.

The page is `hf-prune space` in a process of its own, with the embedded pair; visitors are `gradio_client` in this one.
Time to first token is taken with a warm cache, from sending to the first state that holds text of the original, in
turns with `generate` of the original alone in this process, from the text to the first token in its streamer. Then
several visitors ask without a pause, so that the queue is never empty; the page answers one at a time.
"""

import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import torch
from gradio_client import Client
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.generation.streamers import BaseStreamer

from hf_prune.demo import pair as demo_pair
from hf_prune.space.pair import DEMO

RUNS = 15
EARLY, REQUESTS = 20, 200
VISITORS = 4
PROMPT = "The old man looked at the sea and"
TEMPERATURE, TOP_P, TOKENS = 0.8, 0.95, 48


class _Clock(BaseStreamer):
    """Notes when the first new token came; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


def _direct(model: PreTrainedModel, tokenizer: Tokenizer) -> float:
    """Seconds from the text of a prompt to the first token, by a model alone."""
    clock, started = _Clock(), time.perf_counter()
    ids = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        cast(Any, model).generate(
            **ids,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_new_tokens=TOKENS,
            pad_token_id=0,
            streamer=clock,
        )
    return clock.times[1] - started


@contextmanager
def _page() -> Iterator[tuple[str, psutil.Process, float]]:
    """Address of a page, its process, and the seconds that it took to start."""
    started = time.perf_counter()
    command = [sys.executable, "-u", "-m", "hf_prune.cli", "space"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)))[0]
        yield address, psutil.Process(process.pid), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(30)


def _ask(client: Client, seed: int) -> Iterator[dict[str, Any]]:
    settings = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": TOKENS, "seed": seed}
    return iter(client.submit(DEMO, PROMPT, **settings, api_name="/compare"))


def _first(client: Client, seed: int) -> float:
    """Seconds until there is text of the original; the rest is waited for."""
    started, first = time.perf_counter(), 0.0
    for state in _ask(client, seed):
        first = first or (time.perf_counter() - started if state["original"] else 0.0)
    return first


def _load(address: str, process: psutil.Process, requests: int) -> tuple[float, int, int]:
    """Seconds that so many requests take, and the page's memory after the first `EARLY` and after all."""
    seeds, early = iter(range(requests)), 0
    guard = threading.Lock()
    answered = 0

    def visit() -> None:
        nonlocal answered, early
        client = Client(address, verbose=False)
        while True:
            with guard:
                seed = next(seeds, None)
            if seed is None:
                return
            *_, last = _ask(client, seed)
            assert last["stage"] == "done" and last["original"], last
            with guard:
                answered += 1
                early = process.memory_info().rss if answered == EARLY else early

    started = time.perf_counter()
    visitors = [threading.Thread(target=visit) for _ in range(VISITORS)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert answered == requests, f"{requests - answered} requests failed"
    return time.perf_counter() - started, early, process.memory_info().rss


def main(requests: int = REQUESTS) -> dict[str, object]:
    """Start the page, time first tokens, then let so many requests come."""
    original, _, tokenizer = demo_pair.load()
    with _page() as (address, process, start):
        client = Client(address, verbose=False)
        _first(client, 0)  # loads the pair and measures its cost
        _direct(original, tokenizer)
        times = [(_first(client, seed), _direct(original, tokenizer)) for seed in range(RUNS)]
        took, early, late = _load(address, process, requests)
    pages, alone = ([turn[i] for turn in times] for i in (0, 1))
    return {
        "start to address (seconds)": round(start, 1),
        "first token, page (median seconds)": round(statistics.median(pages), 3),
        "first token, page (min, max)": (round(min(pages), 3), round(max(pages), 3)),
        "first token, direct generate (median seconds)": round(statistics.median(alone), 4),
        "first token, direct generate (min, max)": (round(min(alone), 4), round(max(alone), 4)),
        f"requests per minute ({TOKENS} tokens of both, {VISITORS} visitors)": round(60 * requests / took, 1),
        f"memory of the page after {EARLY} requests": early,
        f"memory of the page after {requests} requests": late,
    }
