"""The recipe of small models: tokenizer, packing, initialisation, and a real short training."""

import dataclasses
import gzip
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.demo import train
from hf_prune.documents import Source
from hf_prune.errors import ConfigError, DataError, OutputError

TINY = train.Recipe(
    layers=2, hidden=32, heads=4, kv_heads=2, mlp=64, vocabulary=300, context=64, tokens=40 * 8 * 32, length=32,
    batch=8, learning_rate=1e-2, warmup=4,
)  # fmt: skip


def sentences(count: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed).choice
    who, does, what = ("the cat", "a dog", "my aunt"), ("sees", "likes", "draws"), ("a house", "the sea", "birds")
    return [" ".join(f"{choose(who)} {choose(does)} {choose(what)}." for _ in range(20)) for _ in range(count)]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    (folder / "one.txt").write_text("\n".join(sentences(8)), encoding="utf-8")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in sentences(8, seed=1))
    with gzip.open(folder / "two.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(rows)
    return folder


@pytest.fixture(scope="module")
def made(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "model"
    train.make(Source(str(books)), output, TINY)
    return output


def test_training_learns(made: Path, books: Path) -> None:
    record = json.loads((made / train.TRAINING_FILE).read_text())
    losses = record["losses"]
    assert len(losses) == TINY.steps == 40
    assert losses[0] > 5.0, "an untrained model knows nothing: log(300) = 5.7 nats"
    assert sum(losses[-4:]) / 4 < 0.6 * losses[0]
    assert record["tokens"] == 40 * 8 * 32
    assert record["documents"] == 9
    assert record["text"]["dataset"] == books.name, "its name, not its path"
    assert not made.with_name("model.run").exists()


def test_result_is_a_stock_model(made: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(made)
        model = AutoModelForCausalLM.from_pretrained(made)
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == 2
    prompt = tokenizer("<|endoftext|>the cat", return_tensors="pt")
    written = tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0])
    assert any(word in written for word in ("sees", "likes", "draws")), written
    raw = json.loads((made / "config.json").read_text())
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    assert raw["torch_dtype"] == "bfloat16"
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_same_seed_same_model(books: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(TINY, tokens=4 * 8 * 32)
    first = train.make(Source(str(books)), tmp_path / "first", short)
    again = train.make(Source(str(books)), tmp_path / "again", short)
    other = train.make(Source(str(books)), tmp_path / "other", dataclasses.replace(short, seed=1))
    assert first["losses"] == again["losses"] != other["losses"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other")]
    assert weights[0] == weights[1] != weights[2]


def test_killed_run_goes_on(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(TINY, tokens=12 * 8 * 32)
    whole = train.make(Source(str(books)), tmp_path / "whole", short)

    class Killed(BaseException):
        pass

    step = train.Trainer.training_step
    steps = iter(range(7))

    def seven_steps(*args: object, **kwargs: object) -> torch.Tensor:
        if next(steps, None) is None:
            raise Killed
        return step(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Trainer, "training_step", seven_steps)
    with pytest.raises(Killed):
        train.make(Source(str(books)), tmp_path / "killed", short)
    monkeypatch.undo()
    assert (tmp_path / "killed.run" / "checkpoint-7").is_dir()
    (tmp_path / "killed.run" / "checkpoint-8").mkdir()  # as when the process dies while it writes
    with pytest.raises(OutputError, match="another recipe or text"):
        train.make(Source(str(books)), tmp_path / "killed", dataclasses.replace(short, seed=3))
    stepped = 0

    def count(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal stepped
        stepped += 1
        return step(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Trainer, "training_step", count)
    again = train.make(Source(str(books)), tmp_path / "killed", short)
    assert stepped == 5, "it went on after step 7"
    assert again["losses"] == whole["losses"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_tokenizer_spells_every_text() -> None:
    tokenizer = train.train_tokenizer(sentences(4), 280, 64)
    text = "  naïve \n\n “quotes” 😀 \t <b>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 280
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert len(tokenizer(" the cat").input_ids) < 8, "frequent words are merged"


def test_packing_loses_nothing_but_the_rest() -> None:
    texts = sentences(3)
    tokenizer = train.train_tokenizer(texts, 300, 64)
    rows = train.pack(tokenizer, texts, 16)
    joined = [i for text in texts for i in (0, *tokenizer(text).input_ids)]
    assert rows.flatten().tolist() == joined[: rows.numel()]
    assert len(joined) - rows.numel() < 16
    with pytest.raises(DataError, match=r"has \d+ tokens; expected at least 10000"):
        train.pack(tokenizer, texts, 10_000)


def test_projections_into_the_stream_start_small() -> None:
    recipe = train.Recipe(layers=8, hidden=128, heads=4, kv_heads=2, mlp=256, vocabulary=300)
    model = train.build_model(recipe, train.train_tokenizer(sentences(3), 300, 512))
    for block in model.model.layers:
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.config.tie_word_embeddings


def test_defaults_make_the_embedded_model() -> None:
    from hf_prune.demo import model_folder

    recipe = train.Recipe()
    raw = json.loads((model_folder() / "config.json").read_text())
    found = (raw["num_hidden_layers"], raw["hidden_size"], raw["num_attention_heads"], raw["num_key_value_heads"])
    assert found == (recipe.layers, recipe.hidden, recipe.heads, recipe.kv_heads)
    assert (raw["intermediate_size"], raw["vocab_size"]) == (recipe.mlp, recipe.vocabulary)
    assert raw["max_position_embeddings"] == recipe.context


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers=0; expected more than 0"),
        ({"hidden": 30}, "expected hidden to be a multiple"),
        ({"kv_heads": 3}, "heads a multiple of kv_heads"),
        ({"length": 65}, "2 <= length <= context"),
        ({"vocabulary": 256}, "at least 257"),
        ({"tokens": 3 * 8 * 32}, "make 3 steps of 8 x 32 tokens"),
    ],
)
def test_recipes_that_cannot_be_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)


def test_output_that_holds_something_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        train.make(Source("nobody/nothing"), tmp_path, TINY)


def test_too_little_text_for_a_batch(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(sentences(1)[0][:200])
    with pytest.raises(DataError, match="expected at least 8"):
        train.make(Source(str(tmp_path / "text.txt")), tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_reading_stops_when_it_is_enough(books: Path) -> None:
    source = Source(str(books))
    texts, revision = train.read(source, 0, 10**9)
    assert texts == ["\n".join(sentences(8)), *sentences(8, seed=1)]
    assert revision is None
    first = len(texts[0])
    assert train.read(source, 0, first + 7)[0] == [texts[0], texts[1][:7]]
    assert train.read(source, 0, first)[0] == texts[:1]


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--text books/ --output my-llama" in shown
    for field in dataclasses.fields(train.Recipe):
        assert "--" + field.name.replace("_", "-") in shown
