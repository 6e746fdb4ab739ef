"""Measures of one pass find the same, to the bit, whether batches or blocks are the outer loop."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import precision
from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.block_weights import BlockWeights, StreamedWeights
from hf_prune.loading import Source, load_model
from hf_prune.measure import measure_model
from hf_prune.measures.states import StatePairs
from hf_prune.observing import Observer
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Samples, batches
from hf_prune.skeleton import skeleton
from hf_prune.units import Unit

from ..making import TEXT, reference
from ..tiny import DEPTH, tiny_model
from .walking import SEQUENCES

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((entry.name, {}) for entry in measure if entry.needs == "pass"),
    ("block_influence", {"tokens": "last"}),
    ("relative_magnitude", {"norm": "l1", "skip_first": True}),
    ("cosine", {"tokens": "last"}),
    ("cosine", {"skip_first": True}),
    ("cka", {"skip_first": True}),
]
CUT_TOO = ("block_influence", "relative_magnitude", "entropy", "sublayer_cosine", "sublayer_entropy")
"""Those that may look at a cut model."""


def saved(folder: Path, model_type: str, dtype: torch.dtype) -> Source:
    tiny_model(model_type).to(dtype).save_pretrained(folder)
    return Source(reference(DEPTH, model_type=model_type), folder, False)


def block_by_block(source: Source) -> tuple[Decoder, StreamedWeights]:
    """A decoder without weights, and what reads those of one block at a time; hidden states lie on disk meanwhile."""
    assert source.folder is not None
    decoder = skeleton(source)
    return decoder, StreamedWeights(decoder, source.folder, states_budget=0)


def observers(names: Collection[str] = ()) -> list[Observer]:
    return [measure.get(name).function(**options) for name, options in OPTIONS if not names or name in names]


def found(
    decoder: Decoder, weights: BlockWeights | None, seen: Collection[int | Unit] = (), names: Collection[str] = ()
) -> list[dict[str, Any]]:
    looking = observers(names)
    Walker(decoder, weights).walk(batches(SEQUENCES, 2), looking, seen=seen)
    return [observer.result() for observer in looking]


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("llama", torch.float32), *((name, torch.bfloat16) for name in ("llama", "gemma2", "gpt_neox", "opt", "mamba"))],
)
def test_blocks_outside_or_batches(
    model_type: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "faster_dtype", lambda _device, dtype: dtype)  # bfloat16 where the model is in it
    source = saved(tmp_path, model_type, dtype)
    whole = found(decoder_of(load_model(source)), None)
    assert found(*block_by_block(source)) == whole
    if model_type != "mamba":  # of which blocks are all there is
        gone = [1, Unit(3, "mlp"), Unit(5, "attention"), 7]
        cut = found(decoder_of(load_model(source)), None, gone, CUT_TOO)
        assert found(*block_by_block(source), gone, CUT_TOO) == cut
        kept = [value for value, (name, _) in zip(whole, OPTIONS, strict=True) if name in CUT_TOO]
        assert all(one != other for one, other in zip(cut, kept, strict=True))


def test_half_precision_scores_are_near_those_of_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are in float64: what differs is what the model computes."""
    monkeypatch.setattr(precision, "faster_dtype", lambda _device, dtype: dtype)
    model = tiny_model("llama").bfloat16()
    halves, fulls = found(decoder_of(model), None), found(decoder_of(model.float()), None)
    for half, full, (name, _) in zip(halves, fulls, OPTIONS, strict=True):
        if "entropy" in name:
            continue  # channels of few values fall into other bins
        for key in ("distances", "importances"):
            for one, other in zip(_numbers(half.get(key)), _numbers(full.get(key)), strict=True):
                assert one == pytest.approx(other, abs=0.05), name


def _numbers(of: Any) -> list[float]:
    if isinstance(of, dict):
        of = list(of.values())
    return [n for part in of for n in _numbers(part)] if isinstance(of, tuple | list) else [] if of is None else [of]


def test_states_of_many_layers_lie_on_disk_where_memory_is_short(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama"))
    in_memory = [observer for observer in observers() if isinstance(observer, StatePairs)]
    on_disk = [observer for observer in observers() if isinstance(observer, StatePairs)]
    for observer in on_disk:
        observer._store = ActivationStore(0, tmp_path)
    Walker(decoder).walk(batches(SEQUENCES, 2), [*in_memory, *on_disk])
    assert len(on_disk) == 5
    for one, other in zip(in_memory, on_disk, strict=True):
        assert one.result() == other.result()
        assert other._store._end > 0 == other._store.on_disk == other._store.in_memory


@pytest.mark.parametrize("bound", [0, 6000, None])
def test_they_keep_to_the_folder_and_the_bound_of_the_walk(
    bound: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walker's own states and those of each observer share what there is."""
    stores: list[ActivationStore] = []
    keep = ActivationStore.__setitem__
    most = 0

    def watched(store: ActivationStore, key: Any, hidden: torch.Tensor) -> None:
        nonlocal most
        if not any(store is known for known in stores):
            stores.append(store)
        keep(store, key, hidden)
        most = max(most, sum(one.in_memory for one in stores))

    monkeypatch.setattr(ActivationStore, "__setitem__", watched)
    source = saved(tmp_path / "model", "llama", torch.float32)
    decoder, weights = block_by_block(source)
    weights.states_budget = bound
    looking = observers(["cosine", "cka"])
    Walker(decoder, weights, tmp_path).walk(batches(SEQUENCES, 2), looking)
    assert len(stores) == 1 + len(looking) and {store._folder for store in stores} == {tmp_path}
    assert bound is None or most <= bound
    assert [store._end > 0 for store in stores] == [bound is not None] * len(stores)
    resident = observers(["cosine", "cka"])
    Walker(decoder_of(load_model(source))).walk(batches(SEQUENCES, 2), resident)
    for one, other in zip(looking, resident, strict=True):
        numbers = [_numbers(of.result()["distances"]) for of in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-12)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_sums_of_two_processes_are_those_of_one(name: str, options: dict[str, Any]) -> None:
    decoder, (one, two, all_) = decoder_of(tiny_model("llama")), (measure.get(name).function(**options) for _ in "123")
    for observer, sequences in ((one, SEQUENCES[:3]), (two, SEQUENCES[3:]), (all_, SEQUENCES)):
        Walker(decoder).walk(batches(sequences, 1), [observer])
    for mine, other in zip(one.sums(), two.sums(), strict=True):
        assert mine.dtype == torch.float64 and mine.device.type == "cpu"
        with torch.inference_mode():
            mine += other
    flat = {key: _numbers(value) for key, value in all_.result().items()}
    for key, value in one.result().items():
        if key == "forwards":
            continue  # each process finds out for itself what the parts of blocks read
        assert _numbers(value) == pytest.approx(flat[key], abs=1e-7), key


def test_records_are_equal_too(tmp_path: Path) -> None:
    source = saved(tmp_path, "llama", torch.float32)
    samples = Samples(tuple(SEQUENCES), TEXT)
    for name, options in (("cka", {}), ("sublayer_cosine", {}), ("block_influence", {"tokens": "last"})):
        given: dict[str, Any] = {"model": source.ref, "name": name, "options": options, "batch_size": 2}
        resident = measure_model(decoder_of(load_model(source)), samples, **given)
        decoder, weights = block_by_block(source)
        record = measure_model(decoder, samples, weights=weights, scratch=tmp_path, **given)
        assert dataclasses.replace(record, seconds=0) == dataclasses.replace(resident, seconds=0)
        assert type(record).load(record.save(tmp_path)) == record
