"""Training rows: which token each position learns, and the batches that models get."""

import dataclasses

import torch

from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.view import IGNORED
from hf_prune.samples import Samples, digest
from tests.healing.support import text

MASKS = ([False, False, True, True], [False, True, False])
IDS = ([5, 6, 7, 8], [9, 10, 11])


def chat() -> Samples:
    sequences = tuple(torch.tensor(ids) for ids in IDS)
    learned = tuple(torch.tensor(mask) for mask in MASKS)
    use = dataclasses.replace(text(2, 0).use, samples=2, tokens=7, sha256=digest(sequences, learned))
    return Samples(sequences, use, learned)


def test_each_token_is_the_label_of_the_one_before_it():
    samples = text(5, seed=0)
    for row, ids in zip(Rows.of(samples).rows, samples.sequences, strict=True):
        assert row.labels.tolist() == [*ids[1:].tolist(), IGNORED] and row.position_ids is None


def test_labels_are_what_is_learned_alone():
    rows = Rows.of(chat())
    assert [row.labels.tolist() for row in rows.rows] == [
        [IGNORED, 7, 8, IGNORED],
        [10, IGNORED, IGNORED],
    ]
    assert rows.tokens == 7


def test_the_first_token_is_never_learned():
    samples = chat()
    first = tuple(torch.ones_like(mask) for mask in samples.learned)
    assert Rows.of(dataclasses.replace(samples, learned=first)).rows[0].labels.tolist() == [6, 7, 8, IGNORED]


def test_a_batch_tells_pads_by_the_mask():
    rows = Rows.of(chat())
    batch = collate([rows[1], rows[0]])
    assert batch["input_ids"].tolist() == [[9, 10, 11, 0], [5, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[10, IGNORED, IGNORED, IGNORED], [IGNORED, 7, 8, IGNORED]]
    assert batch["rows"].tolist() == [1, 0] and batch["lengths"].tolist() == [3, 4]
    assert "position_ids" not in batch


def test_a_packed_batch_tells_sequences_and_pads_by_positions():
    rows = Rows.packed(chat(), 7)
    assert len(rows) == 1 and rows.rows[0].labels.tolist() == [IGNORED, 7, 8, IGNORED, 10, IGNORED, IGNORED]
    longer = Rows.packed(text(1, seed=0, length=9), 9)
    batch = collate([rows[0], longer[0] | {"row": 1}])
    length = len(longer.rows[0].input_ids)
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 0, 1, 2][:length] + [0] * (length - 7)
    assert batch["position_ids"][1].tolist() == [*range(length), *[0] * (7 - length)]
    assert batch["lengths"].tolist() == [7, length]
    assert "attention_mask" not in batch


def test_digest_covers_what_is_learned(tmp_path):
    samples = chat()
    other = (samples.learned[0], torch.tensor([False, True, True]))
    assert digest(samples.sequences) != samples.use.sha256 != digest(samples.sequences, other)
    samples.save(tmp_path / "tokens.safetensors")
    again = Samples.load(tmp_path / "tokens.safetensors", samples.use)
    assert digest(again.sequences, again.learned) == samples.use.sha256
    assert [mask.tolist() for mask in again.learned] == [list(mask) for mask in MASKS]
    part = samples.part(1, 2)
    assert [mask.tolist() for mask in part.learned] == [MASKS[1]]
    assert part.use.sha256 == digest(part.sequences, part.learned)


def test_prompts_are_what_stands_before_the_first_answer():
    samples = chat()
    same = Samples((torch.tensor([5, 6, 1, 1, 1]),), samples.use, (torch.tensor([False, False, True, False, True]),))
    assert same.prompts() < samples.prompts() and len(samples.prompts()) == 2
    assert text(2, seed=0).prompts() == frozenset()
