"""Text as token sequences: every source, no overlap between stages, and each way in which it can be missing."""

import gzip
import itertools
import json
import random
import re
from dataclasses import replace

import httpx2
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_prune import calibration, documents, passages
from hf_prune.config import PAPER, SAME, CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.documents import Source
from hf_prune.errors import ConfigError, DataError
from hf_prune.methods import METHODS
from hf_prune.samples import digest, hash_ids

from .evaluation.text import VOCAB, byte_tokenizer
from .tiny import tiny_model

UIDL = METHODS["uidl"]
NO_PAPER = replace(UIDL, name="plain", dataset=None)
STAGES = ("calibration", "evaluation", "healing")
WORDS = 3000


def word_tokenizer(front=True, back=False):
    """Word "w7" is id 7 + 3: sequences tell exactly which words of the text they hold."""
    vocabulary = {"[UNK]": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = f"{'<s> ' if front else ''}$A{' </s>' if back else ''}"
    special = [("<s>", 1)] * front + [("</s>", 2)] * back
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")


def words(start, stop):
    return " ".join(f"w{i}" for i in range(start, stop))


def load(config, stage="calibration", tokenizer=None, limit=10_000, method=UIDL, shared=False, **options):
    return calibration.load(
        config,
        stage=stage,
        method=method,
        tokenizer=tokenizer or word_tokenizer(),
        limit=limit,
        shared=shared,
        **options,
    )


def words_of(samples):
    """The words of each sequence, sequences in order of their first word."""
    return sorted([i - 3 for i in s.tolist() if i > 2] for s in samples.sequences)


def write(path, texts, column="text"):
    rows = [{"id": i, column: text} for i, text in enumerate(texts)]
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".jsonl"):
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        plain.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    else:
        assert len(texts) == 1
        plain.write_text(texts[0])
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.fixture
def many(tmp_path):
    """A file of 150 documents of ten words."""
    return write(tmp_path / "many.jsonl", [words(10 * i, 10 * i + 10) for i in range(150)])


def stream_of(monkeypatch, texts, revision="c0ffee"):
    """Let any Hub id name the texts that this function gives; returns the list of those that were pulled."""
    pulled = []

    def rows():
        for text in texts():
            pulled.append(text)
            yield {"text": text}

    monkeypatch.setattr(documents, "load_dataset", lambda *args, **options: IterableDataset.from_generator(rows))
    monkeypatch.setattr(documents, "_commit", lambda source, token: revision)
    return pulled


