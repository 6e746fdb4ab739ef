"""A model against its claims: what is true passes from the Hub, and every lie is caught where it lies."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import Pruner, extras
from hf_prune.errors import CheckpointError, ConfigError, HubError
from hf_prune.run import run
from hf_prune.verify import verify
from hf_prune.verify_checks import Verification
from tests.cli.support import Called, call, fast, planted, recipe
from tests.evaluation.questions import write_task
from tests.hub.fixtures import ALICE, start_session_hub
from tests.making import base_folder, edit_json

SLICED = {"method": "slicegpt", "sparsity": 0.25, "planner_kwargs": {"multiple": 4}}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "pruned": (False, {}),
    "healed": (True, {}),
    "adapter": (True, {"healing": {"output": "adapter"}}),
    "sliced": (False, SLICED),
}
BASE = "acme/verified-base"

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base", depth=6)
    start_session_hub().add_repo(BASE, folder)
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are made without a child process each; see `fast`."""
    fast(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def made(base: Path, kept: Path) -> Made:
    """A finished folder of one kind, made of the base on the Hub; each is made once."""

    def make(kind: str) -> Path:
        heal, fields = KINDS[kind]
        folder = kept / kind
        if not folder.is_dir():
            run(BASE, recipe(**fields), folder, heal=heal, progress=False)
        return folder

    return make


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Callable[[str], Path]:
    """The same to be spoilt."""
    return lambda kind="pruned": Path(shutil.copytree(made(kind), tmp_path / kind))


def failed(found: Verification) -> dict[str, str]:
    """Name → reason of the checks that failed; the card's aside, which fails as well where a record was changed."""
    return {check.name: check.reason for check in found.checks if check.status == "fail" and check.name != "card"}


def statuses(found: Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def files_only(folder: Path | str, **kwargs: Any) -> dict[str, str]:
    return failed(verify(folder, evaluations="none", **kwargs))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def flip_one_bit(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].view(torch.uint8)[0, 0] ^= 1


# What is true.


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_pushed_verifies(hub, new_repo_id, made: Made, kind: str) -> None:
    repo = new_repo_id()
    commit = hub.add_repo(repo, made(kind))
    hub.add_repo(repo, {"config.json": "{}"})  # main moves on, to something broken
    hub.reset()
    found = verify(repo, revision=commit[:10])
    assert found.passed, found.table()
    assert (found.model, found.revision, found.base.id) == (repo, commit, BASE)
    status = statuses(found)
    for name in ("base model", "records agree", "card", "files", "config", "weights fit the config", "dtype"):
        assert status[name] == "pass", name
    shipped = "pruned" if kind in ("pruned", "sliced") else "healed"
    for label in ("original", shipped):
        assert status[f"{label}: perplexity"] == status[f"{label}: layers"] == "pass"
    assert status[f"{shipped}: KL from original"] == "pass"
    assert ("healed tensors" in status) is (kind == "healed")
    if kind == "healed":
        assert status["pruned: all figures"] == "skipped"
    if kind == "adapter":
        assert status["pruned: perplexity"] == "pass"
    if kind == "sliced":
        assert (status["kept tensors"], status["widths"], status["parameters"]) == ("skipped", "pass", "pass")
    else:
        assert status["kept tensors"] == "pass"


def test_every_tensor_is_counted(made: Made) -> None:
    found = {c.name: c for c in verify(made("healed"), evaluations="none").checks}
    tensors = load_file(made("healed") / "model.safetensors")
    trained = [name for name in tensors if name.endswith(("gate_proj.weight", "up_proj.weight", "down_proj.weight"))]
    assert len(trained) == 4 * 3  # of four layers that are left
    size = sum(t.numel() * t.element_size() for name, t in tensors.items() if name not in trained)
    assert found["kept tensors"].measured == f"{len(tensors) - 12} equal, {size:,} bytes"
    assert found["healed tensors"].claimed == "12 trained, shapes of the base"
    assert found["healed tensors"].measured == "12 changed"


def test_the_plan_is_chosen_again(made: Made) -> None:
    for kind in ("pruned", "sliced"):
        found = verify(made(kind), evaluations="none", replan=True)
        assert found.passed, found.table()
        assert statuses(found)["plan from recipe"] == statuses(found)["calibration text"] == "pass"
    found = {c.name: c for c in verify(made("pruned"), evaluations="none", replan=True).checks}
    assert (found["plan from recipe"].claimed, found["plan from recipe"].measured) == ("3–4", "3–4")


def test_a_sample_is_held_within_standard_errors(made: Made) -> None:
    found = verify(made("pruned"), evaluations="sample", samples=2)
    assert found.passed
    check = next(c for c in found.checks if c.name == "pruned: loss, nats per token")
    assert check.tolerance.endswith("(3 se)") and check.claimed != check.measured
    assert "first 2 of 4 documents" in next(c.reason for c in found.checks if c.name == "sample")
    # All documents are no sample, and give the claimed figure.
    whole = verify(made("pruned"), evaluations="sample", samples=9)
    check = next(c for c in whole.checks if c.name == "pruned: loss, nats per token")
    assert check.claimed == check.measured and "sample" not in statuses(whole)


def test_text_of_a_dataset_is_read_again(base: Path, tmp_path: Path) -> None:
    words = "the sea was calm and the old man said that every ship must one day come home again".split()
    text = " ".join(words[(7 * i + i // 11) % len(words)] for i in range(6000))
    (tmp_path / "book.txt").write_text(text)
    folder = tmp_path / "out"
    run(BASE, recipe(calibration={"dataset": str(tmp_path / "book.txt")}), folder, progress=False)
    assert not list((folder / "pruning").glob("*_tokens.safetensors"))
    found = verify(folder, dataset=str(tmp_path / "book.txt"), replan=True)
    assert found.passed and statuses(found)["evaluation text"] == "pass", found.table()
    with pytest.raises(ConfigError, match=r"the recipe names no dataset 'other.txt'; it names 'book.txt'"):
        verify(folder, dataset="other.txt")
    (tmp_path / "book.txt").write_text(text.replace("sea", "lake"))
    found = verify(folder, dataset=str(tmp_path / "book.txt"))
    assert set(failed(found)) == {"evaluation text"}
    assert statuses(found)["pruned: perplexity"] == "shown"


def test_shards_of_another_size_and_another_dtype(base: Path, tmp_path: Path) -> None:
    run(base, recipe(), tmp_path / "half", dtype="bfloat16", evaluate=False, progress=False)
    shards = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(shards, max_shard_size="40KB")
    shutil.copyfile(base / "config.json", shards / "config.json")
    for path in base.glob("tokenizer*"):
        shutil.copyfile(path, shards / path.name)
    assert len(list(shards.glob("*.safetensors"))) > 2
    found = verify(tmp_path / "half", original=shards, evaluations="none")
    assert found.passed, found.table()
    edit_weights(tmp_path / "half", lambda tensors: flip_one_bit(tensors, "model.layers.3.mlp.up_proj.weight"))
    reason = failed(verify(tmp_path / "half", original=shards, evaluations="none"))["kept tensors"]
    assert reason == "'model.layers.3.mlp.up_proj.weight' is not 'model.layers.5.mlp.up_proj.weight' of the base"


@pytest.mark.slow
@pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")
def test_tasks_are_run_again(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "tasks", "winogrande")
    settings = {"tasks": ("winogrande_local",), "task_path": str(tmp_path / "tasks")}
    run(BASE, recipe(evaluation=settings), tmp_path / "out", progress=False)
    found = verify(tmp_path / "out", task_path=str(tmp_path / "tasks"))
    assert found.passed and statuses(found)["pruned: winogrande_local acc"] == "pass", found.table()
    monkeypatch.chdir(tmp_path / "out")
    skipped = [check for check in verify(tmp_path / "out").checks if check.status == "skipped"]
    assert "--task-path" in skipped[0].reason and {c.name for c in skipped[1:]} >= {"pruned: winogrande_local acc"}
    monkeypatch.setattr("hf_prune.extras.available", lambda name: False)
    skipped = [check for check in verify(tmp_path / "out").checks if check.status == "skipped"]
    assert "is not installed" in skipped[0].reason


# What is not.


@pytest.mark.parametrize("kind", ["pruned", "healed", "adapter"])
def test_one_bit_of_a_kept_tensor(copy, kind: str) -> None:
    folder, name = copy(kind), "model.layers.3.self_attn.q_proj.weight"
    edit_weights(folder, lambda tensors: flip_one_bit(tensors, name))
    # Layers 3 and 4 are gone: 3 was 5.
    assert files_only(folder) == {
        "kept tensors": f"'{name}' is not 'model.layers.5.self_attn.q_proj.weight' of the base"
    }


def test_two_layers_that_changed_places(copy) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.0.")]:
            other = name.replace("layers.0.", "layers.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    folder = copy()
    edit_weights(folder, swap)
    reason = files_only(folder)["kept tensors"]
    assert reason.startswith("'model.layers.0.input_layernorm.weight' is not") and reason.endswith("more")


def test_another_plan_than_was_carried_out(copy) -> None:
    folder = copy()
    plan = json.loads((folder / "pruning" / "plan.json").read_text())
    plan["operations"][0]["layers"] = [2, 3]
    (folder / "pruning" / "plan.json").write_text(json.dumps(plan))
    assert set(files_only(folder)) == {"kept tensors"}
    found = failed(verify(folder, evaluations="none", replan=True))
    assert set(found) == {"kept tensors", "plan from recipe"}


def test_a_distance_that_was_not_measured(copy) -> None:
    folder = copy()
    edit_json(folder / "pruning" / "plan.json", distance=0.25)
    assert set(files_only(folder, replan=True)) == {"distance of the layers"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("modeling_evil.py", b"print()", "'modeling_evil.py' is code that hf_prune does not ship, or not like this"),
        ("pytorch_model.bin", b"\x80", "'pytorch_model.bin' is a pickle, which can run code when it is loaded"),
        ("pruning/more.pkl", b"\x80", "'pruning/more.pkl' is a pickle, which can run code when it is loaded"),
        ("other.safetensors", b"", "'other.safetensors' holds weights that are not the model's"),
        ("model.gguf", b"", "'model.gguf' holds weights that are not the model's"),
        ("helper.so", b"", "'helper.so' is of a kind that does not belong there"),
        ("sub/run.sh", b"", "'sub/run.sh' is of a kind that does not belong there"),
    ],
)
def test_stray_files(hub, new_repo_id, copy, name: str, content: bytes, reason: str) -> None:
    folder, repo = copy(), new_repo_id()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    hub.add_repo(repo, folder)
    assert files_only(folder) == files_only(repo) == {"files": reason}
    if name.endswith((".bin", ".pkl", ".gguf", ".so", ".sh")):
        assert not [r for r in hub.requests if r.path.endswith(name) and r.method == "GET"], "it was downloaded"


def test_changed_code_of_a_sliced_model_never_runs(hub, new_repo_id, copy, tmp_path: Path) -> None:
    folder, repo = copy("sliced"), new_repo_id()
    code = folder / "modeling_sliced_llama.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    hub.add_repo(repo, folder)
    found = verify(repo)
    assert set(failed(found)) == {"files"} and statuses(found)["pruned: perplexity"] == "pass"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"rms_norm_eps": 0.5}, "config"),
        ({"rope_theta": 5.0}, "config"),  # this version of transformers passes it by, version 4 does not
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, "config"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "config"),
        ({"dtype": "float16"}, "dtype"),
        ({"num_hidden_layers": 3}, "config"),
    ],
)
def test_a_changed_config(copy, changes: dict[str, Any], failing: str) -> None:
    folder = copy()
    edit_json(folder / "config.json", **changes)
    found = files_only(folder)
    assert failing in found
    if "num_hidden_layers" in changes:
        assert "unexpected keys" in found["weights fit the config"]


