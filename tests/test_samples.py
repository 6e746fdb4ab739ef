"""Token sequences: padded batches, hashes, and their file."""

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.samples import Samples, batches, by_length, digest, hash_ids

from .making import TEXT

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9).map(torch.tensor), min_size=1, max_size=9
)


@given(SEQUENCES, st.integers(1, 5), st.integers(0, 9))
def test_batches_hold_every_token_once_in_order(sequences: list[torch.Tensor], size: int, pad: int) -> None:
    found = list(batches(sequences, size, pad))
    assert [len(batch.input_ids) for batch in found[:-1]] == [size] * (len(found) - 1)
    rows = [(ids, mask) for batch in found for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert len(rows) == len(sequences)
    for (ids, mask), sequence in zip(rows, sequences, strict=True):
        assert torch.equal(ids[: len(sequence)], sequence) and mask[: len(sequence)].all()
        assert (ids[len(sequence) :] == pad).all() and not mask[len(sequence) :].any()
    for batch in found:
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
        assert batch.attention_mask.all(0)[: batch.attention_mask.sum(1).min()].all()
        assert batch.attention_mask.any(0).all(), "a column of pads alone"


@given(SEQUENCES, st.integers(1, 5))
def test_sorted_sequences_need_few_pads(sequences: list[torch.Tensor], size: int) -> None:
    order = by_length(sequences)
    assert [id(s) for s in order] == [id(s) for _, s in sorted(enumerate(sequences), key=lambda p: (-len(p[1]), p[0]))]
    pads = sum(int((batch.attention_mask == 0).sum()) for batch in batches(order, size))
    assert pads <= size * (len(order[0]) - len(order[-1])), "however many batches there are"


def test_pads_are_told_by_the_mask_alone() -> None:
    (batch,) = batches([torch.tensor([5, 0, 0]), torch.tensor([5, 0])], 2, pad_id=0)
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


@given(SEQUENCES)
def test_same_samples_from_their_file(tmp_path_factory, sequences: list[torch.Tensor]) -> None:
    path = tmp_path_factory.mktemp("samples") / "ids.safetensors"
    samples = Samples(tuple(sequences), TEXT)
    samples.save(path)
    loaded = Samples.load(path, TEXT)
    assert len(loaded.sequences) == len(sequences) and loaded.use == TEXT
    for ours, theirs in zip(loaded.sequences, sequences, strict=True):
        assert ours.dtype == torch.int64 and torch.equal(ours, theirs)
    assert loaded.tokens == sum(map(len, sequences)) == samples.tokens
    assert digest(loaded.sequences) == digest(sequences)
    assert loaded.hashes() == samples.hashes()


def test_hashes_tell_sequences_apart() -> None:
    ids = torch.tensor([1, 2, 3])
    assert hash_ids(ids) == hashlib.sha256(b"\1\0\0\0\2\0\0\0\3\0\0\0").hexdigest()
    assert hash_ids(ids) == hash_ids(ids.int()) != hash_ids(torch.tensor([1, 2]))
    a, b = torch.tensor([1, 2]), torch.tensor([3])
    assert len({digest([a, b]), digest([b, a]), digest([ids]), digest([])}) == 4
    assert Samples((a, a, b), TEXT).hashes() == {hash_ids(a), hash_ids(b)}


def test_batch_moves_whole() -> None:
    (batch,) = batches([torch.tensor([1, 2])], 1)
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.attention_mask.device.type == "meta"
