"""Any two models on one text, and any model alone."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, T5Config

from hf_prune import Pruner
from hf_prune.compare import Comparison, compare
from hf_prune.config import EvaluationConfig
from hf_prune.errors import ArchitectureError, ConfigError, DataError
from hf_prune.subject import Measured, find, fit_together, measure_alone
from tests.cli.support import EVALUATION, fast, recipe
from tests.evaluation.text import VOCAB, byte_tokenizer
from tests.making import base_folder, logits
from tests.tiny import tiny_model

LINES = (
    "the sea was calm and the old man said nothing",
    "every ship that leaves must come home one day",
    "café and thé — the naïve façade in the rain",
)


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "first", depth=3)[1]


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "second", depth=2, seed=1)[1]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer knows single bytes alone, under other ids."""
    model, folder = base_folder(tmp_path_factory.mktemp("models") / "third", model_type="gpt2", depth=2)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(LINES * 20))
    return str(path)


def settings(**changes: Any) -> EvaluationConfig:
    return dataclasses.replace(EVALUATION, **changes)


def held(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Any]:
    """The text that is measured on, as it is made."""
    made: list[Any] = []
    import hf_prune.subject as subject

    def keep(*args: Any, **kwargs: Any) -> Any:
        made.append(subject_text(*args, **kwargs))
        return made[-1]

    subject_text: Callable[..., Any] = subject.text_for
    monkeypatch.setattr(f"{module}.text_for", keep)
    return made


