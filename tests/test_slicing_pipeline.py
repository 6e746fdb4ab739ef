"""Slicing from a model folder to a finished one: text, records, search, healing, cards, and going on after a kill."""

import dataclasses
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_prune import Pruner, PrunerConfig
from hf_prune.errors import ArchitectureError, ConfigError, DataError
from hf_prune.output import Finished
from hf_prune.records import Plan
from hf_prune.run import run
from hf_prune.slicing.modeling import model_class
from tests.cli.support import fast, recipe, tree
from tests.making import base_folder, logits
from tests.tiny import tokens

DEPTH, WIDTH = 4, 32
FIXED = {"method": "slicegpt", "sparsity": 0.25, "planner_kwargs": {"multiple": 4}}
DYNAMIC = {"method": "dynamic-slicing", "sparsity": 0.25, "planner_kwargs": {"slice_base": 0.1, "multiple": 4}}
SEARCH = {"method": "dynamic-slicing", "sparsity": 0.25, "planner_kwargs": {"multiple": 2}}
GLOBAL = {**FIXED, "surgery_kwargs": {"basis": "global"}}
SHORTCUTS = ("attn_shortcut", "mlp_shortcut")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose layers turn the stream more and less."""
    model, folder = base_folder(tmp_path_factory.mktemp("models") / "tiny-base", depth=DEPTH)
    with torch.no_grad():
        for layer, scale in enumerate((1.0, 0.6, 0.3, 0.1)):
            model.model.layers[layer].self_attn.o_proj.weight.mul_(scale)
            model.model.layers[layer].mlp.down_proj.weight.mul_(scale)
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local text in which no two sequences are the same."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    draw = random.Random(0)
    path.write_text(" ".join("".join(draw.choices("thein wr", k=draw.randint(2, 9))) for _ in range(6000)))
    return str(path)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


def of(base: Path, run_folder: Path | None = None, **fields: Any) -> Pruner:
    return Pruner.from_pretrained(base, recipe(**fields), run_folder=run_folder, progress=False)


def counted(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- from end to end


@pytest.mark.parametrize(
    "fields",
    [FIXED, pytest.param(DYNAMIC, marks=pytest.mark.slow), SEARCH],
    ids=["slicegpt", "dynamic", "search"],
)
def test_the_whole_api(
    base: Path, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    if fields is SEARCH:  # what it saves is of the same kind: one new process is enough
        fast(monkeypatch)
    pruner = of(base, **fields, calibration={"dataset": book}, base_model="org/tiny-base")
    model = pruner.prune()
    cut = pruner.plan().slicing
    assert type(model) is model_class("llama") and model is pruner.model and not model.training
    report = pruner.evaluate()
    assert [(m.label, m.layers) for m in report.models] == [("original", DEPTH), ("pruned", DEPTH)]
    assert report.models[1].fidelity.kl > 0
    folder = pruner.save_pretrained(tmp_path / "out")

    # What stands there is what was in memory, to the bit, and says of itself what is so.
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert type(found) is type(model) and torch.equal(logits(found, tokens()), logits(model, tokens()))
    stored = load_file(folder / "model.safetensors")
    assert counted(found) == sum(t.numel() for t in stored.values()) == cut.parameters
    assert [m.parameters for m in report.models] == [cut.original_parameters, cut.parameters]
    assert cut.original_parameters == counted(AutoModelForCausalLM.from_pretrained(base))
    finished = Finished.load(folder)
    assert finished.reload_level == ("streamed" if fields is SEARCH else "full")
    assert finished.plan == pruner.plan()
    assert finished.config == pruner.config.without_paths() and finished.evaluation == report
    dims = json.loads((folder / "config.json").read_text())["slice_dims"]
    assert (dims["embed"], tuple(dims["mlp_out"])) == (cut.embed, cut.mlp_out)
    for layer, width in enumerate(cut.widths):
        assert stored[f"model.layers.{layer}.self_attn.q_proj.weight"].shape == (WIDTH, width)
    assert (folder / "LICENSE").read_text() == "Do what you like."
    assert AutoTokenizer.from_pretrained(folder)("The sea")["input_ids"]

    # The texts are named, and nothing else of where they lay.
    assert cut.calibration == pruner.texts.calibration().use and cut.calibration.dataset == "book.txt"
    assert (finished.scores is None) == (fields is FIXED)
    if fields is not FIXED:
        assert finished.scores.data == cut.calibration and len(finished.scores.layers) == DEPTH
        assert len(set(cut.widths)) > 1 or fields is SEARCH
        assert sum(cut.widths) == DEPTH * 24
    assert (cut.selection is None) == (fields is not SEARCH)
    written = "".join(p.read_text() for p in folder.rglob("*") if p.suffix in (".json", ".md"))
    assert str(tmp_path) not in written and str(Path(book).parent) not in written

    card = (folder / "README.md").read_text()
    for fact in (
        "trust_remote_code=True", "org/tiny-base", "book.txt", "25.0% of the width", f"{cut.parameters:,}",
        f"{cut.original_parameters:,}", f"{cut.shortcut_parameters:,}", "arxiv.org/abs/2401.15024", "widths.png",
    ):  # fmt: skip
        assert fact.replace("%", " %") in card or fact in card, fact
    assert ("arxiv.org/abs/2411.03513" in card) == (fields is not FIXED)
    assert (folder / "widths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_search_is_what_it_says(base: Path, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of each schedule is that of the model sliced so, on text that was held out; the least one wins."""
    pruner = of(base, tmp_path / "run", **SEARCH, calibration={"dataset": book})
    cut = pruner.plan().slicing
    assert 2 <= len(cut.search) <= 5 and cut.search[0].widths == (24,) * DEPTH
    assert cut.widths == min(cut.search, key=lambda s: s.loss).widths
    assert (cut.calibration, cut.selection) == (pruner.texts.calibration().use, pruner.texts.selection().use)

    sliced = pruner.prune()
    losses, weights = [], []
    with torch.inference_mode():
        for sequence in pruner.texts.selection().sequences:
            ids = sequence[None]
            losses.append(float(sliced(input_ids=ids, labels=ids).loss))
            weights.append(ids.shape[1] - 1)
    mean = sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(min(s.loss for s in cut.search), rel=1e-5)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sliced again")

    monkeypatch.setattr("hf_prune.schedule_search.slice_widths", never)
    assert of(base, tmp_path / "run", **SEARCH, calibration={"dataset": book}).plan() == pruner.plan()
    with pytest.raises(AssertionError, match="sliced again"):
        of(base, tmp_path / "run", **SEARCH, calibration={"dataset": book, "seed": 1}).plan()


