"""Compare and Try a cut on a GPU (`pytest -m gpu`): pairs of the page's own cache, written and timed there."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from hf_prune.space import costing, cutting, pairs, settings
from hf_prune.space.cache import models
from hf_prune.space.comparing import compare
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO

from .conftest import NOBODY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PROMPT, SHORT = "The old man looked at the sea and", Sampling(max_new_tokens=24)


@pytest.fixture(autouse=True)
def on_gpu() -> Iterator[None]:
    """The page's own settings for this machine."""
    settings.use(settings.read(os.environ))
    costing.forget()
    assert settings.device() == "cuda"
    yield
    models().clear()


def test_the_demo_pair() -> None:
    last = list(compare(DEMO, PROMPT, SHORT, NOBODY))[-1]
    assert last.stage == "done" and last.original_cost.speed and last.pruned_cost.speed
    assert last.pruned_cost.memory < last.original_cost.memory
    with pairs.opened(pairs.find(DEMO, NOBODY), NOBODY) as loaded:
        assert loaded.original.device.type == loaded.pruned.device.type == "cuda"
        ids = loaded.tokenizer(PROMPT, return_tensors="pt").to("cuda")
        expected = loaded.original.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert last.original == loaded.tokenizer.decode(expected, skip_special_tokens=True)
    assert all(token.kl >= 0 for token in (*last.parting.original, *last.parting.pruned))


def test_drawn_again() -> None:
    drawn = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=24, seed=5)
    one, two = (list(compare(DEMO, PROMPT, drawn, NOBODY))[-1] for _ in range(2))
    assert (one.original, one.pruned) == (two.original, two.pruned)


@pytest.mark.parametrize("kind", ["adapter", "sliced"])
def test_pairs_of_the_hub(pushed: Callable[[str], str], kind: str) -> None:
    last = list(compare(pushed(kind), "The sea", SHORT, NOBODY))[-1]
    assert last.stage == "done" and last.parting is not None


def test_a_cut() -> None:
    last = list(cutting.compare_cut(pairs.find(DEMO, NOBODY), "uidl", 3, PROMPT, SHORT, NOBODY))[-1]
    assert last.stage == "done" and last.pruned_cost.layers == 9


def test_memory_comes_back() -> None:
    before = torch.cuda.memory_allocated()
    list(compare(DEMO, PROMPT, SHORT, NOBODY))
    assert torch.cuda.memory_allocated() > before
    models().clear()
    assert torch.cuda.memory_allocated() <= before + 2**20