def test_a_changed_tokenizer_and_a_chat_template_from_nowhere(copy) -> None:
    folder = copy()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    edit_json(folder / "tokenizer_config.json", model_max_length=7)
    name = "tokenizer and other files of the base"
    assert files_only(folder) == {
        name: "the base has no 'chat_template.jinja'; 'tokenizer_config.json' differs from the base's"
    }


@pytest.mark.parametrize("figure", ["perplexity", "kl", "top1_agreement", "parameters"])
def test_a_changed_figure(copy, figure: str) -> None:
    folder = copy()
    path = folder / "pruning" / "evaluation.json"
    record = json.loads(path.read_text())
    model = record["models"][1]
    if figure == "perplexity":
        model["perplexity"][0]["perplexity"] *= 0.9
    elif figure == "parameters":
        model["parameters"] -= 1
    else:
        model["fidelity"][figure] += 0.01
    path.write_text(json.dumps(record))
    names = {"kl": "KL from original", "top1_agreement": "same first choice"}
    found = verify(folder)
    follows = {"pruned: figures agree"} if figure == "perplexity" else set()
    assert set(failed(found)) == {f"pruned: {names.get(figure, figure)}"} | follows
    assert statuses(found)["card"] == "fail"


def test_tokens_of_another_text(copy) -> None:
    folder = copy()
    path = folder / "pruning" / "evaluation_tokens.safetensors"
    tensors = load_file(path)
    tensors["ids"][5] ^= 1
    save_file(tensors, path)
    found = verify(folder)
    assert failed(found) == {"evaluation text": "it is another text, so that its figures are shown, not judged"}
    assert {c.status for c in found.checks if c.name.startswith("pruned: ")} == {"shown"}
    path.unlink()
    assert "lack its token ids" in failed(verify(folder))["evaluation text"]


