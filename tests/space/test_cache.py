"""Models in memory: each loaded once, never more bytes than allowed, nothing lost that somebody uses."""

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
import torch

from hf_prune.errors import ConfigError, PruneError
from hf_prune.space import settings
from hf_prune.space.cache import Busy, ModelCache, Want, models


class Thing:
    """Stands for a model."""

    def __init__(self, key: str) -> None:
        self.key = key


def never() -> Any:
    raise AssertionError("this is loaded already")


def keys(cache: ModelCache) -> set[Any]:
    return set(cache._entries)


def fill(cache: ModelCache, *names: str, size: int = 10) -> None:
    for name in names:
        with cache.use(name, size, lambda name=name: Thing(name)):
            pass


def test_loaded_once_and_kept() -> None:
    cache = ModelCache(30)
    with cache.use("a", 10, lambda: Thing("a")) as first:
        assert first.key == "a" and cache.bytes == 10
    with cache.use("a", 10, never) as again:
        assert again is first


def test_the_least_recently_used_goes_first() -> None:
    cache = ModelCache(30)
    fill(cache, "a", "b", "c")
    with cache.use("a", 10, never):
        pass
    fill(cache, "d")
    assert keys(cache) == {"a", "c", "d"}
    fill(cache, "e", size=20)
    assert keys(cache) == {"d", "e"} and cache.bytes == 30


def test_no_more_goes_than_has_to() -> None:
    cache = ModelCache(30)
    fill(cache, "a", "b")
    fill(cache, "c")
    assert keys(cache) == {"a", "b", "c"}


def test_what_is_used_stays() -> None:
    cache = ModelCache(20, patience=0.05)
    with cache.use("a", 10, lambda: Thing("a")) as used:
        fill(cache, "b", "c")
        assert keys(cache) == {"a", "c"}
        with pytest.raises(Busy, match="all memory for models is in use by other visitors"):
            fill(cache, "d", size=20)
        assert keys(cache) == {"a", "c"}  # nothing was thrown out for what could not come
        with cache.use("a", 10, never) as again:
            assert again is used


def test_waiting_for_room() -> None:
    cache = ModelCache(10, patience=20)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.use("a", 10, lambda: Thing("a")):
            held.set()
            leave.wait(10)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(hold)
        assert held.wait(10)
        waiting = pool.submit(fill, cache, "b")
        time.sleep(0.1)
        assert not waiting.done() and keys(cache) == {"a"}
        leave.set()
        waiting.result(10)
    assert keys(cache) == {"b"}


def test_too_large() -> None:
    cache = ModelCache(10)
    fill(cache, "a")
    with pytest.raises(ConfigError, match=r"take 0\.00 GB together; at most 0\.00 GB of models"):
        fill(cache, "b", size=11)
    with pytest.raises(ConfigError), cache.use_all([Want("b", 6, never), Want("c", 6, never)]):
        pass
    assert keys(cache) == {"a"}


def test_many_wait_for_one_load() -> None:
    cache, started, loads = ModelCache(10), threading.Barrier(8), []

    def load() -> Thing:
        loads.append(1)
        time.sleep(0.2)
        return Thing("a")

    def use() -> Any:
        started.wait(10)
        with cache.use("a", 10, load) as value:
            return value

    with ThreadPoolExecutor(8) as pool:
        values = [future.result(20) for future in [pool.submit(use) for _ in range(8)]]
    assert len(loads) == 1 and len({id(value) for value in values}) == 1


def test_a_failed_load_leaves_nothing() -> None:
    cache = ModelCache(20)

    def fail() -> Any:
        raise PruneError("no such model")

    with pytest.raises(PruneError, match="no such model"), cache.use("a", 10, fail):
        pass
    assert keys(cache) == set()
    fill(cache, "a")
    with pytest.raises(PruneError), cache.use_all([Want("b", 5, lambda: Thing("b")), Want("c", 5, fail)]):
        pass
    assert keys(cache) == {"a", "b"} and not any(entry.holders for entry in cache._entries.values())


def test_who_waits_for_a_load_that_fails_tries_it_again() -> None:
    """The first visitor's download broke off; the second one's own goes on."""
    cache, loading = ModelCache(10), threading.Event()

    def fail() -> Any:
        loading.set()
        time.sleep(0.2)
        raise PruneError("the connection broke")

    def use(load: Callable[[], Any]) -> Any:
        with cache.use("a", 10, load) as value:
            return value.key

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, fail)
        assert loading.wait(10)
        second = pool.submit(use, lambda: Thing("mine"))
        with pytest.raises(PruneError, match="broke"):
            first.result(10)
        assert second.result(10) == "mine"


