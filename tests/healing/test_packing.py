"""Packing: rows are filled well, sequences in a row never see each other, and models that cannot do it are refused."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import FAMILIES
from hf_prune.errors import ArchitectureError
from hf_prune.healing import heal
from hf_prune.healing.packing import check_packing, first_fit, pad_share
from hf_prune.healing.rows import MODEL_INPUTS, Rows, collate
from hf_prune.samples import Samples, digest
from tests.healing.support import SPEED, pruned_checkpoint, settings, split_text, text
from tests.tiny import VOCAB, tiny_model

# ALiBi, state spaces and convolutions, and families whose masks take no notice of positions.
UNABLE = {"qwen3_next", "gpt_oss", "opt", "bloom", "falcon", "mpt", "afmoe", "lfm2", "mamba"}
FAST = {"llama", "gemma2", "gpt2", "gpt_neo", "gptj", "mixtral", "deepseek_v3", "opt", "bloom", "lfm2", "mamba"}
MODEL_TYPES = [
    kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow)
    for family in FAMILIES
    for kind in family.model_types
]


def naive(lengths, room):
    rows = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [row for row in rows if sum(lengths[i] for i in row) + lengths[index] <= room]
        if fits:
            fits[0].append(index)
        else:
            rows.append([index])
    return rows


@given(st.lists(st.integers(2, 20), max_size=40), st.integers(20, 45))
def test_first_fit_is_first_fit(lengths, room):
    assert first_fit(lengths, room) == naive(lengths, room)


def test_many_sequences_are_packed_at_once():
    lengths = torch.randint(2, 2048, (50_000,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = first_fit(lengths, 2048)
    assert sorted(i for row in rows for i in row) == list(range(50_000))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 2048
    assert len(rows) < 1.01 * sum(lengths) / 2048 + 1


def test_pad_share():
    assert pad_share([4, 4, 4], 2) == 0
    assert pad_share([2, 6], 2) == pytest.approx(1 - 8 / 12)
    assert pad_share([2, 6], 1) == 0


def test_the_log_says_what_packing_saves(caplog):
    samples = text(30, seed=0, length=16)
    with caplog.at_level("INFO", "hf_prune"):
        rows = Rows.packed(samples, 32, micro_batch_size=4)
    assert f"30 sequences in {len(rows)} rows of at most 32 tokens" in caplog.text
    assert rows.tokens == samples.tokens and len(rows) < 30


def sequences_of(*lengths: int) -> Samples:
    generator = torch.Generator().manual_seed(1)
    sequences = tuple(torch.randint(VOCAB, (n,), generator=generator) for n in lengths)
    use = dataclasses.replace(text(1, 0).use, samples=len(sequences), sha256=digest(sequences))
    return Samples(sequences, use)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_packed_row_is_its_sequences_alone(model_type):
    """Those whose logits come out the same are taken, all others refused: in float32, and as they are shipped."""
    model = tiny_model(model_type)
    rows = Rows.packed(sequences_of(13, 5, 11, 2, 9, 3), 24)
    assert len(rows) == 2 and {len(row.input_ids) for row in rows.rows} == {24, 19}
    batch = collate([rows[0], rows[1]])
    given = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with torch.no_grad():
        packed = model(**given, use_cache=False).logits
        worst = 0.0
        for row, logits, positions in zip(rows.rows, packed, batch["position_ids"], strict=True):
            starts = [*[at for at, place in enumerate(positions.tolist()) if place == 0], len(positions)]
            for start, stop in zip(starts, starts[1:], strict=False):
                if stop > len(row.input_ids):
                    continue
                alone = model(input_ids=row.input_ids[None, start:stop], use_cache=False).logits[0]
                worst = max(worst, float((logits[start:stop] - alone).abs().max() / alone.abs().max()))
    able = model_type not in UNABLE
    assert (worst < 2e-5) is able, worst  # float32 rounds to 1.4e-5 in granitemoe, and to less in all others
    for dtype in (torch.float32, torch.bfloat16):
        model.train().to(dtype)
        if able:
            check_packing(model)
        else:
            with pytest.raises(ArchitectureError, match=f"'{model_type}'.*packing=False"):
                check_packing(model)
        assert model.training


def test_a_model_without_positions_is_refused():
    model = tiny_model("llama", 1)
    model.forward = lambda input_ids, use_cache=False: None
    with pytest.raises(ArchitectureError, match="takes no position_ids"):
        check_packing(model)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"))


def healed(pruned, folder, data, **changes):
    return heal(pruned, *data, settings(**changes), run_folder=folder, base_model="org/base", progress=False).record


def test_packed_healing_learns_what_unpacked_healing_learns(pruned, tmp_path, monkeypatch):
    """All of the text in one batch: one step sees the same positions, however they lie in rows."""
    exact = dataclasses.replace(SPEED, dtype="float32")
    monkeypatch.setattr("hf_prune.healing.job.probe", lambda device, parameters: exact)
    data = split_text()
    one = {"steps": 4, "dropout": 0.0, "warmup_steps": 0, "save_steps": 4, "max_length": 32, "learning_rate": 0.05}
    plain = healed(pruned, tmp_path / "a", data, **one, batch_size=20, micro_batch_size=5)
    rows = len(Rows.packed(data[0], 32))
    packed = healed(pruned, tmp_path / "b", data, **one, packing=True, batch_size=rows, micro_batch_size=rows)
    assert rows == 6 and packed.tokens == plain.tokens == 4 * data[0].tokens
    assert packed.train_loss == pytest.approx(plain.train_loss, rel=1e-4)
    assert packed.held_out.adapter == pytest.approx(plain.held_out.adapter, rel=1e-3)
    assert packed.held_out.adapter < packed.held_out.pruned - 0.1


@pytest.mark.usefixtures("fixed_speed")
def test_steps_count_rows(pruned, tmp_path):
    data = split_text()
    rows = Rows.packed(data[0], 16)
    record = healed(pruned, tmp_path, data, packing=True, batch_size=2, micro_batch_size=2, tokens=rows.tokens)
    assert record.steps == len(rows) // 2 and record.settings["epochs"] == pytest.approx(1, abs=0.2)


@pytest.mark.usefixtures("fixed_speed")
def test_healing_refuses_models_that_cannot_pack(tmp_path):
    pruned = pruned_checkpoint(tmp_path / "opt", "opt")
    with pytest.raises(ArchitectureError, match="sequences that share a row see each other"):
        healed(pruned, tmp_path / "run", split_text(), packing=True)
    assert not list((tmp_path / "run").rglob("checkpoint-*"))
