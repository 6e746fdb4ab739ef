"""What two models take: counted exactly, timed in turns, and not at all beside other work."""

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from hf_prune.evaluation.speed import Run
from hf_prune.space import costing
from hf_prune.space.pair import Half, Loaded, Pair
from hf_prune.surgery import prune_layers

from ..evaluation.text import VOCAB, byte_tokenizer
from ..slicing.support import base, mixed, sliced_by
from ..tiny import tiny_model


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    costing.forget()
    yield
    costing.forget()


def loaded(model_type: str = "llama") -> Loaded:
    original, cut = (tiny_model(model_type, vocab_size=VOCAB, max_position_embeddings=256) for _ in range(2))
    return Loaded(original, prune_layers(cut, [2, 3, 4]), byte_tokenizer(), byte_tokenizer())


def pair(name: str = "org/pruned") -> Pair:
    return Pair(name, Half("org/base", "c0ffee", 8, 1, 1), Half(name, "decade", 5, 1, 1), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba"])
def test_counts_and_times_both(model_type: str) -> None:
    models = loaded(model_type)
    found = costing.cost(models, pair())
    for made, model, layers in ((found.original, models.original, 8), (found.pruned, models.pruned, 5)):
        parameters = sum(p.numel() for p in model.parameters())
        assert (made.layers, made.parameters, made.bytes) == (layers, parameters, 4 * parameters)
        assert made.memory is not None and made.memory >= made.bytes
        assert made.speed is not None and 2 <= made.speed.runs == made.speed.rounds <= 5
        for rate in (made.speed.prefill, made.speed.decode):
            assert 0 < rate.minimum <= rate.median <= rate.maximum
        assert (made.speed.prompt_tokens, made.speed.new_tokens, made.speed.batch) == (
            128,
            8,
            1,
        ) or model_type == "gpt2"
    assert found.original.speed.in_turns_with(found.pruned.speed)
    assert found.notes == ()


def test_sliced_models_have_a_cost() -> None:
    decoder = base("llama", dtype=torch.float32, vocab_size=VOCAB)
    sliced = sliced_by(decoder, mixed(decoder))
    found = costing.cost(Loaded(decoder.model, sliced, byte_tokenizer(), byte_tokenizer()), pair())
    assert found.pruned.parameters == sum(p.numel() for p in sliced.parameters()) != found.original.parameters
    assert found.pruned.speed is not None


def test_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at once: no two models are timed together, and no pair twice."""
    running, most, seen = [0], [0], []
    plain = costing.timed

    def spying(model: object, **lengths: int) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        seen.append(id(model))
        time.sleep(0.01)
        try:
            return plain(model, **lengths)
        finally:
            running[0] -= 1

    monkeypatch.setattr(costing, "timed", spying)
    monkeypatch.setattr(costing, "_BUDGET", 60)
    one, two = loaded(), loaded()
    asked = [(one, pair("org/a")), (two, pair("org/b")), (one, pair("org/a"))] * 3
    threads = [threading.Thread(target=costing.cost, args=args) for args in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    of_one, of_two = ([id(models.original), id(models.pruned)] for models in (one, two))
    turns, first = 6, of_one if seen[0] == of_one[0] else of_two
    assert seen == first * turns + (of_two if first is of_one else of_one) * turns


def test_figures_are_shown_again_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded()
    assert costing.known(pair()) is None
    first = costing.cost(models, pair())
    again = costing.cost(models, pair())
    assert (again.original, again.pruned) == (first.original, first.pruned)
    assert again.notes == ("Speed and memory were measured less than a minute ago.",)
    assert costing.known(pair("org/other")) is None
    moved = dataclasses.replace(pair(), pruned=dataclasses.replace(pair().pruned, commit="another"))
    assert costing.known(moved) is None, "another commit is another model"
    now = time.monotonic()
    monkeypatch.setattr(costing.time, "monotonic", lambda: now + 130)
    assert costing.known(pair()).notes == ("Speed and memory were measured 2 minutes ago.",)
    monkeypatch.setattr(costing.time, "monotonic", lambda: now + 601)
    assert costing.known(pair()) is None


def test_nothing_is_timed_beside_a_job() -> None:
    with costing.busy():
        found = costing.cost(loaded(), pair())
    assert found.original.speed is None and found.pruned.memory is None
    assert found.original.parameters > found.pruned.parameters
    assert "another job runs on this machine" in found.notes[0]
    assert costing.known(pair()) is None
    assert costing.cost(loaded(), pair()).pruned.speed is not None, "once it has ended"


def test_a_job_that_begins_meanwhile_spoils_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = costing.timed

    def beside(model: object, **lengths: int) -> object:
        with costing.busy():
            return plain(model, **lengths)

    monkeypatch.setattr(costing, "timed", beside)
    found = costing.cost(loaded(), pair())
    assert found.original.speed is None and found.notes
    assert costing.known(pair()) is None


def test_a_slow_model_is_run_little(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, runs = costing.timed, []

    def slow(model: object, **lengths: int) -> object:
        runs.append(lengths["runs"])
        time.sleep(0.2)
        return plain(model, **lengths)

    monkeypatch.setattr(costing, "timed", slow)
    monkeypatch.setattr(costing, "_BUDGET", 0.5)
    found = costing.cost(loaded(), pair())
    assert runs == [1] * 6 and found.original.speed.runs == 2


def test_what_slows_the_machine_down_falls_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as fast as each other, on a machine that gets five times slower in the middle."""
    models = loaded()
    seconds = iter([0.01] * 6 + [0.05] * 6)
    monkeypatch.setattr(costing, "timed", lambda *_, **__: [Run(*[next(seconds)] * 2)])
    found = costing.cost(models, pair())
    assert found.original.speed == found.pruned.speed
    assert found.original.speed.prefill.minimum < found.original.speed.prefill.maximum / 4


def test_only_the_latest_pairs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "_KEPT", 2)
    models = loaded()
    for name in ("org/a", "org/b", "org/c"):
        costing.cost(models, pair(name))
    assert [costing.known(pair(name)) is None for name in ("org/a", "org/b", "org/c")] == [True, False, False]