def test_a_pair_shares_its_original_with_others() -> None:
    cache = ModelCache(30)
    original = Want("original", 10, lambda: Thing("original"))
    with cache.use_all([original, Want("one", 10, lambda: Thing("one"))]) as (first, _):
        with cache.use_all([Want("original", 10, never), Want("other", 10, lambda: Thing("other"))]) as (again, _):
            assert again is first and cache.bytes == 30
    with cache.use_all([Want("one", 10, never), Want("one", 10, never)]) as (left, right):
        assert left is right


def test_two_who_need_two_each_do_not_wait_for_each_other() -> None:
    """Room for three: taken one by one, each of two users could hold one and a half pairs for ever."""
    cache, started = ModelCache(30, patience=20), threading.Barrier(2)

    def use(names: tuple[str, str]) -> None:
        started.wait(10)
        for _ in range(20):
            with cache.use_all([Want(name, 10, lambda name=name: Thing(name)) for name in names]):
                time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(use, names) for names in (("a", "b"), ("c", "d"))]:
            future.result(20)


def test_a_user_that_breaks_off_lets_go() -> None:
    cache = ModelCache(10)

    def generator() -> Iterator[str]:
        with cache.use("a", 10, lambda: Thing("a")) as value:
            yield value.key
            yield "never asked for"

    going = generator()
    assert next(going) == "a"
    going.close()
    with pytest.raises(RuntimeError), cache.use("a", 10, never):
        raise RuntimeError
    fill(cache, "b")
    assert keys(cache) == {"b"}


def test_what_is_thrown_out_is_gone() -> None:
    cache = ModelCache(10)
    with cache.use("a", 10, lambda: Thing("a")) as value:
        value.itself = value  # as models refer to themselves
        there = weakref.ref(value)
    del value
    gc.disable()
    try:
        fill(cache, "b")
        assert there() is None
        cache.clear()
        assert cache.bytes == 0
    finally:
        gc.enable()


def test_memory_returns() -> None:
    """100 MB in small tensors with one behind them that stays: the C library would keep them all."""
    cache, process, stays = ModelCache(1), psutil.Process(), []

    def load() -> list[torch.Tensor]:
        loaded = [torch.ones(16 * 1024) for _ in range(1600)]
        stays.append(torch.ones(16 * 1024))
        return loaded

    with cache.use("small", 1, lambda: None):
        pass
    before = process.memory_info().rss
    with cache.use("large", 1, load):
        assert process.memory_info().rss - before > 90e6
    with cache.use("small", 1, lambda: None):
        assert process.memory_info().rss - before < 30e6


@pytest.mark.parametrize("seed", range(4))
def test_many_threads(seed: int) -> None:
    """Whatever threads do: never above the limit, never two loads of a key at once, never another one's value."""
    limit, sizes = 40, {f"m{i}": 5 + 3 * i for i in range(8)}
    cache, loading, lock = ModelCache(limit, patience=30), Counter[str](), threading.Lock()
    live: weakref.WeakSet[Thing] = weakref.WeakSet()
    problems: list[str] = []
    end = time.monotonic() + 1.5

    def load(name: str, chance: random.Random) -> Thing:
        with lock:
            loading[name] += 1
            if loading[name] > 1:
                problems.append(f"{name} is loaded twice at once")
        time.sleep(chance.random() * 0.003)
        with lock:
            loading[name] -= 1
        if chance.random() < 0.1:
            raise PruneError("by chance")
        thing = Thing(name)
        live.add(thing)
        return thing

    def work(number: int) -> int:
        chance, uses = random.Random(100 * seed + number), 0
        while time.monotonic() < end:
            names = chance.sample(list(sizes), chance.choice([1, 1, 2]))
            wants = [Want(name, sizes[name], lambda name=name: load(name, chance)) for name in names]
            try:
                with ExitStack() as stack:
                    things = stack.enter_context(cache.use_all(wants))
                    if [thing.key for thing in things] != names:
                        problems.append(f"asked for {names}, got {[thing.key for thing in things]}")
                    time.sleep(chance.random() * 0.002)
                    if not all(name in cache._entries and cache._entries[name].value is thing
                               for name, thing in zip(names, things, strict=True)):  # fmt: skip
                        problems.append(f"{names} went while they were used")
                    uses += 1
                    del things
            except PruneError as error:
                if str(error) != "by chance" and sum(sizes[name] for name in names) <= limit:
                    problems.append(str(error))
            if cache.bytes > limit:
                problems.append(f"{cache.bytes} bytes of {limit}")
        return uses

    with ThreadPoolExecutor(12) as pool:
        uses = [future.result(30) for future in [pool.submit(work, number) for number in range(12)]]
    assert problems == [] and sum(uses) > 20
    assert not any(entry.holders or entry.state != "ready" for entry in cache._entries.values())
    gc.collect()
    assert {thing.key for thing in live} == keys(cache)


def test_the_cache_of_the_process_follows_the_settings() -> None:
    assert models() is models() and models().limit == settings.current().memory_bytes
