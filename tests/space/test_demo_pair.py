"""The embedded pair: whole, small, and what its records say."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import demo, prune_layers, selftext
from hf_prune.demo import heal, pair
from hf_prune.evaluation.pair import measure_pair
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.output import Finished
from hf_prune.records import ModelEvaluation

FILES = {
    "README.md", "pruner_config.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    "pruning/plan.json", "pruning/scores.json", "pruning/healing.json", "pruning/evaluation.json",
    "pruning/output.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, PreTrainedModel, Tokenizer]:
    return pair.load()


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def figures(label: str) -> ModelEvaluation:
    evaluation = pair.records().evaluation
    assert evaluation is not None
    return next(model for model in evaluation.models if model.label == label)


def test_what_is_shipped_is_small() -> None:
    found = files(pair.healed_folder())
    assert set(found) == FILES
    assert sum(path.stat().st_size for path in found.values()) < 1_250_000


def test_nothing_tells_of_a_machine() -> None:
    for path in files(pair.healed_folder()).values():
        text = path.read_bytes()
        assert not re.search(rb"/(tmp|home|root|work|usr|mnt)\b|\\\\Users|hf_[A-Za-z0-9]{20}", text), path.name


def test_records_say_how_it_was_made() -> None:
    records = pair.records()
    assert records.plan.model.id == demo.NAME and records.plan.model.num_layers == 12
    assert len(records.plan.dropped) == 4 and len(records.plan.kept) == 8
    assert records.healing is not None and records.healing.output == "adapter"
    made, wanted = records.config.healing, heal.config().healing
    asked = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    assert asked.items() <= dataclasses.asdict(made).items(), "by the recipe that is in the package"
    assert records.scores is not None
    assert [m.label for m in records.evaluation.models] == ["original", "pruned", "healed"]
    card = ModelCard.load(pair.healed_folder() / "README.md")
    assert "gutenberg-llama-12l" in card.text and ".png" not in card.text and heal.NOTE in card.text


def test_quality_is_that_of_the_demo() -> None:
    before, cut, after = (figures(label).perplexity[0].perplexity for label in ("original", "pruned", "healed"))
    assert before < after < 1.25 * before < cut
    assert (cut - after) / (cut - before) > 0.5
    healed = figures("healed").fidelity
    assert healed is not None and healed.top1_agreement > 0.65


def test_loads_whole(loaded: tuple[PreTrainedModel, PreTrainedModel, Tokenizer]) -> None:
    original, pruned, tokenizer = loaded
    assert original.config.num_hidden_layers == 12 and pruned.config.num_hidden_layers == 8
    assert original.dtype == pruned.dtype == torch.float32
    assert not original.training and not pruned.training
    sizes = [(len(m.model.layers), m.num_parameters(), m.num_parameters() * 4) for m in (original, pruned)]
    assert [(size.layers, size.parameters, size.bytes) for size in pair.sizes()] == sizes
    assert [size.name for size in pair.sizes()] == [demo.NAME, "gutenberg-llama-12l-healed"]
    assert tokenizer.decode(tokenizer("the sea")["input_ids"]) == "the sea"


def test_is_the_adapter_on_the_pruned_weights(
    loaded: tuple[PreTrainedModel, PreTrainedModel, Tokenizer],
) -> None:
    original, pruned, tokenizer = loaded
    cut = prune_layers(pair.load()[0], pair.records().plan.dropped)
    ids = tokenizer("The old man looked at the sea and", return_tensors="pt")["input_ids"]
    with torch.no_grad(), quiet_peft():
        bare = cut(ids).logits
        adapted = PeftModel.from_pretrained(cut, str(pair.healed_folder() / "adapter")).eval()(ids).logits
        found = pruned(ids).logits
    assert torch.allclose(found, adapted, atol=1e-4)
    assert not torch.allclose(found, bare, atol=0.1)


def test_losses_are_those_on_record(loaded: tuple[PreTrainedModel, PreTrainedModel, Tokenizer]) -> None:
    """On text of the same kind, drawn anew: the seeds of the text on record give the same one where rounding does."""
    original, pruned, tokenizer = loaded
    torch.manual_seed(0)
    samples = selftext.generate(original, tokenizer, samples=16, max_length=192, seed=3)
    one, two = measure_pair(original, pruned, tokenizer, samples, name="drawn", window=192)
    for label, found in (("original", one.perplexity), ("healed", two.perplexity)):
        told = figures(label).perplexity[0]
        spread = (told.standard_error**2 + found.standard_error**2) ** 0.5
        assert abs(found.nll - told.nll) < 4 * spread, label
    # The gap between both, of the same tokens, is told more sharply than either.
    gap = figures("healed").perplexity[0].nll - figures("original").perplexity[0].nll
    assert two.perplexity.nll - one.perplexity.nll == pytest.approx(gap, abs=0.05)
    assert two.fidelity is not None and figures("healed").fidelity is not None
    assert two.fidelity.kl == pytest.approx(figures("healed").fidelity.kl, rel=0.15)


def test_rounding_the_adapter_costs_nothing() -> None:
    """The healing record speaks of it before it was rounded, on other text: so the tensors are looked at."""
    state = load_file(pair.healed_folder() / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    for tensor in state.values():
        assert torch.isfinite(tensor).all() and tensor.abs().max() > 2**-14, "far from where float16 loses bits"


@pytest.mark.slow
def test_the_recipe_makes_such_a_folder(tmp_path: Path) -> None:
    small = heal.config()
    small = dataclasses.replace(
        small,
        calibration=dataclasses.replace(small.calibration, samples=4, max_length=64),
        healing=dataclasses.replace(small.healing, tokens=2048, max_length=64, held_out_samples=4, rank=4),
        evaluation=dataclasses.replace(small.evaluation, samples=4, max_length=64, speed=False, new_tokens=4),
    )
    made = heal.make(tmp_path / "healed", small, progress=False)
    found = files(tmp_path / "healed")
    assert set(found) == FILES
    assert Finished.load(tmp_path / "healed") == made
    assert [m.label for m in made.evaluation.models] == ["original", "pruned", "healed"]
    for path in found.values():
        assert str(tmp_path).encode() not in path.read_bytes() and b"/tmp/" not in path.read_bytes()
    adapter = json.loads((tmp_path / "healed/adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == demo.NAME
