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
from typing import Any

import psutil
from gradio_client import Client

from hf_prune.space import pairs
from hf_prune.space.pair import DEMO, Visitor

from .space import PROMPT, SAMPLING, direct

RUNS = 15
REQUESTS = 200
VISITORS = 4
_SETTINGS = {"temperature": SAMPLING.temperature, "top_p": SAMPLING.top_p, "max_tokens": SAMPLING.max_new_tokens}


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
    return iter(client.submit(DEMO, PROMPT, **_SETTINGS, seed=seed, api_name="/compare"))


def _first(client: Client, seed: int) -> float:
    """Seconds until there is text of the original; the rest is waited for."""
    started, first = time.perf_counter(), 0.0
    for state in _ask(client, seed):
        first = first or (time.perf_counter() - started if state["original"] else 0.0)
    return first


def _load(address: str, process: psutil.Process, requests: int) -> tuple[float, int, int]:
    """Seconds that so many requests take, and the page's memory after a tenth of them and after all."""
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
                early = process.memory_info().rss if answered == requests // 10 else early

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
    with _page() as (address, process, start), pairs.opened(pairs.find(DEMO, Visitor()), Visitor()) as loaded:
        client = Client(address, verbose=False)
        _first(client, 0)  # loads the pair and measures its cost
        direct(loaded)
        times = [(_first(client, seed), direct(loaded)) for seed in range(RUNS)]
        took, early, late = _load(address, process, requests)
    pages, alone = ([pair[i] for pair in times] for i in (0, 1))
    return {
        "start to address (seconds)": round(start, 1),
        "first token, page (median seconds)": round(statistics.median(pages), 3),
        "first token, page (min, max)": (round(min(pages), 3), round(max(pages), 3)),
        "first token, direct generate (median seconds)": round(statistics.median(alone), 4),
        f"requests per minute ({SAMPLING.max_new_tokens} tokens of both, {VISITORS} visitors)": round(
            60 * requests / took, 1
        ),
        f"memory of the page after {requests // 10} requests": early,
        f"memory of the page after {requests} requests": late,
    }
