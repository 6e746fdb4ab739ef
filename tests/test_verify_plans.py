"""Models whose kept weights are not the base's: what a plan says it did is done again, and every lie is caught."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune import Pruner
from hf_prune.errors import ConfigError
from hf_prune.output import Finished
from hf_prune.records import Operation, Plan
from hf_prune.run import run
from hf_prune.surgery.scale import scaled
from hf_prune.verify import verify
from tests.cli.support import fast, planted, recipe
from tests.making import base_folder, edit_json

WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
SCALE = Operation("scale", (4, 5), {"weights": list(WRITES), "factor": 0.8})
REPLACE = Operation("replace", (1,), {"file": Plan.FITTED})
DROP = Operation("drop", (2, 3))
SILENCE = Operation("silence", (1, 4), {"part": "attention"})
FITTED = {"0.mlp.down_proj.weight": torch.linspace(-1, 1, 32 * 48).reshape(32, 48)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", (2, 3), depth=6)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fast(monkeypatch)
    yield


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def make(base: Path, kept: Path, tmp_path: Path) -> Make:
    """A finished folder that a plan of these operations made, and may be spoilt."""

    def made(*operations: Operation, **changes: Any) -> Path:
        name = "-".join(f"{op.kind}{op.options.get('part', '')}" for op in operations) + "".join(map(str, changes))
        if not (kept / name).is_dir():
            pruner = Pruner.from_pretrained(base, recipe(layers=(2, 3)), device_map="cpu", progress=False)
            fits: dict[str, Any] = {}
            if any(op.kind == "replace" for op in operations):
                (kept / "fit").mkdir(exist_ok=True)
                save_file(FITTED, kept / "fit" / Plan.FITTED)
                digest = hashlib.sha256((kept / "fit" / Plan.FITTED).read_bytes()).hexdigest()
                fits = {"fitted": digest, "fits": ("The held-out error is 0.1.",)}
            plan = Plan(pruner.source.ref, "uidl", "named", operations, "named", **fits).at(kept / "fit")
            pruner.use_plan(plan)
            if changes.get("loaded"):
                pruner.prune()
            pruner.save_pretrained(kept / name)
        return Path(shutil.copytree(kept / name, tmp_path / name))

    return made


def checks(folder: Path, base: Path) -> dict[str, Any]:
    found = verify(folder, original=base, evaluations="none")
    return {check.name: check for check in found.checks}


def failed(found: dict[str, Any]) -> dict[str, str]:
    return {name: check.reason for name, check in found.items() if check.status == "fail"}


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("loaded", [False, True], ids=["file to file", "in memory"])
def test_scaled_weights_are_scaled_again(base: Path, make: Make, loaded: bool) -> None:
    folder = make(SCALE, DROP, **{"loaded": True} if loaded else {})
    found = checks(folder, base)
    assert not failed(found), failed(found)
    assert found["changed tensors"].claimed == "4 scaled by the plan, to the bit"
    assert found["changed tensors"].measured == "4 equal" and found["kept tensors"].status == "pass"
    tensors, before = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.{}.mlp.down_proj.weight"
    assert torch.equal(tensors[name.format(2)], scaled(before[name.format(4)], 0.8))


def test_a_scale_that_was_not_made_or_is_another(base: Path, make: Make) -> None:
    folder, name = make(SCALE, DROP), "model.layers.2.mlp.down_proj.weight"
    edit(folder, lambda tensors: tensors[name].view(torch.int32)[0].bitwise_xor_(1))
    assert failed(checks(folder, base)) == {
        "changed tensors": f"'{name}' is not what the plan makes of 'model.layers.4.mlp.down_proj.weight' of the base"
    }
    before = load_file(base / "model.safetensors")["model.layers.4.mlp.down_proj.weight"]
    edit(folder, lambda tensors: tensors.update({name: before}))
    assert set(failed(checks(folder, base))) == {"changed tensors"}


def test_a_scale_that_nobody_claims(base: Path, make: Make) -> None:
    folder, name = make(SCALE, DROP), "model.layers.2.mlp.up_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: scaled(tensors[name], 0.8)}))
    assert set(failed(checks(folder, base))) == {"kept tensors"}


def test_what_was_fitted_is_said_and_all_else_is_checked(base: Path, make: Make) -> None:
    folder = make(REPLACE, SCALE, DROP)
    found = checks(folder, base)
    assert not failed(found), failed(found)
    fitted = found["fitted tensors"]
    assert (fitted.status, fitted.measured) == ("shown", "1 differ from the base's")
    assert "1 tensors of layers 1 were fitted" in fitted.reason and "cannot be checked" in fitted.reason
    assert torch.equal(
        load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"],
        FITTED["0.mlp.down_proj.weight"],
    )
    # Another layer's tensors are no fitted ones.
    edit(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[0].bitwise_xor_(1))
    assert set(failed(checks(folder, base))) == {"kept tensors"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"model.layers.1.mlp.down_proj.weight": torch.full((32, 48), torch.nan)}), "not finite"),
        (lambda t: t["model.layers.1.mlp.down_proj.weight"][0].fill_(torch.inf), "not finite"),
        (lambda t: t.update({k: v.half() for k, v in t.items() if k.endswith("1.mlp.down_proj.weight")}), "float16"),
    ],
)
def test_fitted_numbers_that_no_fit_gives(
    base: Path, make: Make, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    folder = make(REPLACE, DROP)
    edit(folder, change)
    assert words in failed(checks(folder, base))["fitted tensors"]


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_what_is_silenced_is_zero(base: Path, make: Make, part: str) -> None:
    silence = dataclasses.replace(SILENCE, options={"part": part})
    folder = make(silence)
    found = checks(folder, base)
    assert not failed(found), failed(found)
    assert found["changed tensors"].claimed == "2 silenced by the plan, to the bit"
    name = f"model.layers.4.{WRITES[part == 'mlp']}"
    assert not load_file(folder / "model.safetensors")[name].any()
    edit(folder, lambda tensors: tensors[name].view(torch.int32)[3].bitwise_xor_(1))
    assert set(failed(checks(folder, base))) == {"changed tensors"}


def test_parts_and_blocks_go_together(base: Path, make: Make) -> None:
    folder = make(SILENCE, Operation("silence", (0,), {"part": "mlp"}), DROP)
    found = checks(folder, base)
    assert not failed(found), failed(found)
    assert found["changed tensors"].measured == "3 equal"


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "gemma2", "opt"])
def test_families_that_store_or_name_their_weights_otherwise(tmp_path: Path, family: str) -> None:
    _, base = base_folder(tmp_path / "base", family, depth=4)
    pruner = Pruner.from_pretrained(base, recipe(layers=(1,)), device_map="cpu", progress=False)
    operations = (Operation("silence", (0,), {"part": "mlp"}), Operation("silence", (2,), {"part": "attention"}))
    pruner.use_plan(Plan(pruner.source.ref, "uidl", "named", (*operations, Operation("drop", (1,))), "named"))
    folder = pruner.save_pretrained(tmp_path / "out")
    found = checks(folder, base)
    assert not failed(found), failed(found)
    assert found["changed tensors"].status == "pass"
    # The same weights under a plan that silences more.
    plan = Finished.load(folder).plan
    more = Operation("silence", (3,), {"part": "mlp"})
    dataclasses.replace(plan, operations=(more, *plan.operations)).save(folder / "pruning")
    assert "changed tensors" in failed(checks(folder, base))
    # And under one that silences nothing.
    dataclasses.replace(plan, operations=plan.operations[-1:]).save(folder / "pruning")
    assert "kept tensors" in failed(checks(folder, base))


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a part that is none": ({"kind": "silence", "layers": [1], "options": {"part": "norm"}}, "the part 'norm'"),
    "no part": ({"kind": "silence", "layers": [1], "options": {}}, "the part None"),
    "a list for a part": ({"kind": "silence", "layers": [1], "options": {"part": ["mlp"]}}, "the part"),
    "an unknown operation": ({"kind": "explode", "layers": [1], "options": {}}, "operation 'explode'"),
    "a word for a factor": (
        {"kind": "scale", "layers": [1], "options": {"weights": ["mlp.down_proj.weight"], "factor": "2"}},
        "the factor '2'",
    ),
    "a huge factor": (
        {"kind": "scale", "layers": [1], "options": {"weights": ["mlp.down_proj.weight"], "factor": 10**400}},
        "expected a finite number",
    ),
    "a number for weights": ({"kind": "scale", "layers": [1], "options": {"weights": 3, "factor": 2.0}}, "weights 3"),
    "layers twice": ({"kind": "silence", "layers": [1, 1], "options": {"part": "mlp"}}, "twice or not in order"),
    "a block that is gone": ({"kind": "drop", "layers": [2], "options": {}}, r"\[2\], which are gone"),
    "a replace without its file": ({"kind": "replace", "layers": [1], "options": {"file": "x"}}, "names no file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_plan_that_nobody_can_carry_out_is_one_error(base: Path, make: Make, what: str) -> None:
    operation, words = HOSTILE[what]
    folder = make(DROP)
    edit_json(folder / "pruning" / "plan.json", operations=[{"kind": "drop", "layers": [2, 3]}, operation])
    with pytest.raises(ConfigError, match=words):
        Finished.load(folder)
    with pytest.raises(ConfigError, match=words):
        verify(folder, original=base, evaluations="none")


@pytest.mark.parametrize(
    "operation",
    [
        Operation("scale", (1,), {"weights": ["mlp.no_such.weight"], "factor": 2.0}),
        Operation("scale", (1,), {"weights": ["mlp"], "factor": 2.0}),
        Operation("scale", (1,), {"weights": ["mlp.down_proj.weight"], "factor": 2.0, "power": 3}),
    ],
)
def test_an_operation_that_the_model_has_no_place_for_fails(base: Path, make: Make, operation: Operation) -> None:
    folder = make(DROP)
    plan = Finished.load(folder).plan
    dataclasses.replace(plan, operations=(operation, DROP)).save(folder / "pruning")
    assert "changed tensors" in failed(checks(folder, base))


def test_layers_that_are_not_there_fail_without_a_traceback(base: Path, make: Make) -> None:
    folder = make(DROP)
    plan = Finished.load(folder).plan
    far = Operation("scale", (77,), {"weights": ["mlp.down_proj.weight"], "factor": 2.0})
    dataclasses.replace(plan, operations=(far, DROP)).save(folder / "pruning")
    found = checks(folder, base)
    assert "speaks of layers [77]" in found["card"].reason and found["card"].status == "fail"


@pytest.mark.parametrize(
    "method",
    ["sleb", "laco", "llm-drop", *(pytest.param(m, marks=pytest.mark.slow) for m in ("prune-comp", "replaceme"))],
)
def test_published_methods_verify_from_end_to_end(base: Path, tmp_path: Path, method: str) -> None:
    recipe_ = recipe(method=method, calibration={"samples": 36})  # fits take ten tokens a channel
    run(base, recipe_, tmp_path / "out", evaluate=False, progress=False)
    found = verify(tmp_path / "out", original=base, evaluations="none", replan=True)
    assert found.passed, found.table()
    statuses = {check.name: check.status for check in found.checks}
    assert statuses["plan from recipe"] == statuses["calibration text"] == statuses["card"] == "pass"
    plan = Finished.load(tmp_path / "out").plan
    assert ("fitted tensors" in statuses) == (plan.fitted is not None)
    if plan.trials or plan.fits:
        assert plan.data is not None
        done = "Searched and fitted on" if plan.trials and plan.fits else "Searched on" if plan.trials else "Fitted on"
        assert done in (tmp_path / "out" / "README.md").read_text()


def test_masked_weights_are_the_bases_but_for_zeros(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(base, recipe(method="magnitude-sparsity", sparsity=0.5), folder, evaluate=False, progress=False)
    found = checks(folder, base)
    assert not failed(found), failed(found)
    # Seven maps in each of six blocks, but for the four that are zero in the base.
    assert found["masked tensors"].status == "pass" and found["masked tensors"].measured == "38 hold zeros"
    text = (folder / "README.md").read_text()
    assert "set to zero" in text and "neither smaller nor faster" in text
    assert found["share of zeros"].status == "pass" and found["share of zeros"].claimed == "at least 50.00%"
    plan = Finished.load(folder).plan
    dataclasses.replace(plan, sparsity=0.7).save(folder / "pruning")
    assert "share of zeros" in failed(checks(folder, base))
    plan.save(folder / "pruning")
    name = "model.layers.1.mlp.up_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        kept = tensors[name].reshape(-1).nonzero()[0]
        tensors[name].view(-1)[kept] *= 2

    edit(folder, change)
    assert f"'{name}' is not" in failed(checks(folder, base))["kept tensors"]
