"""Hidden states in memory or on disk: the same numbers, and nothing left behind."""

import gc
import os
from pathlib import Path

import psutil
import pytest
import torch

from hf_prune.activation_store import ActivationStore
from hf_prune.errors import OutputError
from hf_prune.slicing import slicer

from .support import base, full, mixed, sliced_by


def states(seed: int, dtype: torch.dtype = torch.float32, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, 8, generator=generator).to(dtype)


SIZE = 2 * 5 * 8 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("budget", "in_memory"), [(0, 0), (8 * SIZE, 4), (1, 0)])
def test_what_was_put_there_is_there(tmp_path: Path, dtype: torch.dtype, budget: int, in_memory: int) -> None:
    store = ActivationStore(budget, tmp_path)
    for batch in range(4):
        store[batch] = states(batch, dtype)
    for batch in range(4):
        assert store[batch].dtype == dtype and torch.equal(store[batch], states(batch, dtype))
    size = states(0, dtype).numel() * dtype.itemsize
    assert (store.in_memory, store.on_disk) == (in_memory * size, (4 - in_memory) * size)
    assert not list(tmp_path.iterdir()), "a file that a kill would leave behind"


def test_memory_first_then_disk(tmp_path: Path) -> None:
    store = ActivationStore(2 * SIZE + 1, tmp_path)
    for batch in range(5):
        store[batch] = states(batch)
    assert (store.in_memory, store.on_disk) == (2 * SIZE, 3 * SIZE)


@pytest.mark.parametrize("budget", [0, 2 * SIZE, 99 * SIZE])
def test_overwriting_takes_no_more_room(tmp_path: Path, budget: int) -> None:
    store = ActivationStore(budget, tmp_path)
    for round_ in range(3):
        for batch in range(4):
            store[batch] = states(10 * round_ + batch)
        assert all(torch.equal(store[batch], states(10 * round_ + batch)) for batch in range(4))
        assert store.in_memory + store.on_disk == 4 * SIZE and store.in_memory <= budget


@pytest.mark.parametrize("other", [states(0, rows=3), states(0, torch.float64)])
def test_another_shape_is_a_fault(tmp_path: Path, other: torch.Tensor) -> None:
    store = ActivationStore(0, tmp_path)
    store[0] = states(0)
    with pytest.raises(AssertionError, match="batch 0 was"):
        store[0] = other


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is not taken beforehand")
def test_room_on_disk_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    own = os.posix_fallocate

    def noting(file: int, start: int, size: int) -> None:
        reserved.append(start)
        own(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", noting)
    store = ActivationStore(0, tmp_path)
    for batch in range(3):
        store[batch] = states(batch)
    store.branch(1, "cut")
    del store[1]
    store["new"] = states(9)
    expected = {0: 0, 2: 2, "cut": 1, "new": 9}
    assert all(torch.equal(store[key], states(seed)) for key, seed in expected.items())
    assert len(reserved) == 4 and store.on_disk == 4 * SIZE


def test_room_goes_with_the_store(tmp_path: Path) -> None:
    store = ActivationStore(0, tmp_path)
    store[0] = states(0)
    kept = store[0]
    del store
    gc.collect()
    assert torch.equal(kept, states(0)), "what is still held stays readable"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="hidden states in .*gone: No such file or directory"):
        ActivationStore(0, tmp_path / "gone")[0] = states(0)


def test_budget_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=1000))
    assert ActivationStore().budget == 250


@pytest.mark.parametrize("basis", ["per_block", "global"])
@pytest.mark.parametrize("case", ["llama", "phi", "mixtral"])
def test_slicing_from_disk_is_slicing_from_memory(
    case: str, basis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = base(case, dtype=torch.float32)
    widths = mixed(decoder) if basis == "per_block" else full(decoder)
    stores: list[ActivationStore] = []

    def make(*args: object) -> ActivationStore:
        stores.append(ActivationStore(*args))
        return stores[-1]

    monkeypatch.setattr(slicer, "ActivationStore", make)
    size = 4 * 24 * 32 * 4  # the first of two batches
    models = [
        sliced_by(decoder, widths, basis=basis, budget=budget, scratch=tmp_path) for budget in (1 << 30, 0, size)
    ]
    assert [store.on_disk > 0 for store in stores] == [False, True, True]
    assert [store.in_memory > 0 for store in stores] == [True, False, True]
    wanted = models[0].state_dict()
    for model in models[1:]:
        found = model.state_dict()
        assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    stores.clear()
    gc.collect()
    assert not list(tmp_path.iterdir()), "scratch files are left"