def test_one_sequence_is_too_few_for_a_search(base: Path) -> None:
    pruner = of(base, **SEARCH, calibration={"samples": 1})
    pruner.texts._made["calibration"] = pruner.texts.calibration().part(0, 1)
    with pytest.raises(DataError, match="one calibration sequence alone, and none to choose a schedule on"):
        pruner.plan()


@pytest.mark.slow
def test_same_recipe_same_weights(base: Path, quickly: None) -> None:
    one, two = of(base, **DYNAMIC), of(base, **DYNAMIC)
    assert one.plan().slicing == two.plan().slicing
    first, second = one.prune().state_dict(), two.prune().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# ---- texts


@pytest.mark.parametrize("sampled", [False, True], ids=["book", "sampled"])
def test_texts_are_disjoint(base: Path, book: str, quickly: None, sampled: bool) -> None:
    pruner = of(base, **SEARCH, calibration={"dataset": None if sampled else book, "samples": 8})
    pruner.plan()
    pruner.prepare_healing()
    settings = pruner._resolve_healing()
    texts = {
        "calibration": pruner.texts.calibration(),
        "selection": pruner.texts.selection(),
        "evaluation": pruner.texts.evaluation(),
        "held-out": pruner.texts.held_out(settings),
        "healing": pruner.texts.healing(settings),
    }
    hashes = {name: text.hashes() for name, text in texts.items()}
    assert all(len(hashes[name]) == len(text.sequences) > 0 for name, text in texts.items())
    assert sum(map(len, hashes.values())) == len(frozenset().union(*hashes.values()))
    assert len({text.use.sha256 for text in texts.values()}) == 5
    assert len(texts["calibration"].sequences) == 8 and len(texts["selection"].sequences) == 2
    assert all(text.use.dataset == (None if sampled else "book.txt") for text in texts.values())


