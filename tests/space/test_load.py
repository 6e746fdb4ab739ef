"""Many visitors at once, and visitors who leave."""

import gc
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from gradio_client import Client

from tests.space.test_page import greedy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("url")]

CLIENTS = 50
TOKENS = 8


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def prompts() -> list[str]:
    drawn = random.Random(5)
    words = "ship captain old sea king house river winter letter sister night road garden".split()
    return [f"{i}. The {drawn.choice(words)} and the {drawn.choice(words)}" for i in range(CLIENTS)]


def ask(url: str, prompt: str) -> list[str]:
    """Ask until there is room in the queue, as somebody would who presses the button again."""
    client = Client(url, verbose=False)
    try:
        for _ in range(200):
            try:
                last = client.predict("demo", prompt, max_tokens=TOKENS, api_name="/compare")
                return [last["original"], last["pruned"]]
            except Exception as error:
                if "queue" not in str(error).lower():
                    raise
                time.sleep(0.5)
        raise AssertionError("there never was room in the queue")
    finally:
        client.close()


def test_fifty_at_once_each_get_their_own(url: str) -> None:
    asked = prompts()
    assert len(set(asked)) == CLIENTS
    ask(url, asked[0])  # what stays loaded is no growth
    before = resident()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda prompt: ask(url, prompt), asked))
    grown = resident() - before
    alone = [greedy(prompt, TOKENS) for prompt in asked]
    assert answers == alone
    assert len({tuple(answer) for answer in alone}) > CLIENTS // 2  # a mix-up would be seen
    assert grown < 400e6, f"{grown / 1e6:.0f} MB"
    assert not writers()


def writers() -> list[str]:
    """Threads in which a model writes."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("writer")]


def test_who_leaves_stops_the_models(url: str) -> None:
    config = httpx.get(f"{url}config").json()
    function = next(found["id"] for found in config["dependencies"] if found["api_name"] == "compare")
    body: dict[str, Any] = {
        "data": ["demo", "Once upon a time", 0.0, 0.95, 512, 0],
        "fn_index": function,
        "session_hash": "somebody",
    }
    httpx.post(f"{url}gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": "somebody"}, timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line.removeprefix("data:"))
            if message["msg"] == "process_generating" and writers():
                break
    start = time.perf_counter()
    while writers():
        assert time.perf_counter() - start < 10, "still writing for nobody"
        time.sleep(0.05)
    assert ask(url, "And then") == greedy("And then", TOKENS)  # the next one is served
