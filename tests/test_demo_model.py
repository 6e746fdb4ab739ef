"""The embedded model: complete, small enough to ship, and really a language model."""

import hashlib
import json
import logging
import math
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.demo import NAME, model_folder, score
from hf_prune.errors import DataError

CARD = Path(__file__).parent.parent / "model_cards" / f"{NAME}.md"

# Opening of "Pride and Prejudice" (1813), and of "The Time Machine" (1895), which the model never saw.
SEEN_STYLE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, "
    "this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful "
    "property of some one or other of their daughters."
)
UNSEEN = (
    "The Time Traveller (for so it will be convenient to speak of him) was expounding a recondite matter to us. His "
    "grey eyes shone and twinkled, and his usually pale face was flushed and animated. The fire burned brightly, and "
    "the soft radiance of the incandescent lights in the lilies of silver caught the bubbles that flashed and passed "
    "in our glasses."
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder())


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    return score.text_score(model, tokenizer, [text], name="text").nll


def test_files() -> None:
    files = {file.name: file.stat().st_size for file in model_folder().iterdir()}
    assert set(files) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert sum(files.values()) <= 12_000_000


def test_loads_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        model, info = AutoModelForCausalLM.from_pretrained(model_folder(), output_loading_info=True)
        tokenizer("text")
    assert not caplog.records
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 5_509_824
    assert model.config.num_hidden_layers == 12


def test_config_serves_readers_of_both_generations() -> None:
    raw = json.loads((model_folder() / "config.json").read_text(encoding="utf-8"))
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 10000.0
    assert raw["torch_dtype"] == raw["dtype"] == "bfloat16"
    tokenizer = json.loads((model_folder() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


def test_knows_english(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    words = UNSEEN.split()
    random.Random(0).shuffle(words)
    plain, shuffled = nats(model, tokenizer, UNSEEN), nats(model, tokenizer, " ".join(words))
    assert plain < 5.0 < math.log(4096), "far below a uniform guess"
    assert shuffled > plain + 0.5, "word order matters to it"
    assert nats(model, tokenizer, SEEN_STYLE) < 5.0


def test_writes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer("The old man looked at the sea and", return_tensors="pt")
    written = tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0])
    assert written.startswith("The old man looked at the sea and")
    assert len(set(re.findall("[a-z]+", written))) > 12


def test_card_speaks_of_these_weights() -> None:
    card = ModelCard.load(CARD)
    assert card.data.license == "apache-2.0"
    assert card.data.language == "en"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "transformers"
    assert hashlib.sha256((model_folder() / "model.safetensors").read_bytes()).hexdigest() in card.text
    assert "5,509,824" in card.text


def test_blimp_accuracy_is_that_of_brute_force(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = [
        ("The cats annoy Tim.", "The cats annoys Tim."),
        ("She sees herself in the mirror.", "She sees himself in the mirror."),
        ("These books were old.", "This books were old."),
        ("A man walks.", "A man walks."),  # a tie is no win
        ("walks man the of.", "The man walks."),
    ]

    def likelihood(sentence: str) -> float:
        ids = [0, *tokenizer(sentence).input_ids]
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(log_probs[i, token].item() for i, token in enumerate(ids[1:]))

    with torch.no_grad():
        wins = [likelihood(good) > likelihood(bad) for good, bad in pairs]
    assert wins[4] is False and any(wins)
    assert score.blimp_accuracy(model, tokenizer, pairs[:3] + pairs[4:], batch_size=3) == pytest.approx(
        (sum(wins[:3]) + wins[4]) / 4
    )
    assert score.blimp_accuracy(model, tokenizer, [pairs[3]]) == 0.0


def test_text_score_is_the_models_own_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = torch.tensor([[0, *tokenizer(UNSEEN).input_ids]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    found = score.text_score(model, tokenizer, [UNSEEN], name="text")
    assert found.nll == pytest.approx(expected, abs=1e-5)
    assert found.tokens == ids.shape[1] - 1
    assert found.bytes == len(UNSEEN.encode())
    assert found.bits_per_byte == pytest.approx(expected * found.tokens / found.bytes / math.log(2), abs=1e-5)


def test_score_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(UNSEEN, encoding="utf-8")
    row = json.dumps({"sentence_good": "The cats annoy Tim.", "sentence_bad": "Cats the Tim of."})
    (tmp_path / "order.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    score.main(["--text", str(tmp_path / "text.txt"), "--blimp", str(tmp_path), "--pairs", "1"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["bytes"] == len(UNSEEN)
    assert scores["blimp_pairs"] == 1 and scores["blimp_accuracy"] == 1.0


def test_pairs_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.jsonl files"):
        score.read_pairs(tmp_path, None)
    (tmp_path / "x.jsonl").write_text('{"sentence_good": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="lacks 'sentence_bad'"):
        score.read_pairs(tmp_path, None)
