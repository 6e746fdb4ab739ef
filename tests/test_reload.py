"""The reload contract: a saved model that is not what was in memory is found out, at both levels."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import prune_layers, reload
from hf_prune.checkpoint import SINGLE
from hf_prune.errors import ReloadError
from hf_prune.probe import probe
from hf_prune.reload import check_reload, reload_level
from hf_prune.saving import save_model

from .damage import flip, swap, tensors_of
from .evaluation.text import byte_tokenizer
from .making import base_folder, edit_json
from .tiny import DEPTH, tiny_model

CUT, KEEP = [1, 4, 5], [0, 2, 3, 6, 7]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work done here: seconds faster, and the same code but for the start of Python."""

    def run(command: list[str], **_kwargs: object) -> subprocess.CompletedProcess:
        *_, folder, wanted, settings = command
        try:
            problems = reload._compare(folder, wanted, json.loads(settings))
        except Exception as error:  # what a child would die of
            return subprocess.CompletedProcess(command, 1, "", f"Traceback ...\n{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, json.dumps({"problems": problems}) + "\n", "")

    monkeypatch.setattr(reload.subprocess, "run", run)


def cut_and_saved(folder: Path, model_type: str = "qwen3", **overrides: object) -> tuple[PreTrainedModel, Path, Path]:
    """A cut model, where it was saved, and its base."""
    model, base = base_folder(folder / "base", model_type, **overrides)
    out = folder / "out"
    out.mkdir()
    prune_layers(model, CUT)
    save_model(model, byte_tokenizer(), out, source=base, keep=KEEP)
    return model, out, base


# How a saved folder can be wrong: name -> (what is done to it, what the error names).
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (tensors_of(flip), "logits differ|'model.layers.3.mlp.down_proj.weight' differs"),
    "two blocks in each other's place": (tensors_of(swap), "logits differ|q_proj.weight' differs"),
    "a missing tensor": (
        tensors_of(lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        "missing keys.*model.layers.2.mlp.up_proj.weight",
    ),
    "a tensor too many": (
        tensors_of(lambda t: t.update({"model.layers.5.mlp.up_proj.weight": torch.zeros(48, 32)})),
        "unexpected keys.*model.layers.5.mlp.up_proj.weight",
    ),
    "a tensor of another shape": (
        tensors_of(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 3)})),
        "mismatched keys.*model.layers.2.mlp.up_proj.weight",
    ),
    "a tensor of another dtype": (
        tensors_of(lambda t: t.update({k: v.half() for k, v in t.items() if "layers.2.mlp.up" in k})),
        "logits differ|up_proj.weight' is float16, expected float32",
    ),
    "the layer count of the base": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=DEPTH, layer_types=None),
        "missing keys",
    ),
    "a smaller layer count": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=4, layer_types=None),
        "unexpected keys",
    ),
    "layer types of another depth": (
        lambda folder: edit_json(folder / "config.json", layer_types=["full_attention"] * DEPTH),
        "does not load back.*layer_types",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "does not load back"),
    "no weights": (lambda folder: (folder / SINGLE).unlink(), "does not load back"),
    "another dtype in the config": (lambda folder: edit_json(folder / "config.json", dtype="bfloat16"), "dtype"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path, Path]:
    return cut_and_saved(tmp_path_factory.mktemp("good"))


def test_what_was_saved_passes(good, in_process) -> None:
    model, out, base = good
    assert check_reload(model, out) == "full", "there is room for a second copy of a tiny model"
    assert check_reload(model, out, level="streamed") == "streamed"
    assert check_reload(model, out, source=base, keep=KEEP, level="streamed") == "streamed"


def test_in_a_child_for_real(good, tmp_path: Path) -> None:
    model, out, _ = good
    damaged = shutil.copytree(out, tmp_path / "damaged")
    DAMAGE["a flipped bit"][0](damaged)
    with pytest.raises(ReloadError, match=r"damaged' loads back as another model: logits differ by up to \d"):
        check_reload(model, damaged, level="full")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_every_damage_in_a_child(good, tmp_path: Path, damage: str | None) -> None:
    model, out, _ = good
    folder = shutil.copytree(out, tmp_path / "out")
    if damage is None:
        assert check_reload(model, folder, level="full") == "full"
        return
    act, message = DAMAGE[damage]
    act(folder)
    with pytest.raises(ReloadError, match=rf"(?s){message}"):
        check_reload(model, folder, level="full")