def test_healing_that_did_not_happen(copy, made: Made) -> None:
    folder = copy("healed")
    shutil.copyfile(made("pruned") / "model.safetensors", folder / "model.safetensors")
    assert files_only(folder) == {
        "healed tensors": "healing is claimed, and none of its tensors differs from the base's"
    }
    (folder / "pruning" / "healing.json").unlink()
    assert "shipped model is evaluated" not in files_only(folder)


def test_a_card_that_flatters(hub, new_repo_id, copy) -> None:
    folder, repo = copy(), new_repo_id()
    card = (folder / "README.md").read_text()
    stated = re.search(r"value: (\d+\.\d+)", card)
    assert stated is not None
    (folder / "README.md").write_text(card.replace(stated[0], f"value: {float(stated[1]) / 2}", 1))
    hub.add_repo(repo, folder)
    for place in (folder, repo):
        [check] = [c for c in verify(place, evaluations="none").checks if c.status == "fail"]
        assert check.name == "card" and "The model-index says" in check.reason
    edit_json(folder / "pruner_config.json", hf_prune_version="9.9")
    text = (folder / "README.md").read_text().replace(f"value: {float(stated[1]) / 2}", stated[0])
    (folder / "README.md").write_text(text.replace("(2 of 6", "(3 of 6"))
    [check] = [c for c in verify(folder, evaluations="none").checks if c.name == "card"]
    assert check.status == "shown" and "hf_prune 9.9 wrote it" in check.reason
    (folder / "README.md").unlink()
    [check] = [c for c in verify(folder, evaluations="none").checks if c.status == "fail"]
    assert "holds no README.md" in check.reason