def test_what_is_not_searched_holds_nothing_out(base: Path, quickly: None) -> None:
    pruner = of(base, **DYNAMIC)
    assert len(pruner.texts.calibration().sequences) == 6
    with pytest.raises(DataError, match="none to choose a schedule on"):
        pruner.texts.selection()


@pytest.mark.slow
def test_sampled_text_is_kept_beside_the_model(base: Path, tmp_path: Path, quickly: None) -> None:
    folder = of(base, **FIXED).save_pretrained(tmp_path / "out")
    kept = load_file(folder / "pruning" / "calibration_tokens.safetensors")
    assert kept and Finished.load(folder).plan.slicing.calibration.dataset is None


def test_far_too_little_text_is_refused_before_any_work(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_prune.loading.load_model", None)
    pruner = of(base, **FIXED, calibration={"samples": 1, "max_length": 7})
    with pytest.raises(ConfigError, match="7 calibration tokens are too few to slice 'tiny-base' with hidden_size=32"):
        pruner.plan()


# ---- models in memory


def test_a_model_in_memory_stays_as_it_is(base: Path, tmp_path: Path, quickly: None) -> None:
    handed = AutoModelForCausalLM.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in handed.state_dict().items()}
    pruner = Pruner(handed, AutoTokenizer.from_pretrained(base), recipe(**FIXED), progress=False)
    sliced = pruner.prune()
    assert sliced is not handed and type(handed) is LlamaForCausalLM and pruner.model is sliced
    assert pruner.models.original() is handed
    own = {p.data_ptr() for p in handed.parameters()}
    assert not own & {p.data_ptr() for p in sliced.parameters()}, "the sliced model has tensors of its own"
    pruner.heal()
    report = pruner.evaluate()
    assert [m.label for m in report.models] == ["original", "pruned", "healed"]
    after = handed.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())

    other = of(base, **FIXED)
    other.heal()
    assert [m.perplexity for m in other.evaluate().models] == [m.perplexity for m in report.models]
    folder = pruner.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder), tokens()), logits(pruner.model, tokens()))
    assert tree(other.save_pretrained(tmp_path / "other"))["model.safetensors"] == tree(folder)["model.safetensors"]


def test_a_sliced_model_is_not_pruned_again(base: Path, tmp_path: Path, quickly: None) -> None:
    pruner = of(base, **FIXED)
    sliced = pruner.prune()
    with pytest.raises(ConfigError, match="the model is pruned already"):
        pruner.prune()
    folder = pruner.save_pretrained(tmp_path / "out")
    for fields in (FIXED, DYNAMIC, {"layers": [1]}):
        with pytest.raises(ArchitectureError, match="'tiny-base' is sliced already|'out' is sliced already"):
            of(folder, **fields)
        with pytest.raises(ArchitectureError, match="is sliced already .*Start from the model that it was made from"):
            Pruner(sliced, pruner.tokenizer, recipe(**fields))


# ---- one basis


@pytest.mark.parametrize("tied", [False, True])
def test_one_basis_makes_a_stock_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    if tied:
        fast(monkeypatch)  # the new process is that of the other
        _, base = base_folder(tmp_path / "tied", depth=DEPTH, tie_word_embeddings=True)
    pruner = of(base, **GLOBAL)
    model = pruner.prune()
    folder = pruner.save_pretrained(tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["hidden_size"], config["head_dim"], config["tie_word_embeddings"]) == (24, 8, False)
    assert not {"auto_map", "slice_dims", "slice_shortcuts"} & config.keys() and not list(folder.rglob("*.py"))
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert type(found) is LlamaForCausalLM and torch.equal(logits(found, tokens()), logits(model, tokens()))
    cut = Finished.load(folder).plan.slicing
    assert cut.plain and counted(found) == cut.parameters
    assert Finished.load(folder).reload_level == ("streamed" if tied else "full")
    card = (folder / "README.md").read_text()
    assert "trust_remote_code" not in card and "one rotation for the whole model" in card


