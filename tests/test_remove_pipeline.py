"""Taking parts out, from the recipe to the card: what the records say is what was saved, healed and pushed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig
from hf_prune.card_check import check_card
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.records import Plan
from hf_prune.run import run
from hf_prune.verify import verify
from tests.cli.support import fast, planted, recipe
from tests.hub.fixtures import ALICE, start_session_hub
from tests.making import base_folder, edit_json, logits
from tests.tiny import tokens

HARD: dict[str, Any] = {"method": "blockpruner", "drop_layers": 3, "surgery_kwargs": {"export": "hard"}}
BASE = "acme/whole-base"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base", (0, 3), depth=5)
    start_session_hub().add_repo(BASE, folder)
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fast(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    yield


def failed(folder: str | Path, base: Path | None = None) -> dict[str, str]:
    found = verify(folder, original=base, evaluations="none")
    return {check.name: check.reason for check in found.checks if check.status == "fail"}


@pytest.mark.parametrize("heal", [False, True], ids=["pruned", "healed"])
def test_from_recipe_to_verified_push(base: Path, tmp_path: Path, hub, new_repo_id, heal: bool) -> None:
    folder, repo = tmp_path / "out", new_repo_id()
    result = run(BASE, recipe(**HARD), folder, heal=heal, push=repo, progress=False)
    plan = Plan.load(folder / "pruning" / "plan.json")
    assert {op.kind for op in plan.operations} == {"remove"} and len(plan.removed) == 3
    assert result.finished.evaluation is not None
    figures = {model.label: model for model in result.finished.evaluation.models}
    whole = sum(t.numel() for t in load_file(base / "model.safetensors").values())
    norms = 32 * len(plan.removed)
    gone = int(re.search(r"They hold ([\d,]+) of ([\d,]+) parameters", plan.reason)[1].replace(",", ""))
    stored = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    assert stored == whole - gone - norms == figures["pruned"].parameters
    assert figures["original"].parameters == whole
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "patched_llama" and config["architectures"] == ["PatchedLlamaForCausalLM"]
    card = (folder / "README.md").read_text()
    for part in ("trust_remote_code=True", "`patched_llama`", "custom_code", "taken out", "ships modeling code"):
        assert part in card, part
    for part in ("silenced", "stock `", "sliced"):
        assert part not in card, part
    assert not [finding for finding in check_card(folder) if finding.level == "error"]
    found = verify(repo, original=BASE)
    assert found.passed, found.table()
    files = set(HfApi().list_repo_files(repo))
    assert {"patched.py", "modeling_patched_llama.py", "configuration_patched_llama.py"} <= files


def test_hard_and_soft_take_the_same_and_answer_alike(base: Path, tmp_path: Path) -> None:
    models = {}
    for export in ("soft", "hard"):
        config = recipe(**{**HARD, "surgery_kwargs": {"export": export}})
        pruner = Pruner.from_pretrained(base, config, device_map="cpu", progress=False)
        folder = pruner.save_pretrained(tmp_path / export)
        models[export] = (pruner.plan(), AutoModelForCausalLM.from_pretrained(folder).eval())
    (soft_plan, soft), (hard_plan, hard) = models["soft"], models["hard"]
    assert soft_plan.removed == hard_plan.removed and not soft_plan.hard and hard_plan.hard
    torch.testing.assert_close(logits(hard, tokens()), logits(soft, tokens()), rtol=0, atol=1e-6)
    assert hard.num_parameters() < soft.num_parameters()


def test_named_layers_and_a_folder_that_is_taken_up(base: Path, tmp_path: Path) -> None:
    config = recipe(method="simple", unit="attention", layers=(0, 2), surgery_kwargs={"export": "hard"})
    folder = Pruner.from_pretrained(base, config, device_map="cpu", progress=False).save_pretrained(tmp_path / "out")
    again = Pruner.from_pruned(folder, original=base, device_map="cpu", progress=False)
    again.heal()
    healed = again.save_pretrained(tmp_path / "healed")
    assert not failed(healed, base)
    loaded = AutoModelForCausalLM.from_pretrained(healed)
    assert loaded.config.removed_parts == {"attention": [0, 2], "mlp": []}
    assert {path.name for path in healed.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    with pytest.raises(ArchitectureError, match="lacks parts of its blocks already"):
        Pruner.from_pretrained(folder, recipe(), progress=False)


def test_verifying_catches_what_is_not_so(base: Path, tmp_path: Path) -> None:
    folder = Pruner.from_pretrained(base, recipe(**HARD), progress=False).save_pretrained(tmp_path / "out")
    assert not failed(folder, base)
    before = (folder / "config.json").read_text()
    parts = json.loads(before)["removed_parts"]
    edit_json(folder / "config.json", removed_parts={**parts, "mlp": []})
    assert {"config", "weights fit the config"} & set(failed(folder, base))
    edit_json(folder / "config.json", removed_parts=parts, model_type="patched_mistral")
    assert "config" in failed(folder, base)
    (folder / "config.json").write_text(before)
    tensors = load_file(folder / "model.safetensors")
    next(t for name, t in tensors.items() if "mlp" in name).view(torch.uint8)[0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "kept tensors" in failed(folder, base)


def test_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export='hard' is for attentions and MLPs"):
        PrunerConfig(method="uidl", drop_layers=2, surgery_kwargs={"export": "hard"})
    with pytest.raises(ConfigError, match="export='firm'; expected one of: 'soft', 'hard'"):
        PrunerConfig(method="blockpruner", drop_layers=2, surgery_kwargs={"export": "firm"})
    base_folder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ArchitectureError, match="gpt2.* is there for llama"):
        Pruner.from_pretrained(tmp_path / "gpt2", recipe(**HARD), progress=False)
    base_folder(tmp_path / "llama", "llama")
    pruner = Pruner.from_pretrained(
        tmp_path / "llama", recipe(**HARD), progress=False, max_memory={"cpu": "1MB"}, device_map="cpu"
    )
    with pytest.raises(ConfigError, match="taking parts out of blocks needs all of .* let them fall silent"):
        pruner.check_cut()