def test_records_that_contradict_each_other(copy) -> None:
    folder = copy("adapter")
    shutil.rmtree(folder / "adapter")
    edit_json(folder / "pruner_config.json", method="simple")
    assert files_only(folder)["records agree"] == "method: uidl and simple; adapter: True and False"


def test_an_adapter_that_is_a_pickle_is_not_loaded(copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("adapter")
    (folder / "adapter" / "adapter_model.safetensors").rename(folder / "adapter" / "adapter_model.bin")
    monkeypatch.setattr("hf_prune.pruner.Pruner.from_pruned", None)
    found = verify(folder)
    assert set(failed(found)) == {"files", "records agree"}
    assert found.checks[-1].status == "skipped" and "files" in found.checks[-1].reason


def test_narrower_than_planned(copy) -> None:
    folder = copy("sliced")
    plan = json.loads((folder / "pruning" / "plan.json").read_text())
    plan["slicing"]["mlp_out"][0] += 4
    plan["slicing"]["parameters"] += 1
    (folder / "pruning" / "plan.json").write_text(json.dumps(plan))
    assert set(files_only(folder)) == {"widths", "parameters"}


Change = Callable[[Path], Any]


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Rewrite the header of the weights."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        change(entries["model.norm.weight"])
        text = json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return edit


@pytest.mark.parametrize(
    "change",
    [
        header(lambda entry: entry.update(data_offsets=[-4, 4])),
        header(lambda entry: entry.update(data_offsets=["0", "4"])),
        header(lambda entry: entry.pop("dtype")),
        header(lambda entry: entry.update(shape=[10**30])),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        lambda folder: edit_json(folder / "config.json", quantization_config=5),
        lambda folder: edit_json(folder / "config.json", hidden_size="x"),
        lambda folder: edit_json(folder / "config.json", num_attention_heads=0),
        lambda folder: edit_json(folder / "config.json", dtype=["a"]),
        lambda folder: edit_json(folder / "config.json", attn_implementation="evil/kernel"),
    ],
)
def test_what_transformers_cannot_load(copy, change: Change) -> None:
    folder = copy()
    change(folder)
    assert "weights fit the config" in files_only(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("plan.json", "[" * 200_000, "is not JSON"),
        ("plan.json", '{"a": ' + "1" * 6000 + "}", "is not JSON"),
        ("output.json", "[]", "output.json must be a JSON object"),
        ("output.json", '{"base_card": 5, "base_files": [], "reload_level": "full"}', "output.json.base_card=5"),
        ("plan.json", '{"schema": 99}', "Plan has schema 99"),
    ],
)
def test_records_that_cannot_be_read(copy, file: str, content: str, message: str) -> None:
    folder = copy()
    (folder / "pruning" / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        verify(folder)


def shards(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Two files in the place of one, and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = {name: tensor for name, tensor in tensors.items() if "layers.0." in name}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    index = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in tensors}
    change(first, index)
    save_file(first, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(second, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_an_index_that_lies(copy, tmp_path: Path) -> None:
    def twice(first: dict[str, torch.Tensor], index: dict[str, str]) -> None:
        first["model.norm.weight"] = torch.zeros(32)

    def nowhere(first: dict[str, torch.Tensor], index: dict[str, str]) -> None:
        index["model.extra"] = "model-00001-of-00002.safetensors"

    folder = copy()
    shards(folder, lambda first, index: None)
    assert files_only(folder) == {}
    for change, reason in (
        (twice, "'model.norm.weight' lies in model-00001-of-00002.safetensors, the index says"),
        (nowhere, "the index names 'model.extra', which is nowhere"),
    ):
        shutil.rmtree(folder)
        folder = copy()
        shards(folder, change)
        assert files_only(folder)["weights fit the config"].startswith(reason)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(CheckpointError, match="names shards outside of the folder"):
        verify(folder)


def test_healing_that_reached_further(copy) -> None:
    folder, name = copy("healed"), "model.layers.0.self_attn.q_proj.weight"
    edit_weights(folder, lambda tensors: flip_one_bit(tensors, name))
    record = json.loads((folder / "pruning" / "healing.json").read_text())
    wider = [*record["target_modules"], "self_attn.q_proj"]
    edit_json(folder / "pruning" / "healing.json", target_modules=wider)
    assert "means mlp.down_proj, mlp.gate_proj, mlp.up_proj; it says" in files_only(folder)["healing record"]
    edit_json(folder / "pruning" / "healing.json", target_modules=record["target_modules"], trained_parameters=10**6)
    # Four layers of three maps between 32 and 48 numbers, at rank 2.
    assert f"adapters of rank 2 have {4 * 3 * 2 * (32 + 48):,} parameters" in files_only(folder)["healing record"]


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_mapping": {"base_model_class": "x", "parent_library": "antigravity"}},
        {"peft_type": "PROMPT_TUNING"},
        {"r": 10**9},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head"]},
        {"lora_alpha": 99},
    ],
)
def test_an_adapter_that_is_set_up_otherwise(copy, changes: dict[str, Any]) -> None:
    folder = copy("adapter")
    edit_json(folder / "adapter" / "adapter_config.json", **changes)
    assert next(iter(changes)) in files_only(folder)["healing record"]


def test_an_adapter_with_more_tensors(copy) -> None:
    folder = copy("adapter")
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 32)}, path)
    assert "lm_head" in files_only(folder)["healing record"]