@pytest.mark.slow
def test_a_stock_model_can_be_pruned_again(base: Path, tmp_path: Path, quickly: None) -> None:
    folder = of(base, **GLOBAL).save_pretrained(tmp_path / "once")
    again = of(folder, layers=[1])
    assert len(again.prune().model.layers) == DEPTH - 1
    narrower = of(folder, **FIXED)
    assert narrower.plan().slicing.hidden_size == 24 and narrower.plan().slicing.widths == (16,) * DEPTH


# ---- healing


@pytest.fixture(scope="module")
def healed(base: Path, book: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruner, Path]:
    with pytest.MonkeyPatch.context() as patch:
        fast(patch)
        pruner = of(base, **DYNAMIC, calibration={"dataset": book}, healing={"steps": 8})
        pruner.prepare_healing()
        pruner.heal()
        pruner.evaluate()
        return pruner, pruner.save_pretrained(tmp_path_factory.mktemp("healed") / "out")


def test_healing_lowers_the_loss(healed: tuple[Pruner, Path]) -> None:
    pruner, _ = healed
    record = pruner._healing
    assert record.held_out.merged < record.held_out.pruned
    assert record.held_out.merged == pytest.approx(record.held_out.adapter, abs=1e-4)
    assert record.held_out.original is not None and record.quantization is None
    assert set(record.target_modules) == {
        *(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        *SHORTCUTS,
    }  # fmt: skip
    assert (record.settings["target"], record.settings["alpha"], record.settings["rank"]) == ("all", 10, 2)
    assert (record.settings["schedule"], record.settings["beta2"]) == ("linear", 0.95)


def test_healing_reaches_the_shortcuts_and_leaves_the_rest(healed: tuple[Pruner, Path]) -> None:
    pruner, folder = healed
    before, after = pruner.models.pruned(pruner.plan()).state_dict(), pruner.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name or "_shortcut" in name}
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(found, tokens()), logits(pruner.model, tokens()))


def test_records_of_a_healed_model(healed: tuple[Pruner, Path]) -> None:
    pruner, folder = healed
    finished = Finished.load(folder)
    assert [m.label for m in finished.evaluation.models] == ["original", "pruned", "healed"]
    cut = finished.plan.slicing
    assert [m.parameters for m in finished.evaluation.models[1:]] == [cut.parameters] * 2
    assert finished.healing == pruner._healing
    card = (folder / "README.md").read_text()
    assert f"| healed: adapter merged | {finished.healing.held_out.merged:.3f} |" in card and "attn_shortcut" in card


@pytest.mark.slow
def test_a_healed_folder_is_taken_up(healed: tuple[Pruner, Path], base: Path) -> None:
    pruner, folder = healed
    last = Pruner.from_pruned(folder, pruner.config, original=base, progress=False)  # it knows where the text lies
    report = last.evaluate()
    assert [m.label for m in report.models] == ["original", "healed"]
    assert report.models[1].perplexity == pruner.judge.figures[2].perplexity
    with pytest.raises(ConfigError, match="healed already"):
        last.heal()


@pytest.mark.slow
def test_adapter_output(base: Path, tmp_path: Path, quickly: None) -> None:
    pruner = of(base, **FIXED, healing={"output": "adapter"})
    pruner.heal()
    healed = logits(pruner.model, tokens())
    folder = pruner.save_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain, tokens()), logits(pruner.models.pruned(pruner.plan()), tokens()))
    again = Pruner.from_pruned(folder, original=base, progress=False)
    assert torch.equal(logits(again.model, tokens()), healed)
    assert not torch.equal(logits(plain, tokens()), healed)


