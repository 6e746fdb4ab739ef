"""Models that are never loaded as a whole: from the config alone, block by block, file to file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig, loading, streaming
from hf_prune.architecture import FAMILIES, decoder_of
from hf_prune.architecture.decoder import block_sizes, parameter_bytes
from hf_prune.checkpoint import weight_files
from hf_prune.dry_run import preview
from hf_prune.errors import CheckpointError, ConfigError
from hf_prune.output import Finished
from hf_prune.run import run
from tests.cli.support import planted, recipe
from tests.making import base_folder, logits
from tests.tiny import tokens

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]
TEXT = "The wind in the thin grass was gone, and the sea was calm. Café and thé in the rain. "


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base")
    (folder / "LICENSE").write_text("Do what you like.")
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{TEXT}{n}" for n in range(200)))
    return path


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_prune.loading.load_model", never)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(
        a.dtype == theirs[name].dtype and torch.equal(a, theirs[name]) for name, a in ours.items()
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_config_tells_what_blocks_weigh(model_type: str, tmp_path: Path) -> None:
    model, folder = base_folder(tmp_path, model_type)
    blank = loading.blank_model(folder, "base")
    assert block_sizes(decoder_of(blank)) == block_sizes(decoder_of(model))
    assert parameter_bytes(blank) == parameter_bytes(model)
    assert all(parameter.is_meta for parameter in blank.parameters())


def test_a_plan_by_weight_loads_nothing(base: Path, nothing_loads: None) -> None:
    config = PrunerConfig(method="simple", sparsity=0.3, sparsity_of="parameters")
    assert Pruner.from_pretrained(base, config, progress=False).plan().dropped


def test_pruning_without_measuring_loads_nothing(base: Path, tmp_path: Path, nothing_loads: None, monkeypatch) -> None:
    pruner = Pruner.from_pretrained(base, PrunerConfig(method="simple", drop_layers=3), progress=False)
    pruner.save_pretrained(tmp_path / "streamed", max_shard_size="60KB")
    monkeypatch.undo()
    whole = Pruner.from_pretrained(base, PrunerConfig(method="simple", drop_layers=3), progress=False)
    assert whole.model is not None, "loaded, so that it is cut in memory"
    whole.save_pretrained(tmp_path / "whole")
    assert same_tensors(tmp_path / "streamed", tmp_path / "whole")
    assert (tmp_path / "streamed/config.json").read_bytes() == (tmp_path / "whole/config.json").read_bytes()
    levels = [Finished.load(tmp_path / name).reload_level for name in ("streamed", "whole")]
    assert levels == ["full", "full"], "there is room to load a tiny model for the check"
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "streamed").iterdir() if "safetensors" not in path.name} == {
        name for name in files if "safetensors" not in name
    }
    assert len(weight_files(tmp_path / "streamed")) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    assert torch.equal(logits(model, tokens()), logits(whole.model, tokens()))
    assert torch.equal(logits(pruner.model, tokens()), logits(model, tokens())), (
        "the pruner goes on with what it wrote"
    )


def test_a_bounded_measure_gives_the_same_scores(base: Path, text: Path, nothing_loads: None, monkeypatch) -> None:
    config = recipe(calibration={"dataset": str(text)}, drop_layers=2)
    bounded = Pruner.from_pretrained(base, config, progress=False, max_memory={"cpu": "4GB"})
    found = bounded.measure()
    monkeypatch.undo()
    whole = Pruner.from_pretrained(base, config, progress=False).measure()
    assert (found.distances, found.standard_errors) == (whole.distances, whole.standard_errors)
    assert found.data == whole.data


def test_a_model_without_room_is_streamed(
    base: Path, text: Path, tmp_path, nothing_loads, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(streaming, "_free", lambda device_map: 1000)
    config = recipe(calibration={"dataset": str(text)}, drop_layers=2)
    pruner = Pruner.from_pretrained(base, config, progress=False)
    pruner.save_pretrained(tmp_path / "out")
    assert Finished.load(tmp_path / "out").reload_level == "streamed"
    assert "block by block" in caplog.text


@pytest.mark.parametrize("heal", [False, True])
def test_a_bound_refuses_what_needs_the_whole_model(base: Path, tmp_path: Path, nothing_loads: None, heal) -> None:
    doing, bound = ("healing", False) if heal else ("evaluating", True), {"cpu": "4GB"}
    with pytest.raises(ConfigError, match=rf"{doing[0]} needs all of 'tiny-base' in memory .*--memory-budget"):
        run(
            base,
            recipe(drop_layers=2),
            tmp_path / "out",
            heal=heal,
            evaluate=doing[1],
            progress=False,
            max_memory=bound,
        )
    with pytest.raises(ConfigError, match=f"{doing[0]} needs all of 'tiny-base' in memory"):
        preview(
            str(base),
            recipe(drop_layers=2),
            tmp_path / "out",
            heal=heal,
            evaluate=doing[1],
            push=None,
            max_memory=bound,
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_a_bound_needs_a_text(base: Path, tmp_path: Path, nothing_loads: None) -> None:
    pruner = Pruner.from_pretrained(base, recipe(drop_layers=2), progress=False, max_memory={"cpu": "4GB"})
    with pytest.raises(ConfigError, match="sampling text from the model needs all of .*--dataset"):
        pruner.measure()


@pytest.mark.parametrize("bound", [{"cpu": "lots"}, {"cpu": -1}, {"tpu": "4GB"}, {"cpu": "1KB"}])
def test_bounds_that_mean_nothing_or_are_too_small(base: Path, text: Path, nothing_loads: None, bound) -> None:
    with pytest.raises(ConfigError, match="memory"):
        Pruner.from_pretrained(
            base, recipe(calibration={"dataset": str(text)}, drop_layers=2), progress=False, max_memory=bound
        ).measure()


def test_slicing_is_not_bounded(base: Path, text: Path, tmp_path: Path, nothing_loads: None) -> None:
    config = PrunerConfig(
        method="slicegpt", sparsity=0.25, calibration=recipe(calibration={"dataset": str(text)}).calibration
    )
    pruner = Pruner.from_pretrained(base, config, progress=False, max_memory={"cpu": "4GB"})
    with pytest.raises(ConfigError, match="slicing needs all of"):
        pruner.save_pretrained(tmp_path / "out")


def test_from_the_hub_only_what_is_kept_is_fetched(hub, hub_token, new_repo_id, tmp_path: Path, nothing_loads) -> None:
    _, folder = base_folder(tmp_path / "base")
    repo = new_repo_id()
    commit = hub.add_repo(repo, folder)
    pruner = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
    pruner.save_pretrained(tmp_path / "out")
    finished = Finished.load(tmp_path / "out")
    assert finished.fetched == "ranges" and finished.plan.model.revision == commit
    assert "hash" in (tmp_path / "out/README.md").read_text()
    verified = Pruner.from_pretrained(
        repo, PrunerConfig(method="simple", drop_layers=3), progress=False, verify_hash=True
    )
    verified.save_pretrained(tmp_path / "verified")
    assert Finished.load(tmp_path / "verified").fetched == "verified"
    assert same_tensors(tmp_path / "out", tmp_path / "verified")
    again = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
    again.save_pretrained(tmp_path / "again")
    assert Finished.load(tmp_path / "again").fetched == "whole", "now all of it lies in the cache"


def test_pickles_are_refused_before_anything_is_planned(hub, hub_token, new_repo_id, tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "base")
    for path in weight_files(folder):
        path.rename(folder / "pytorch_model.bin")
    repo = new_repo_id()
    hub.add_repo(repo, folder)
    with pytest.raises(CheckpointError, match="pickles"):
        Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