def test_an_adapter_without_its_settings_is_not_loaded(copy) -> None:
    folder = copy("adapter")
    (folder / "adapter" / "adapter_config.json").unlink()
    found = verify(folder)
    assert "there is no file" in failed(found)["healing record"]
    assert found.checks[-1].status == "skipped" and "healing record" in found.checks[-1].reason


def test_what_cannot_be_measured_fails(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("evil")

    monkeypatch.setattr("hf_prune.verify.check_evaluations", broken)
    assert failed(verify(made("pruned"))) == {"evaluations": "the model cannot be measured: KeyError: 'evil'"}


def test_links_to_other_folders(copy, tmp_path: Path) -> None:
    folder = copy()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.pkl").write_bytes(b"\x80")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    assert files_only(folder) == {"files": "'sub/' is a link to another folder"}


def test_evaluations_that_name_no_text_or_models_twice(copy) -> None:
    folder = copy()
    path = folder / "pruning" / "evaluation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"models": [record["models"][0] | {"perplexity": []}, record["models"][1]]}))
    assert "name no text" in failed(verify(folder))["evaluations"]
    path.write_text(json.dumps(record | {"models": [*record["models"], record["models"][1]]}))
    assert "evaluated models" in files_only(folder)["records agree"]
    record["models"][1]["perplexity"][0]["data"]["samples"] = 10**6
    path.write_text(json.dumps(record))
    assert failed(verify(folder)) == {"evaluation text": "the records describe it otherwise than it is"}


def test_layers_that_the_base_does_not_have(copy) -> None:
    folder = copy()
    plan = json.loads((folder / "pruning" / "plan.json").read_text())
    for layers, problem in (([3, 4, 100], "layers left"), ([3, 4, 3], "layers of the plan")):
        plan["operations"][0]["layers"] = layers
        (folder / "pruning" / "plan.json").write_text(json.dumps(plan))
        assert problem in files_only(folder)["records agree"]


def test_layers_that_were_named_by_nobody(copy) -> None:
    folder = copy()
    edit_json(folder / "pruning" / "plan.json", planner="named")
    plan = json.loads((folder / "pruning" / "plan.json").read_text())
    plan["operations"][0]["layers"] = [2, 3]
    (folder / "pruning" / "plan.json").write_text(json.dumps(plan))
    assert "plan from recipe" in files_only(folder, replan=True)


# What cannot be verified.


def test_refusals(base: Path, made: Made, copy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder that hf-prune has finished"):
        verify(base)
    other = base_folder(tmp_path / "other", depth=4)[1]
    with pytest.raises(ConfigError, match=f"llama with 4 blocks; the records speak of '{BASE}', llama with 6"):
        verify(made("pruned"), original=other)
    folder = copy()
    plan = json.loads((folder / "pruning" / "plan.json").read_text())
    plan["model"]["revision"] = None
    (folder / "pruning" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match="without a commit: it was a folder, which cannot be fetched. Name it"):
        verify(folder)
    with pytest.raises(HubError):
        verify("alice/nowhere")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "mamba"])