def test_both_models_on_the_same_tokens(a: Path, b: Path, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = held(monkeypatch, "hf_prune.compare")
    found = compare(a, b, settings(dataset=book))
    assert found.together and found.tokenizers is None and found.refused is None
    one, two = found.evaluation.models
    assert (one.label, one.layers, one.fidelity) == ("a", 3, None) and (two.label, two.layers) == ("b", 2)
    assert [ref.id for ref in found.models] == ["first", "second"]

    # By hand: every sequence fits in one window.
    total, kl, count = torch.zeros(2, dtype=torch.float64), 0.0, 0
    whole = [AutoModelForCausalLM.from_pretrained(folder) for folder in (a, b)]
    for ids in made[0].sequences:
        ours, theirs = (logits(m, ids[None])[0, :-1].double().log_softmax(-1) for m in whole)
        total -= torch.stack([p.gather(-1, ids[1:, None]).sum() for p in (ours, theirs)])
        kl += float((ours.exp() * (ours - theirs)).sum())
        count += len(ids) - 1
    for model, nll in zip((one, two), total, strict=True):
        assert model.perplexity[0].tokens == count
        assert model.perplexity[0].nll == pytest.approx(float(nll) / count, rel=1e-6)
    assert two.fidelity.tokens == count and two.fidelity.kl == pytest.approx(kl / count, rel=1e-5)

    text = found.table()
    assert "KL from a, nats" in text and "leaves a at token" in text
    assert text.endswith("a: first (a folder), llama\nb: second (a folder), llama")
    assert "(−33.3 %)" in next(line for line in text.splitlines() if line.startswith("layers"))
    assert Comparison.from_dict(found.to_dict()) == found


def test_one_after_the_other_gives_the_same(a: Path, b: Path, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = compare(a, b, settings(dataset=book))
    monkeypatch.setattr("hf_prune.compare.fit_together", lambda *subjects: False)
    apart = compare(a, b, settings(dataset=book))
    assert (together.together, apart.together) == (True, False)
    for one, two in zip(together.evaluation.models, apart.evaluation.models, strict=True):
        assert one.perplexity == two.perplexity and one.label == two.label
        assert one.completions == two.completions
    ours, theirs = together.evaluation.models[1].fidelity, apart.evaluation.models[1].fidelity
    assert ours.tokens == theirs.tokens
    assert (ours.kl, ours.top1_agreement) == pytest.approx((theirs.kl, theirs.top1_agreement), rel=1e-6)


def test_a_model_is_as_good_as_itself(a: Path) -> None:
    found = compare(a, a, settings(samples=2))
    fidelity = found.evaluation.models[1].fidelity
    assert fidelity.kl == pytest.approx(0, abs=1e-9) and fidelity.top1_agreement == 1
    assert found.evaluation.models[0].perplexity[0].name == "sampled from a"


@pytest.mark.parametrize("text", ["book", "sampled"])
def test_other_tokenizers(a: Path, other: Path, book: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = held(monkeypatch, "hf_prune.compare")
    found = compare(a, other, settings(dataset=book if text == "book" else "calibration"))
    assert found.tokenizers is not None and found.refused == f"their tokenizers differ: {found.tokenizers}"
    one, two = (m.perplexity[0] for m in found.evaluation.models)
    assert [m.fidelity for m in found.evaluation.models] == [None, None]
    # Both read the same characters; each leaves out its own first token of every sequence.
    ours = byte_tokenizer()
    texts = [ours.decode(ids, skip_special_tokens=True).strip("\ufffd") for ids in made[0].sequences]
    total = sum(len(line.encode()) for line in texts)
    first = sum(len(ours.decode(ours(line)["input_ids"][:1]).encode()) for line in texts)
    assert one.bytes == total - first
    if text == "book":
        assert two.tokens == two.bytes == total - len(texts)
        assert two.bits_per_byte == pytest.approx(two.nll / math.log(2))
    shown = found.table()
    perplexities = next(line for line in shown.splitlines() if line.startswith("perplexity"))
    assert "%" not in perplexities and "×" not in perplexities and "leaves a at token" not in shown
    assert "KL from" not in shown
    assert "%" in next(line for line in shown.splitlines() if line.startswith("bits per byte"))
    assert "fidelity of b to a: refused, their tokenizers differ" in shown
    assert shown.endswith("perplexities are of different tokens and do not compare; bits per byte does")


def test_the_same_tokenizer_and_more_logits(a: Path, tmp_path: Path, book: str) -> None:
    model = tiny_model("llama", depth=2, vocab_size=VOCAB + 8)
    model.save_pretrained(tmp_path / "wide")
    byte_tokenizer().save_pretrained(tmp_path / "wide")
    found = compare(a, tmp_path / "wide", settings(dataset=book))
    assert found.tokenizers is None
    assert found.refused == f"their logits speak of {VOCAB} and {VOCAB + 8} tokens"
    one, two = (m.perplexity[0] for m in found.evaluation.models)
    assert one.tokens == two.tokens and one.data.sha256 == two.data.sha256
    assert "%" in next(line for line in found.table().splitlines() if line.startswith("perplexity"))


def test_commits_are_pinned_and_sliced_models_need_no_code(
    hub, hub_token, new_repo_id, a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    sliced = {"method": "slicegpt", "sparsity": 0.25, "planner_kwargs": {"multiple": 4}}
    Pruner.from_pretrained(a, recipe(**sliced), progress=False).save_pretrained(tmp_path / "sliced")
    one, two = new_repo_id(), new_repo_id()
    first, second = hub.add_repo(one, a), hub.add_repo(two, tmp_path / "sliced")
    hub.add_repo(one, {"config.json": "{}"})  # main moves on, to something broken
    found = compare(one, two, settings(samples=2), revisions=(first[:8], None))
    assert [ref.revision for ref in found.models] == [first, second]
    assert found.models[1].model_type == "sliced_llama" and found.evaluation.models[1].fidelity.kl > 0
    assert not [r for r in hub.requests if r.path.endswith(".py") and r.method == "GET"]
    assert f"b: {two} ({second[:12]}), sliced_llama" in found.table()


def test_speed_is_taken_in_turns(a: Path, b: Path) -> None:
    found = compare(a, b, settings(samples=2, speed=True, speed_rounds=2, new_tokens=2))
    for model, folder in zip(found.evaluation.models, (a, b), strict=True):
        assert model.speed.rounds == 2 and model.speed.decode.median > 0 and model.load.median > 0
        assert model.disk_bytes == (folder / "model.safetensors").stat().st_size
    assert found.evaluation.models[1].flops_per_token < found.evaluation.models[0].flops_per_token


def test_what_fits_together(a: Path, b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = find(a, device_map="cpu"), find(b, device_map="cpu", dtype="bfloat16")
    counts = [sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()) for folder in (a, b)]
    assert (one.bytes, two.bytes) == (4 * counts[0], 2 * counts[1])
    needed = 1.3 * (one.bytes + two.bytes) + 1e9
    for free, fits in ((needed - 1, False), (needed + 1, True)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert fit_together(one, two) is fits


@pytest.mark.parametrize("model_type", ["diffllama", "mamba"])
def test_any_model_alone(tmp_path: Path, book: str, model_type: str) -> None:
    """DiffLlama cannot lose blocks; it can be measured."""
    folder = base_folder(tmp_path / "some", model_type=model_type, depth=2)[1]
    found = measure_alone(find(folder), settings(dataset=book))
    [figures] = found.evaluation.models
    assert (figures.label, figures.layers, found.model.model_type) == ("model", 2, model_type)
    assert figures.perplexity[0].data.samples == 4 and figures.speed is None
    assert Measured.from_dict(found.to_dict()) == found


def test_a_whole_dataset_belongs_to_a_model_without_a_recipe(a: Path, tmp_path: Path) -> None:
    """Nothing else reads it, so that no part is held back: all 12 words come, not a tenth of them."""
    path = tmp_path / "words.txt"
    path.write_text("one two three four five six seven eight nine ten eleven twelve")
    found = measure_alone(find(a), settings(dataset=str(path), samples=50))
    figures = found.evaluation.models[0].perplexity[0]
    assert figures.data.tokens == len(byte_tokenizer()(path.read_text())["input_ids"])


def test_adapter_beside_the_weights_is_not_passed_over_in_silence(
    hub, hub_token, new_repo_id, a: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find(a)
    assert not caplog.records
    shutil.copytree(a, tmp_path / "healed")
    (tmp_path / "healed" / "adapter").mkdir()
    (tmp_path / "healed" / "adapter" / "adapter_config.json").write_text("{}")
    repo = new_repo_id()
    hub.add_repo(repo, tmp_path / "healed")
    for model in (tmp_path / "healed", repo):
        caplog.clear()
        find(model)
        [told] = [record.getMessage() for record in caplog.records]
        assert "are measured without the adapter" in told and f"hf-prune verify {model}" in told


def test_longer_than_the_model(a: Path) -> None:
    found = measure_alone(find(a), settings(samples=2, max_length=5000))
    assert found.evaluation.models[0].perplexity[0].window == 64


def test_refusals(a: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty.txt.* is empty"):
        compare(a, a, settings(dataset=str(tmp_path / "empty.txt")))
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(DataError, match=r"1 sequences with 1 tokens to predict; at least 2 are needed"):
        measure_alone(find(a), settings(dataset=str(tmp_path / "short.txt")))
    T5Config(d_model=8, num_layers=2, is_encoder_decoder=True).save_pretrained(tmp_path / "t5")
    with pytest.raises(ArchitectureError, match="is an encoder-decoder"):
        find(tmp_path / "t5")
    with pytest.raises(ConfigError, match="only models on the Hub have revisions"):
        compare(a, a, settings(), revisions=("main", None))
