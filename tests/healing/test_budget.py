import math

import pytest
import torch

from hf_prune.healing.budget import Throughput, eta, in_words, machine_tokens, probe, tokens_per_forward


def test_probe_measures_and_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    speed = probe("cpu", 1_000_000)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e7 < speed.flops < 1e15
    assert speed.dtype in ("bfloat16", "float32")


def test_six_operations_a_token_and_parameter():
    speed = Throughput(flops=1e12, dtype="float32")
    assert speed.tokens_per_second(2_000_000) == pytest.approx(speed.tokens_per_second(1_000_000) / 2)
    assert eta(1000, 1_000_000, speed) == pytest.approx(1000 / speed.tokens_per_second(1_000_000))
    assert speed.tokens_per_second(1_000_000) < 1e12 / 6e6


@pytest.mark.parametrize("seconds", [1.0, 10.0, 60.0, 1800.0])
def test_machine_tokens_is_the_largest_power_of_two_that_fits(seconds):
    speed = Throughput(flops=1e12, dtype="float32")
    tokens = machine_tokens(speed, 1_000_000, at_most=1 << 60, seconds=seconds)
    assert math.log2(tokens).is_integer()
    assert tokens <= speed.tokens_per_second(1_000_000) * seconds < 2 * tokens


def test_machine_tokens_has_bounds():
    slow = Throughput(flops=1.0, dtype="float32")
    assert machine_tokens(slow, 1_000_000, at_most=1 << 60) == 1024
    assert machine_tokens(slow, 1_000_000, at_most=100) == 100


def test_words():
    assert [in_words(s) for s in (4.4, 89, 600, 7200)] == ["4 s", "89 s", "10 min", "2.0 h"]


def test_tokens_per_forward_on_a_cpu():
    assert tokens_per_forward("cpu") == 4096