@pytest.mark.parametrize("given", ["full", "streamed", "streamed from base"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(good, in_process, tmp_path: Path, damage: str, given: str) -> None:
    model, out, base = good
    folder = shutil.copytree(out, tmp_path / "out")
    act, message = DAMAGE[damage]
    act(folder)
    source = {"source": base, "keep": KEEP} if given == "streamed from base" else {}
    with pytest.raises(ReloadError, match=rf"(?s){message}"):
        check_reload(model, folder, level=given.split()[0], **source)


@pytest.mark.parametrize("level", ["full", "streamed"])
def test_wrong_pattern_of_layer_types(tmp_path: Path, in_process, level: str) -> None:
    model, out, _ = cut_and_saved(tmp_path, "gemma2")
    kinds = json.loads((out / "config.json").read_text())["layer_types"]
    assert len(set(kinds)) == 2
    check_reload(model, out, level=level)
    edit_json(out / "config.json", layer_types=kinds[::-1])
    with pytest.raises(ReloadError, match="logits differ" if level == "full" else "layer_types"):
        check_reload(model, out, level=level)
    edit_json(out / "config.json", layer_types=None)  # regenerated: another pattern than the blocks were trained with
    with pytest.raises(ReloadError, match="logits differ" if level == "full" else "layer_types"):
        check_reload(model, out, level=level)


@pytest.mark.parametrize(
    "model_type", ["gpt2", "mixtral", "deepseek_v3", "gpt_neo", "gemma", "qwen2_moe", "falcon", "mamba"]
)
def test_streamed_passes_every_layout(tmp_path: Path, model_type: str) -> None:
    model, out, base = cut_and_saved(tmp_path, model_type)
    check_reload(model, out, level="streamed")
    check_reload(model, out, source=base, keep=KEEP, level="streamed")


def test_streamed_reads_bases_without_the_prefix(tmp_path: Path) -> None:
    """The first GPT-2 checkpoints name their tensors without `transformer.`"""
    _, base = base_folder(tmp_path / "base", "gpt2")
    tensors = load_file(base / SINGLE)
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, base / SINGLE, {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(base)
    prune_layers(model, CUT)
    save_model(model, byte_tokenizer(), tmp_path / "out", source=base, keep=KEEP)
    check_reload(model, tmp_path / "out", source=base, keep=KEEP, level="streamed")


def test_streamed_allows_the_cast_that_was_asked_for(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    prune_layers(model, CUT)
    out = tmp_path / "out"
    save_model(model, byte_tokenizer(), out, source=base, keep=KEEP)
    check_reload(model, out, source=base, keep=KEEP, level="streamed")
    tensors = load_file(out / SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, out / SINGLE, {"format": "pt"})
    with pytest.raises(ReloadError, match="'model.norm.weight' is float32, expected bfloat16"):
        check_reload(model, out, source=base, keep=KEEP, level="streamed")


def test_streamed_with_the_wrong_blocks(good) -> None:
    model, out, base = good
    with pytest.raises(ReloadError, match="differs from"):
        check_reload(model, out, source=base, keep=[0, 2, 3, 5, 7], level="streamed")


def test_changed_weights_in_memory_are_found(tmp_path: Path, in_process) -> None:
    """The model that is healed after saving is not the model that was saved."""
    model, out, _ = cut_and_saved(tmp_path, "llama")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1
    for level in ("full", "streamed"):
        with pytest.raises(ReloadError, match="differ"):
            check_reload(model, out, level=level)


def test_probe_is_the_same_every_time() -> None:
    model = tiny_model("llama")
    one, two = probe(model), probe(model)
    assert one["ids"].shape == (2, 16) and one["logits"].shape == (2, 16, 96) and one["greedy"].shape == (2, 24)
    assert all(torch.equal(one[key], two[key]) for key in one)
    model.generation_config.eos_token_id = int(one["greedy"][0, 16])
    model.generation_config.max_new_tokens = 1
    model.generation_config.do_sample = True
    own = model.generation_config
    assert all(torch.equal(one[key], value) for key, value in probe(model.train()).items())
    assert model.generation_config is own and model.training


def test_level_follows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    free = reload.psutil.virtual_memory()
    assert reload_level(model) == "full"
    monkeypatch.setattr(reload.psutil, "virtual_memory", lambda: free._replace(available=10**8))
    assert reload_level(model) == "streamed"
    monkeypatch.undo()
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    assert reload_level(model) == "streamed"
    model.hf_device_map = {"": "cpu"}
    assert reload_level(model) == "full"


def test_child_stays_off_the_network(good, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out, _ = good
    seen: dict = {}

    def run(command: list[str], env: dict[str, str], **_kwargs: object) -> subprocess.CompletedProcess:
        seen.update(env=env, command=command)
        return subprocess.CompletedProcess(command, 0, '{"problems": []}', "")

    monkeypatch.setattr(reload.subprocess, "run", run)
    check_reload(model, out, level="full")
    assert seen["env"]["HF_HUB_OFFLINE"] == "1" and seen["command"][:3] == [sys.executable, "-m", "hf_prune.reload"]


def test_child_is_given_no_secrets(good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child: what it can see is written down by a `sitecustomize` before anything else runs in it."""
    model, out, _ = good
    seen = tmp_path / "seen.json"
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        f"open({str(seen)!r}, 'w').write(json.dumps([dict(os.environ), sys.argv, sys.orig_argv]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OAUTH_CLIENT_SECRET", "HF_TOKEN_PATH", "SOME_API_KEY")
    for name in names:
        monkeypatch.setenv(name, f"canary-{name}")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert check_reload(model, out, level="full") == "full"
    environment = json.loads(seen.read_text())[0]
    assert "canary" not in seen.read_text() and not set(names) & set(environment)
    assert environment["TOKENIZERS_PARALLELISM"] == "false" and environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