@pytest.mark.slow
def test_healing_a_folder_later(base: Path, book: str, tmp_path: Path, quickly: None) -> None:
    folder = of(base, **FIXED).save_pretrained(tmp_path / "pruned")
    with pytest.raises(ConfigError, match="the original of 'tiny-base' is needed"):
        Pruner.from_pruned(folder, progress=False).heal()
    config = PrunerConfig.from_pretrained(folder)
    config = dataclasses.replace(config, healing=dataclasses.replace(config.healing, dataset=book))
    taken = Pruner.from_pruned(folder, config, progress=False)
    record = taken.heal()
    assert record.data.dataset == "book.txt" and record.held_out.merged != record.held_out.pruned
    healed = taken.save_pretrained(tmp_path / "healed")
    assert {p.name for p in healed.glob("*.py")} == {p.name for p in folder.glob("*.py")} and len(
        list(healed.glob("*.py"))
    ) == 3
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(healed), tokens()), logits(taken.model, tokens()))
    assert json.loads((healed / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


# ---- plans made before


def test_a_plan_made_before(base: Path, book: str, tmp_path: Path, quickly: None) -> None:
    first = of(base, **DYNAMIC, calibration={"dataset": book})
    plan = Plan.load(first.plan().save(tmp_path).parent)
    wanted = first.prune().state_dict()
    pruner = of(base, **DYNAMIC, calibration={"dataset": book})
    pruner.use_plan(plan)
    found = pruner.prune().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert pruner.plan() == plan
    assert (pruner.config.method, pruner.config.sparsity, pruner.config.sparsity_of) == (
        "dynamic-slicing", 0.25, "width",
    )  # fmt: skip


def test_a_plan_carried_out_on_other_text_says_so(base: Path, book: str, quickly: None) -> None:
    plan = of(base, **FIXED).plan()
    pruner = of(base, **FIXED, calibration={"dataset": book})
    pruner.use_plan(plan)
    pruner.prune()
    assert plan.slicing.calibration.dataset is None
    assert pruner.plan().slicing.calibration.dataset == "book.txt"
    assert pruner.plan().slicing.widths == plan.slicing.widths


@pytest.mark.parametrize("other", [{"drop_layers": 2}, {"method": "simple", "layers": [1]}, DYNAMIC, GLOBAL, SEARCH])
def test_a_plan_takes_the_place_of_any_recipe(base: Path, quickly: None, other: dict[str, Any]) -> None:
    plan = of(base, **FIXED).plan()
    pruner = of(base, **other)
    pruner.use_plan(plan)
    assert type(pruner.prune()) is model_class("llama") and counted(pruner.model) == plan.slicing.parameters
    assert pruner.config.method == "slicegpt" and pruner.config.drop_layers is None and pruner.config.layers is None
    assert pruner.config.surgery_kwargs == plan.operations[0].options
    # Text that was calibrated on is not evaluated on.
    assert not pruner.texts.evaluation().hashes() & pruner.texts.calibration().hashes()


@pytest.mark.parametrize("other", [FIXED, GLOBAL, DYNAMIC])
def test_a_plan_that_drops_takes_the_place_of_slicing(base: Path, quickly: None, other: dict[str, Any]) -> None:
    plan = of(base, layers=[1]).plan()
    pruner = of(base, **other)
    pruner.use_plan(plan)
    assert len(pruner.prune().model.layers) == DEPTH - 1 and pruner.config.method == "uidl"


def test_a_plan_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    base_folder(tmp_path / "other", depth=DEPTH)
    plan = of(tmp_path / "other", **FIXED).plan()
    with pytest.raises(ConfigError, match="the plan was made for 'other'"):
        of(base, **FIXED).use_plan(plan)


# ---- one call for all, repeated, and killed


def go(base: Path, output: Path, **kwargs: Any) -> Any:
    fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PrunerConfig.__dataclass_fields__}
    return run(base, recipe(**fields), output, progress=False, **kwargs)


@pytest.mark.parametrize(
    "fields",
    [FIXED, pytest.param(SEARCH, marks=pytest.mark.slow), pytest.param(GLOBAL, marks=pytest.mark.slow)],
    ids=["slicegpt", "search", "global"],
)
def test_run_repeated(
    base: Path, book: str, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    settings = {**fields, "calibration": {"dataset": book}, "heal": True}
    first = go(base, tmp_path / "out", **settings)
    assert not first.repeated and [m.label for m in first.evaluation.models] == ["original", "pruned", "healed"]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    before = tree(tmp_path / "out")
    monkeypatch.setattr("hf_prune.loading.load_model", None)
    again = go(base, tmp_path / "out", **settings)
    assert again.repeated and again.finished == first.finished and tree(tmp_path / "out") == before


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts what is really done."""
    counts: Counter = Counter()

    def counting(place: str) -> None:
        module, _, name = place.rpartition(".")
        function = getattr(sys.modules[module], name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(place, call)

    for place in (
        "hf_prune.choosing.measure_model", "hf_prune.schedule_search.slice_widths", "hf_prune.models.apply_slicing",
    ):  # fmt: skip
        counting(place)
    return counts


@pytest.mark.parametrize(
    "fields",
    [FIXED, pytest.param(SEARCH, marks=pytest.mark.slow), pytest.param(GLOBAL, marks=pytest.mark.slow)],
    ids=["slicegpt", "search", "global"],
)
def test_a_run_that_is_broken_off_does_not_slice_again(
    base: Path,
    tmp_path: Path,
    quickly: None,
    worked: Counter,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    wanted = go(base, tmp_path / "wanted", **fields)
    once = Counter(worked)
    assert once["apply_slicing"] == 1 and (once["slice_widths"] >= 2) == (fields is SEARCH)
    worked.clear()

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.evaluation.stage.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            go(base, tmp_path / "out", **fields)
    assert worked == once and (tmp_path / "out.run" / "pruned").is_dir() and not (tmp_path / "out").exists()
    worked.clear()
    found = go(base, tmp_path / "out", **fields)
    assert not worked, "neither measured, nor searched, nor sliced again"
    assert found.finished.plan.slicing == wanted.finished.plan.slicing
    assert [m.perplexity for m in found.evaluation.models] == [m.perplexity for m in wanted.evaluation.models]
    one, two = tree(tmp_path / "out"), tree(tmp_path / "wanted")
    timed = {"README.md", *(f"pruning/{name}.json" for name in ("scores", "plan", "evaluation"))}
    assert one.keys() == two.keys() and {name for name in one if one[name] != two[name]} <= timed
    assert {path.name for path in tmp_path.iterdir()} == {"out", "wanted"}


@pytest.mark.slow
def test_a_search_that_is_broken_off_keeps_its_verdicts(
    base: Path, tmp_path: Path, quickly: None, worked: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_prune import schedule_search

    measure, seen = schedule_search.measure_text, []

    def third_stops(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(schedule_search, "measure_text", third_stops)
        with pytest.raises(KeyboardInterrupt):
            go(base, tmp_path / "out", **SEARCH)
    assert worked == {"measure_model": 1, "slice_widths": 3}
    worked.clear()
    found = go(base, tmp_path / "out", **SEARCH)
    tried = len(found.finished.plan.slicing.search)
    assert worked == {"slice_widths": tried - 2, "apply_slicing": 1}


@pytest.mark.slow
def test_other_settings_in_the_run_folder_of_a_broken_off_run(
    base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sliced for other settings is not taken."""
    wanted = go(base, tmp_path / "wanted", **FIXED)
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.pruner.write_output", None)
        with pytest.raises(TypeError):
            go(base, tmp_path / "out", **{**FIXED, "sparsity": 0.5})
    found = go(base, tmp_path / "out", **FIXED)
    assert found.finished.plan.slicing == wanted.finished.plan.slicing
    assert tree(tmp_path / "out")["model.safetensors"] == tree(tmp_path / "wanted")["model.safetensors"]
