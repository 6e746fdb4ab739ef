import time

import pytest
import torch

from hf_prune.evaluation import speed as module
from hf_prune.evaluation.speed import fit_lengths, growth, peak_memory, speed

from ..tiny import tiny_model


class Clock:
    """A clock that only forward passes move: one second for each position read."""

    def __init__(self, model):
        self.now, self.passes = 0.0, []
        model.register_forward_pre_hook(self.tick, with_kwargs=True)

    def tick(self, _, __, kwargs):
        assert kwargs["use_cache"] is True
        shape = tuple(kwargs["input_ids"].shape)
        cached = kwargs.get("past_key_values", kwargs.get("cache_params"))
        self.passes.append((shape, cached is not None, kwargs.get("logits_to_keep")))
        self.now += shape[1] * (1 + len(self.passes) / 1000)

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_rates_are_tokens_over_seconds_of_the_counted_runs(kind, monkeypatch):
    model = tiny_model(kind, 2)
    clock = Clock(model)
    monkeypatch.setattr(module, "time", clock)
    found = speed(model, batch=3, prompt_tokens=20, new_tokens=4, runs=3)
    run = [((3, 20), False, 1), *[((3, 1), True, 1)] * 4]
    assert clock.passes == run * 4  # one to warm up
    prefill = [3 * 20 / (20 * (1 + (5 * r + 1) / 1000)) for r in (1, 2, 3)]
    decode = [3 * 4 / sum(1 + (5 * r + i) / 1000 for i in (2, 3, 4, 5)) for r in (1, 2, 3)]
    for rate, expected in ((found.prefill, prefill), (found.decode, decode)):
        assert rate.median == pytest.approx(expected[1])
        assert rate.minimum == pytest.approx(expected[2])
        assert rate.maximum == pytest.approx(expected[0])
    assert (found.batch, found.prompt_tokens, found.new_tokens, found.runs) == (3, 20, 4, 3)


def test_real_time_is_taken():
    found = speed(tiny_model("llama", 2), prompt_tokens=16, new_tokens=4, runs=3)
    for rate in (found.prefill, found.decode):
        assert 0 < rate.minimum <= rate.median <= rate.maximum


@pytest.mark.parametrize(
    "limit, asked, expected",
    [(64, (20, 4), (20, 4)), (64, (512, 40), (32, 32)), (64, (512, 10), (54, 10)), (8, (512, 40), (4, 4))],
)
def test_lengths_fit_the_model(limit, asked, expected):
    model = tiny_model("gpt2", 1, n_positions=limit, max_position_embeddings=limit)
    assert fit_lengths(model, *asked) == expected
    found = speed(model, prompt_tokens=asked[0], new_tokens=asked[1], runs=1)
    assert (found.prompt_tokens, found.new_tokens) == expected


def test_a_model_without_a_limit_takes_what_is_asked():
    model = tiny_model("bloom", 1)
    assert fit_lengths(model, 512, 40) == (512, 40)


def test_growth_is_the_peak_above_the_start():
    def work():
        block = torch.ones(16 * 2**20)  # 64 MiB, touched
        time.sleep(0.05)
        del block
        torch.ones(2**20)

    kept = torch.ones(8 * 2**20)  # 32 MiB that were there before
    found = growth(work)
    assert len(kept) and 62 * 2**20 < found < 90 * 2**20


def test_peak_memory_counts_weights_and_cache_and_leaves_the_mode():
    model = tiny_model("llama", 2).train()
    found = peak_memory(model, weight_bytes=12345, prompt_tokens=20, new_tokens=3)
    assert 12345 <= found < 12345 + 200 * 2**20
    assert model.training


@pytest.mark.gpu
def test_growth_on_a_gpu():
    gpu = torch.device("cuda", 0)
    kept = torch.ones(2**20, device=gpu)
    assert growth(lambda: torch.ones(2**20, device=gpu), {gpu}) == 4 * 2**20
    assert kept.is_cuda