def test_names_of_other_families(tmp_path: Path, model_type: str) -> None:
    _, base = base_folder(tmp_path / "base", model_type=model_type)
    Pruner.from_pretrained(base, recipe(layers=[2, 5]), progress=False).save_pretrained(tmp_path / "out")
    found = verify(tmp_path / "out", original=base, evaluations="none")
    assert found.passed and found.count("shown") == 0, found.table()
    Pruner.from_pretrained(base, recipe(layers=[2, 6]), progress=False).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "out" / "model.safetensors")
    assert set(files_only(tmp_path / "out", original=base)) == {"kept tensors"}


def test_a_model_that_was_handed_over_in_memory(base: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(base)
    pruner = Pruner(whole, AutoTokenizer.from_pretrained(base), recipe(layers=[2]), progress=False)
    found = verify(pruner.save_pretrained(tmp_path / "out"), original=base, evaluations="none")
    assert found.passed, found.table()
    shown = [check.name for check in found.checks if check.status == "shown"]
    assert shown == ["base model", "tokenizer and other files of the base"]


def test_a_folder_stands_for_the_base(base: Path, made: Made) -> None:
    found = verify(made("pruned"), original=base, evaluations="none")
    assert found.passed and statuses(found)["base model"] == "shown"
    assert statuses(found)["kept tensors"] == "pass"


# The command.


def test_the_command(made: Made, copy) -> None:
    good = call("verify", made("pruned"), "--no-evaluate")
    assert good.code == 0, good.err
    assert good.out.splitlines()[0].split() == ["check", "claimed", "measured", "tolerance", "result"]
    assert "✓ pruned: " in good.out and " passed" in good.out
    folder = copy()
    edit_json(folder / "config.json", rms_norm_eps=0.5)
    bad = call("verify", folder, "--sample", "2", "--json")
    assert bad.code == 1 and bad.json["passed"] is False
    assert [c["name"] for c in bad.json["checks"] if c["status"] == "fail"][0] == "config"
    assert Verification.from_dict({k: v for k, v in bad.json.items() if k != "passed"}).passed is False
    contradiction: Called = call("verify", folder, "--sample", "2", "--no-evaluate")
    assert contradiction.failed().startswith("--sample says how much to evaluate")


def test_names_from_a_repo_cannot_write_to_the_terminal(made: Made) -> None:
    found = verify(made("pruned"), evaluations="none")
    nasty = dataclasses.replace(found.checks[0], status="fail", claimed="\x1b[2J", reason="a\nb\x07")
    shown = dataclasses.replace(found, checks=(nasty,)).table()
    assert "\x1b" not in shown and "\x07" not in shown and "\n    a b" in shown