# Sources


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "jsonl.gz", "json.gz"])
def test_files_of_rows(tmp_path, suffix):
    texts = [words(0, 5), words(5, 7), "", words(7, 20)]
    path = write(tmp_path / f"some.{suffix}", texts)
    found = load(CalibrationConfig(dataset=str(path), max_length=100))
    assert words_of(found) == [list(range(5)), [5, 6], list(range(7, 20))]
    assert all(s[0] == 1 and s.dtype == torch.int64 and s.ndim == 1 for s in found.sequences)


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_a_text_file_is_one_document_cut_into_sequences(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(calibration, "_PASSAGE", 1000)
    path = write(tmp_path / f"book.{suffix}", [words(0, 50) + "\n\n" + words(50, 104)])
    found = load(CalibrationConfig(dataset=str(path), max_length=11))
    # Ten words and the start token each; the rest of four words is shorter than half a sequence.
    assert words_of(found) == [list(range(i, i + 10)) for i in range(0, 100, 10)]
    assert found.use.dataset == path.name and found.use.config is found.use.split is found.use.revision is None


def test_a_rest_of_half_a_sequence_is_kept(tmp_path):
    path = write(tmp_path / "book.txt", [words(0, 15)])
    assert words_of(load(CalibrationConfig(dataset=str(path), max_length=11))) == [
        list(range(10)),
        list(range(10, 15)),
    ]


def test_a_folder_of_files(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    write(folder / "train.jsonl", [words(0, 5), words(5, 10)])
    write(folder / "validation.parquet", [words(10, 15)])
    write(folder / "deep" / "train-more.txt.gz", [words(15, 20)])
    (folder / "notes.md").write_text("not text")
    config = CalibrationConfig(dataset=str(folder), max_length=100)
    every = [list(range(i, i + 5)) for i in (0, 5, 10, 15)]
    assert words_of(load(config)) == every
    assert words_of(load(replace(config, split="validation"))) == every[2:3]
    train = load(replace(config, split="train"))
    assert words_of(train) == [every[0], every[1], every[3]]
    assert train.use.dataset == "data" and train.use.split == "train"
    with pytest.raises(DataError, match=r"starts with 'test'; it has: .*train.jsonl.*--split"):
        load(replace(config, split="test"))


def test_another_column(tmp_path):
    path = write(tmp_path / "some.jsonl", [words(0, 5)], column="body")
    assert words_of(load(CalibrationConfig(dataset=str(path), text_column="body"))) == [list(range(5))]


def test_paths_never_reach_the_record(tmp_path, many, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (str(many), "many.jsonl", "./many.jsonl"):
        assert load(CalibrationConfig(dataset=name)).use.dataset == "many.jsonl"
    assert load(CalibrationConfig(dataset=".")).use.dataset == tmp_path.name


# Sequences


def test_special_tokens_as_the_tokenizer_adds_them(tmp_path):
    path = write(tmp_path / "book.txt", [words(0, 20)])
    config = CalibrationConfig(dataset=str(path), max_length=12)
    both = load(config, tokenizer=word_tokenizer(back=True))
    assert sorted(s.tolist() for s in both.sequences) == [[1, *range(3, 13), 2], [1, *range(13, 23), 2]]
    none = load(config, tokenizer=word_tokenizer(front=False))
    assert sorted(s.tolist() for s in none.sequences) == [list(range(3, 15)), list(range(15, 23))]


@pytest.mark.parametrize("options", [{}, {"pad": False}, {"pad": False, "eos": False}])
def test_byte_tokenizers_without_special_tokens(tmp_path, options):
    path = write(tmp_path / "book.txt", ["The sea is calm to-night, the tide is full."])
    tokenizer = byte_tokenizer(**options)
    found = load(CalibrationConfig(dataset=str(path), max_length=10), tokenizer=tokenizer)
    pieces = {tokenizer.decode(s) for s in found.sequences}
    assert len(pieces) > 3 and all(piece in "The sea is calm to-night, the tide is full." for piece in pieces)


def test_lengths_are_clipped_to_the_model(many, caplog):
    caplog.set_level("INFO")
    found = load(CalibrationConfig(dataset=str(many), max_length=512), limit=6)
    assert max(map(len, found.sequences)) == found.use.max_length == 6
    assert "max_length=512 of calibration is clipped to the model's 6 positions" in caplog.text


def test_seed_and_record(many):
    config = CalibrationConfig(dataset=str(many), samples=20, seed=5)
    one, again, other = load(config), load(config), load(replace(config, seed=6))
    assert one.use == again.use and all(map(torch.equal, one.sequences, again.sequences))
    assert words_of(one) != words_of(other)
    assert one.use.sha256 == digest(one.sequences) != other.use.sha256
    assert one.use.samples == 20 and one.use.tokens == 20 * 11 == one.tokens and one.use.seed == 5
    starts = [s[1].item() for s in one.sequences]
    assert starts != sorted(starts) and max(starts) > 1000


def test_fewer_samples_than_wanted(many, caplog):
    found = load(CalibrationConfig(dataset=str(many), samples=200))
    assert found.use.samples == len(found.sequences) == 150
    assert "calibration text: 200 samples wanted, 'many.jsonl' gives 150" in caplog.text


def test_packed_sequences_are_full(many):
    config = HealingConfig(dataset=str(many), max_length=16)
    found = load(
        config, "healing", samples=1000, pack=True, exclude=frozenset({hash_ids(torch.tensor([1, *range(13, 23)]))})
    )
    assert {len(s) for s in found.sequences} == {16}
    stream = torch.cat(found.sequences).tolist()
    documents_ = [[i for i in part if i != 1] for part in split_at(stream, 2)]
    assert all(part == list(range(part[0], part[0] + 10)) for part in documents_[:-1])
    assert 13 not in stream and 15 not in stream and len(documents_) >= 140


def split_at(ids, separator):
    return [list(run) for same, run in itertools.groupby(ids, lambda i: i == separator) if not same]


def test_short_documents_are_left_out(tmp_path):
    path = write(tmp_path / "some.jsonl", ["w1", "w2", words(3, 5)])
    found = load(CalibrationConfig(dataset=str(path)), tokenizer=word_tokenizer(front=False))
    assert words_of(found) == [[3, 4]]


def test_excluded_sequences_do_not_come_up(many):
    config = CalibrationConfig(dataset=str(many), samples=150)
    first = load(replace(config, samples=100))
    rest = load(config, exclude=first.hashes())
    assert len(rest.sequences) == 50 and not rest.hashes() & first.hashes()
    with pytest.raises(DataError, match="all 150 sequences .* used by other stages"):
        load(config, exclude=first.hashes() | rest.hashes())


# Streams


def test_a_stream_is_read_only_as_far_as_needed(monkeypatch):
    pulled = stream_of(monkeypatch, lambda: (words(i % 2000, i % 2000 + 5) for i in itertools.count()))
    monkeypatch.setattr(passages, "_BUFFER_PASSAGES", 300)
    found = load(CalibrationConfig(dataset="org/endless", samples=50))
    assert len(found.sequences) == 50 and len(pulled) <= 300 + 50 + 1
    assert found.use.dataset == "org/endless" and found.use.split == "train" and found.use.revision == "c0ffee"


def test_the_buffer_is_bounded_in_characters_too(monkeypatch):
    pulled = stream_of(monkeypatch, lambda: (words(0, 200) for _ in itertools.count()))
    monkeypatch.setattr(passages, "_BUFFER_CHARACTERS", 100_000)
    load(CalibrationConfig(dataset="org/endless", samples=10))
    assert len(pulled) < 150 + 10


def test_the_shuffle_loses_and_doubles_nothing(monkeypatch):
    monkeypatch.setattr(passages, "_BUFFER_PASSAGES", 7)
    items = [(None, str(i)) for i in range(100)]
    shuffled = list(passages.shuffled(items, 0))
    assert sorted(shuffled) == sorted(items) and shuffled != items


def test_the_paper_truncates_documents(monkeypatch):
    stream_of(monkeypatch, lambda: [words(20 * i, 20 * i + 20) for i in range(10)])
    calibrated = CalibrationConfig(dataset=PAPER, max_length=6)
    found = load(calibrated)
    assert words_of(found) == [list(range(20 * i, 20 * i + 5)) for i in range(10)]
    assert (found.use.dataset, found.use.config, found.use.split) == ("allenai/c4", "en", "validation")
    healed = load(HealingConfig(max_length=6), "healing", samples=3, calibration=calibrated)
    assert (healed.use.split, len(healed.sequences)) == ("train", 3)
    assert all((s[1].item() - 3) % 20 == 0 for s in healed.sequences)


# Self-generated text


def test_no_dataset_samples_from_the_model():
    model, tokenizer = tiny_model("llama", 2, vocab_size=VOCAB), byte_tokenizer()
    config = CalibrationConfig(samples=4, max_length=12, seed=3)
    made = {
        "calibration": load(config, tokenizer=tokenizer, model=model),
        "evaluation": load(
            EvaluationConfig(samples=4, max_length=12, seed=3),
            "evaluation", tokenizer=tokenizer, model=model, calibration=config,
        ),
        "healing": load(
            HealingConfig(max_length=12, seed=3), "healing", samples=4, tokenizer=tokenizer, model=model,
            calibration=config,
        ),
    }  # fmt: skip
    for one, other in itertools.combinations(made.values(), 2):
        assert not {s[1:4].tolist().__str__() for s in one.sequences} & {
            s[1:4].tolist().__str__() for s in other.sequences
        }
    assert all(samples.use.seed == 3 and samples.use.dataset is None for samples in made.values())
    again = load(config, tokenizer=tokenizer, model=model)
    assert again.use == made["calibration"].use
    barred = load(config, tokenizer=tokenizer, model=model, exclude=again.hashes())
    assert not barred.hashes() & again.hashes()


def test_no_dataset_and_no_model():
    with pytest.raises(
        DataError, match="dataset=None .*calibration text from the original model, which is not at hand"
    ):
        load(CalibrationConfig())


# Which text is whose


TEXTS = st.lists(st.integers(1, 400), min_size=1, max_size=130)


@settings(max_examples=60, deadline=None)
@given(
    sizes=TEXTS,
    lengths=st.tuples(*[st.integers(3, 90)] * 3),
    seeds=st.tuples(*[st.integers(0, 9)] * 3),
    data=st.data(),
)
def test_stages_never_share_a_word(sizes, lengths, seeds, data):
    """Whatever the documents, lengths and seeds, and whatever the order in which documents come."""
    ends = list(itertools.accumulate(sizes))
    texts = [words(end - size, end) for size, end in zip(sizes, ends, strict=True) if end <= WORDS] or [words(0, 5)]
    seen: list[set[int]] = []
    for stage, length, seed in zip(STAGES, lengths, seeds, strict=True):
        order = data.draw(st.permutations(texts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration, "open_stream", lambda *args, order=order, **options: (iter(order), None))
            try:
                found = load(
                    CalibrationConfig(dataset="org/any", max_length=length, samples=10**6, seed=seed),
                    stage,
                    shared=True,
                )
            except DataError as error:
                assert "nothing is left for" in str(error)
                continue
        seen.append({i for s in found.sequences for i in s.tolist() if i > 2})
    assert all(not one & other for one, other in itertools.combinations(seen, 2))


@pytest.mark.parametrize("count", [1, 12, 99, 100, 150])
def test_stages_together_get_all_of_the_text(count):
    size = WORDS // count
    texts = [words(size * i, size * i + size) for i in range(count)]
    shares = {stage: [text for text in passages.passages_of(iter(texts), stage, 0, 10**6, False)] for stage in STAGES}
    owned = {stage: sorted(re.findall(r"w\d+", " ".join(parts))) for stage, parts in shares.items()}
    assert sorted(sum(owned.values(), [])) == sorted(f"w{i}" for i in range(size * count))
    parts = {stage: len(found) / (size * count) for stage, found in owned.items()}
    assert (
        0.1 <= parts["calibration"] <= 0.3 and 0.03 <= parts["evaluation"] <= 0.2 and 0.55 <= parts["healing"] <= 0.85
    )


def test_cutting_loses_nothing_and_spares_words():
    text = "one two three\nfour " * 50 + "x" * 100
    pieces = list(passages.cut(text, 30))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 30
    assert all(piece[0] in " \n" for piece in pieces[1:-4])


def test_a_second_seed_gives_other_text_of_the_same_stage(many):
    """Held-out text is healing text with another seed; sequences of equal length either agree or do not overlap."""
    config = HealingConfig(dataset=str(many), max_length=6)
    held_out = load(replace(config, seed=1), "healing", samples=8, shared=True)
    trained = load(config, "healing", samples=10**6, shared=True, exclude=held_out.hashes())
    seen = [{i for s in samples.sequences for i in s.tolist() if i > 2} for samples in (held_out, trained)]
    assert len(held_out.sequences) == 8 and not seen[0] & seen[1]


def test_resolve():
    own = CalibrationConfig(dataset="org/a", dataset_config="en", split="train", text_column="body")
    assert calibration.resolve(own, "calibration", UIDL, None) == Source("org/a", "en", "train", "body")
    assert calibration.resolve(EvaluationConfig(), "evaluation", UIDL, own) == Source("org/a", "en", "train", "body")
    other = EvaluationConfig(split="test")
    assert calibration.resolve(other, "evaluation", UIDL, own) == Source("org/a", "en", "test", "body")
    assert calibration.resolve(EvaluationConfig(), "evaluation", UIDL, CalibrationConfig()) is None
    assert calibration.resolve(HealingConfig(dataset=None), "healing", UIDL, own) is None
    paper = CalibrationConfig(dataset=PAPER)
    c4 = Source("allenai/c4", "en", "validation")
    assert calibration.resolve(paper, "calibration", UIDL, None) == c4
    assert calibration.resolve(EvaluationConfig(), "evaluation", UIDL, paper) == c4
    assert calibration.resolve(HealingConfig(), "healing", UIDL, paper) == replace(c4, split="train")
    assert calibration.resolve(HealingConfig(dataset=PAPER, split="x"), "healing", UIDL, None).split == "x"
    with pytest.raises(ConfigError, match="method 'plain' names no dataset"):
        calibration.resolve(paper, "calibration", NO_PAPER, None)
    with pytest.raises(ConfigError, match="not given"):
        calibration.resolve(HealingConfig(), "healing", UIDL, None)
    with pytest.raises(ConfigError, match="refers to itself"):
        load(CalibrationConfig(dataset=SAME), calibration=CalibrationConfig(dataset=SAME))


@pytest.mark.parametrize(
    ("calibrated", "evaluated", "healed", "expected"),
    [
        ({"dataset": "org/a"}, {}, {}, (True, True, True)),
        ({"dataset": "org/a"}, {"dataset": "org/b"}, {"dataset": "org/c"}, (False, False, False)),
        ({"dataset": "org/a", "split": "validation"}, {"split": "test"}, {"split": "train"}, (False, False, False)),
        ({"dataset": "org/a"}, {"split": "train"}, {"split": "test"}, (True, True, False)),
        ({"dataset": "org/a", "split": "train"}, {"split": "train[:9]"}, {"split": "test"}, (True, True, True)),
        ({"dataset": "org/a"}, {"dataset": "org/a", "dataset_config": "en"}, {"dataset": None}, (True, True, False)),
        ({"dataset": PAPER}, {}, {}, (True, True, False)),
        ({}, {}, {}, (False, False, False)),
    ],
)
def test_shares(calibrated, evaluated, healed, expected):
    config = PrunerConfig(
        calibration=CalibrationConfig(**calibrated),
        evaluation=EvaluationConfig(**evaluated),
        healing=HealingConfig(**healed),
    )
    assert tuple(calibration.shares(config, stage) for stage in STAGES) == expected


def test_files_without_a_split_overlap_all_splits(tmp_path):
    folder = Source(str(tmp_path))
    assert folder.overlaps(replace(folder, split="train"))
    assert not replace(folder, split="test").overlaps(replace(folder, split="train"))


# What can be wrong


def refused(match, error=DataError, tokenizer=None, **fields):
    with pytest.raises(error, match=match):
        load(CalibrationConfig(**fields), tokenizer=tokenizer)


def test_settings_that_are_missing(many):
    with pytest.raises(ConfigError, match="HealingConfig tells no number of samples"):
        load(HealingConfig(dataset=str(many), max_length=5), "healing")
    with pytest.raises(ConfigError, match="HealingConfig tells no max_length"):
        load(HealingConfig(dataset=str(many)), "healing", samples=3)
    refused("max_length=1 leaves no room for text; expected at least 2", ConfigError, dataset=str(many), max_length=1)


def test_missing_files(tmp_path):
    refused("no file or folder '.*gone.jsonl'", dataset=str(tmp_path / "gone.jsonl"))
    refused("no file or folder 'gone.txt.gz'", dataset="gone.txt.gz")
    refused("no file or folder 'a/b/c'", dataset="a/b/c")
    refused(r"no text in the folder .*\.jsonl", dataset=str(tmp_path))
    (tmp_path / "notes.md").write_text("text")
    refused(r"cannot tell what 'notes.md' holds.*\.txt", dataset=str(tmp_path / "notes.md"))


def test_missing_column(tmp_path):
    path = write(tmp_path / "some.jsonl", [words(0, 5)], column="texts")
    refused(r"no column 'text'; it has: id, texts\. Did you mean 'texts'\? .*--text-column", dataset=str(path))
    refused("column 'id' .* holds int; expected text", dataset=str(path), text_column="id")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jsonl", b""),
        ("empty.json", b""),
        ("empty.txt", b""),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("blank.txt", b" \n \n"),
        ("blank.jsonl", b'{"text": ""}\n{"text": null}\n'),
    ],
)
def test_empty_datasets(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused("is empty: no row has text in column 'text'", dataset=str(tmp_path / name))


def test_an_empty_file_among_others(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    write(tmp_path / "b.jsonl", [words(0, 5)])
    assert words_of(load(CalibrationConfig(dataset=str(tmp_path)))) == [list(range(5))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b'{"text": "w1 w2"}\n{"text": "w3'),
        ("broken.txt", b"\xff\xfe\x00bad"),
        ("broken.parquet", b"not parquet"),
        ("broken.txt.gz", gzip.compress(random.Random(0).randbytes(5000), mtime=0)[:3000]),
        ("broken.jsonl.gz", gzip.compress(b'{"text": "w1"}\n' * 5000, mtime=0)[:-20]),
    ],
)
def test_broken_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(f"cannot read the dataset '.*{name}'", dataset=str(tmp_path / name))


def test_all_samples_too_short(tmp_path):
    path = write(tmp_path / "short.jsonl", ["w1", "w2", "w3"])
    refused("3 samples all shorter than two tokens", dataset=str(path), tokenizer=word_tokenizer(front=False))


def test_too_little_text_to_share(tmp_path):
    path = write(tmp_path / "one.jsonl", [words(0, 5)])
    config = CalibrationConfig(dataset=str(path))
    assert len(load(config, shared=True).sequences) == 1
    with pytest.raises(DataError, match="too short to be shared .* nothing is left for evaluation"):
        load(config, "evaluation", shared=True)


def test_too_little_text_to_pack(tmp_path):
    path = write(tmp_path / "one.jsonl", [words(0, 5)])
    with pytest.raises(DataError, match="less text than one packed sequence"):
        load(HealingConfig(dataset=str(path), max_length=50), "healing", samples=3, pack=True)


# The Hub


def test_unreachable(monkeypatch):
    def no_network(self, *args, **kwargs):
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_network)
    refused("cannot read the dataset 'allenai/c4'.*cannot be reached.*--dataset", dataset=PAPER)


def test_offline_with_nothing_cached(monkeypatch):
    def offline(*args, **options):
        assert options["revision"] is None
        raise ConnectionError("Couldn't reach the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.setattr(documents, "load_dataset", offline)
    refused("cannot read the dataset 'org/a'.*OfflineModeIsEnabled.*--dataset", dataset="org/a")


def test_connection_lost_while_reading(monkeypatch):
    def rows():
        yield {"text": words(0, 5)}
        raise httpx2.ReadTimeout("too slow")

    monkeypatch.setattr(documents, "load_dataset", lambda *args, **options: IterableDataset.from_generator(rows))
    monkeypatch.setattr(documents, "_commit", lambda source, token: None)
    refused("cannot read the dataset 'org/a': too slow.*--dataset", dataset="org/a")


def rows_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_dataset_of_the_hub(hub, new_repo_id):
    repo = new_repo_id()
    commit = hub.add_repo(
        repo,
        {
            "data/train-0.jsonl": rows_of([words(0, 5), words(5, 10)]),
            "data/train-1.jsonl": rows_of([words(10, 15)]),
            "data/validation.jsonl": rows_of([words(20, 25)]),
        },
        repo_type="dataset",
    )
    found = load(CalibrationConfig(dataset=repo))
    assert words_of(found) == [list(range(5)), list(range(5, 10)), list(range(10, 15))]
    assert (found.use.dataset, found.use.split, found.use.revision) == (repo, "train", commit)
    assert words_of(load(CalibrationConfig(dataset=repo, split="validation"))) == [list(range(20, 25))]
    refused(r"has no split 'test': .*validation.*--split", dataset=repo, split="test")
    refused(r"has no config 'de'.*default.*--dataset-config", dataset=repo, dataset_config="de")


def test_a_dataset_of_several_configs(hub, new_repo_id):
    repo = new_repo_id()
    card = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    files = {"README.md": card.encode(), "en.jsonl": rows_of([words(0, 5)]), "de.jsonl": rows_of([words(5, 10)])}
    hub.add_repo(repo, files, repo_type="dataset")
    refused(r"has several configs: \['en', 'de'\].*--dataset-config", dataset=repo)
    found = load(CalibrationConfig(dataset=repo, dataset_config="de"))
    assert words_of(found) == [list(range(5, 10))] and found.use.config == "de"


def test_a_dataset_that_may_not_be_read(hub, new_repo_id):
    refused("no dataset 'alice/nothing-here' on the Hub.*--dataset", dataset="alice/nothing-here")
    private = new_repo_id()
    hub.add_repo(private, {"train.jsonl": rows_of([words(0, 5)])}, repo_type="dataset", private=True)
    refused(f"no dataset '{private}' on the Hub.*or it is private.*hf auth login", dataset=private)
    gated = new_repo_id()
    hub.add_repo(gated, {"train.jsonl": rows_of([words(0, 5)])}, repo_type="dataset", gated=True)
    refused(f"'{gated}'.*gated.*hf auth login", dataset=gated)


def test_a_private_dataset_with_a_token(hub, new_repo_id, hub_token):
    repo = new_repo_id()
    hub.add_repo(repo, {"train.jsonl": rows_of([words(0, 5)])}, repo_type="dataset", private=True)
    assert len(load(CalibrationConfig(dataset=repo), token=hub_token).sequences) == 1


def test_a_dataset_script_is_refused(hub, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {f"{repo.split('/')[1]}.py": b"raise SystemExit"}, repo_type="dataset")
    refused("cannot read the dataset .*scripts are no longer supported", dataset=repo)
