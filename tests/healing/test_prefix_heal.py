"""Healing as a whole with its frozen prefix on disk: the same model comes out, also of a run that was stopped."""

import dataclasses
import shutil

import pytest
import torch

from hf_prune import serial
from hf_prune.errors import ConfigError
from hf_prune.healing import heal
from hf_prune.healing.keeper import last_checkpoint
from hf_prune.healing.row_store import RowStore
from hf_prune.samples import Samples, digest
from tests.healing.support import pruned_checkpoint, settings, text

LENGTH, ROWS = 12, 12  # three steps of four rows a pass


@pytest.fixture(autouse=True)
def one_thread(fixed_speed):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"), depth=4)


def even_text() -> tuple[Samples, Samples]:
    """Sequences of one length: sums over them round alike in any batch."""
    whole = text(ROWS + 6, seed=0, length=2 * LENGTH)

    def cut(start: int, stop: int) -> Samples:
        part = tuple(ids[:LENGTH] for ids in whole.sequences[start:stop])
        use = dataclasses.replace(whole.use, samples=len(part), tokens=LENGTH * len(part), sha256=digest(part))
        return Samples(part, use)

    return cut(0, ROWS), cut(ROWS, ROWS + 6)


def go(pruned, run, **changes):
    given = {"target": "last", "last_blocks": 1, "steps": 8} | changes
    return heal(pruned, *even_text(), settings(**given), run_folder=run, base_model="org/base", progress=False)


@pytest.fixture(scope="module")
def recomputed(pruned, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_prune.healing.job.probe", lambda device, parameters: _speed())
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        result = go(pruned, tmp_path_factory.mktemp("recomputed"), prefix="recompute")
        torch.set_num_threads(threads)
    return result


def _speed():
    from tests.healing.support import SPEED

    return SPEED


def same_model(one, two) -> bool:
    state = two.model.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.model.state_dict().items())


def test_the_same_model_comes_out_and_the_record_says_what_was_spared(pruned, recomputed, tmp_path):
    stored = go(pruned, tmp_path, prefix=None)  # more than two passes
    assert same_model(stored, recomputed)
    assert stored.record.train_loss == recomputed.record.train_loss
    assert stored.record.held_out == recomputed.record.held_out
    assert stored.record.held_out.merged < stored.record.held_out.pruned
    assert "first 3 of 4 blocks" in stored.record.reused and recomputed.record.reused is None
    layout = serial.read_json(tmp_path / "prefix" / "store.json")
    assert layout["rows"] == ROWS and layout["fields"] == {"hidden": [32, "torch.bfloat16"]}
    assert stored.record.curve[-1].flops < recomputed.record.curve[-1].flops


def test_a_run_that_was_stopped_reads_the_rows_that_it_has(pruned, recomputed, tmp_path, monkeypatch):
    go(pruned, tmp_path, prefix="store")
    while last_checkpoint(tmp_path / "checkpoints").name != "checkpoint-6":
        shutil.rmtree(last_checkpoint(tmp_path / "checkpoints"))
    read = []
    get = RowStore.get
    monkeypatch.setattr(RowStore, "get", lambda self, row: (read.append(row), get(self, row))[1])
    monkeypatch.setattr(RowStore, "put", None)
    assert same_model(go(pruned, tmp_path, prefix="store"), recomputed)
    assert len(read) == 2 * 4  # the last two steps


@pytest.mark.slow
def test_four_bit_weights_below_are_stored_too(pruned, tmp_path):
    pytest.importorskip("bitsandbytes")
    plain = go(pruned, tmp_path / "plain", prefix="recompute", quantize="nf4")
    stored = go(pruned, tmp_path / "stored", prefix="store", quantize="nf4")
    assert same_model(stored, plain)
    assert stored.record.held_out == plain.record.held_out


@pytest.mark.slow
def test_recomputed_activations_and_a_stored_prefix_go_together(pruned, recomputed, tmp_path):
    assert same_model(go(pruned, tmp_path, prefix="store", recompute=True), recomputed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "mlp", "prefix": "store"}, "there is no frozen prefix"),
        ({"prefix": "share"}, "no original model is in memory"),
        ({"prefix": "store", "store_budget": "5KB"}, "takes 9,312 bytes on disk; expected at most 5,000 bytes"),
    ],
)
def test_what_cannot_be_had_is_refused_before_training(pruned, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        go(pruned, tmp_path, **changes)
    assert not (tmp_path / "checkpoints").exists()


def test_one_pass_says_that_storing_does_not_pay(pruned, tmp_path):
    record = go(pruned, tmp_path, prefix="store", steps=2).record
    assert any("prefix='store' does not pay" in note for note in record.warnings)
