"""Models that are never loaded as a whole: from the config alone, block by block, file to file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig, loading, streaming
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import block_sizes, parameter_bytes
from hf_prune.checkpoint import weight_files
from hf_prune.dry_run import preview
from hf_prune.errors import CheckpointError, ConfigError, OutputError
from hf_prune.file_to_file import file_to_file
from hf_prune.loading import load_model
from hf_prune.output import Finished
from hf_prune.run import run
from hf_prune.run_folder import RunFolder
from tests.cli.support import planted, recipe
from tests.making import base_folder, edit_json, logits
from tests.test_reload_streamed import in_process  # noqa: F401 (a fixture)
from tests.tiny import every_type, tokens

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


@pytest.mark.parametrize("model_type", every_type())
def test_the_config_tells_what_blocks_weigh(model_type: str, tmp_path: Path) -> None:
    model, folder = base_folder(tmp_path, model_type)
    blank = loading.blank_model(folder, "base")
    assert block_sizes(decoder_of(blank)) == block_sizes(decoder_of(model))
    assert parameter_bytes(blank) == parameter_bytes(model)
    assert all(parameter.is_meta for parameter in blank.parameters())


@pytest.mark.parametrize(
    ("model_type", "given", "dtype"),
    [
        ("llama", "auto", None),  # the config names none: the weights tell
        ("llama", "bfloat16", "float32"),
        ("gpt_oss", "float16", "float32"),  # some weights stay in float32
        ("deepseek_v3", "bfloat16", "float32"),
    ],
)
def test_sizes_are_those_of_the_loaded_model(tmp_path: Path, model_type: str, given: str, dtype: str | None) -> None:
    model, folder = base_folder(tmp_path, model_type)
    if dtype is None:
        model.to(torch.bfloat16).save_pretrained(folder)
    edit_json(folder / "config.json", dtype=dtype)
    pruner = Pruner.from_pretrained(folder, PrunerConfig(drop_layers=1), progress=False, dtype=given)
    blank = pruner.models.sizes()
    assert pruner.model.dtype is not None, "loaded"
    assert pruner.models.sizes() == blank


def test_a_plan_by_weight_loads_nothing(base: Path, nothing_loads: None) -> None:
    config = PrunerConfig(method="simple", sparsity=0.3, sparsity_of="parameters")
    assert Pruner.from_pretrained(base, config, progress=False).plan().dropped


@pytest.mark.usefixtures("in_process")
def test_pruning_without_measuring_loads_nothing(base: Path, tmp_path: Path, nothing_loads: None, monkeypatch) -> None:
    pruner = Pruner.from_pretrained(base, PrunerConfig(method="simple", drop_layers=3), progress=False)
    pruner.save_pretrained(tmp_path / "streamed", max_shard_size="60KB")
    monkeypatch.setattr("hf_prune.loading.load_model", load_model)
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


def test_no_bar_says_that_weights_are_loaded(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def make(factory: Any, args: Any, kwargs: Any) -> Any:
        seen.append(kwargs["desc"])
        return factory(*args, **kwargs)

    monkeypatch.setattr("transformers.utils.logging._tqdm_hook", make)
    config = recipe(calibration={"dataset": str(text)}, drop_layers=2)
    pruner = Pruner.from_pretrained(base, config, progress=False, max_memory={"cpu": "4GB"})
    pruner.measure()
    assert file_to_file(pruner.models, pruner.tokenizer, pruner.plan(), work=None) is not None
    assert not seen
    pruner.models.original()
    assert seen == ["Loading weights"], "now they are"


@pytest.mark.usefixtures("in_process")
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


def test_room_is_where_the_model_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "free_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    for where, room in (("auto", 1200), ({"": 0}, 1200), ("cuda:1", 100), ("cpu", 1000), (None, 1000)):
        assert streaming.has_room(int(room / 1.21), None, where), where
        assert not streaming.has_room(int(room / 1.19), None, where), where


def test_processes_that_share_a_machine_share_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "free_memory", lambda: 1000)
    assert streaming.has_room(500, None, "cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not streaming.has_room(500, None, "cpu")


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


def test_a_bound_counts_no_more_sequences_than_there_are(base: Path, text: Path, nothing_loads: None) -> None:
    config = recipe(calibration={"dataset": str(text), "samples": 1, "batch_size": 10**6}, drop_layers=2)
    assert Pruner.from_pretrained(base, config, progress=False, max_memory={"cpu": "4GB"}).measure().data.samples == 1


@pytest.mark.parametrize("method", ["slicegpt", "dynamic-slicing"])
@pytest.mark.parametrize("given", [True, False])
def test_slicing_is_not_bounded(
    base: Path, text: Path, tmp_path: Path, nothing_loads: None, method: str, given: bool
) -> None:
    dataset = {"dataset": str(text)} if given else {}
    config, bound = recipe(method=method, sparsity=0.25, calibration=dataset), {"cpu": "4GB"}
    pruner = Pruner.from_pretrained(base, config, progress=False, max_memory=bound, run_folder=tmp_path / "work")
    refused = pytest.raises(ConfigError, match="slicing needs all of .*take a method that drops layers")
    with refused:
        pruner.save_pretrained(tmp_path / "out")
    with refused:
        pruner.prune()
    assert not (tmp_path / "work").exists(), "before any work"
    with refused:
        run(base, config, tmp_path / "out", evaluate=False, progress=False, max_memory=bound)
    with refused:
        preview(str(base), config, tmp_path / "out", heal=False, evaluate=False, push=None, max_memory=bound)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()
    if given and method == "slicegpt":
        assert pruner.plan().slicing, "for another machine"
    else:
        with pytest.raises(ConfigError, match="needs all of"):
            pruner.plan()


def test_nothing_slips_a_bounded_model_into_memory(base: Path, text: Path, nothing_loads: None) -> None:
    config = recipe(calibration={"dataset": str(text)}, drop_layers=2)
    pruner = Pruner.from_pretrained(base, config, progress=False, max_memory={"cpu": "4GB"})
    for work, doing in (
        (pruner.prune, "pruning in memory needs all of .*save_pretrained"),
        (pruner.heal, "healing needs"),
        (pruner.evaluate, "evaluating needs"),
    ):
        with pytest.raises(ConfigError, match=doing):
            work()


def test_quantized_weights_are_not_bounded(base: Path, tmp_path: Path, nothing_loads: None) -> None:
    shutil.copytree(base, tmp_path / "base")
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(tmp_path / "base/config.json", quantization_config=quantized)
    config, bound = PrunerConfig(method="simple", drop_layers=2), {"cpu": "4GB"}
    refused = pytest.raises(ConfigError, match="quantized weights.*memory cannot be bounded.*Leave the bound out")
    with refused:
        Pruner.from_pretrained(tmp_path / "base", config, progress=False, max_memory=bound)
    with refused:
        preview(
            str(tmp_path / "base"), config, tmp_path / "out", heal=False, evaluate=False, push=None, max_memory=bound
        )


def _told(base: Path | str, config: PrunerConfig, output: Path, **given: Any) -> dict[str, str]:
    return dict(preview(str(base), config, output, heal=False, evaluate=False, push=None, **given)[1])


def test_a_dry_run_refuses_what_a_bound_forbids(base: Path, tmp_path: Path) -> None:
    out, simple = tmp_path / "out", PrunerConfig(method="simple", drop_layers=2)
    with pytest.raises(ConfigError, match="sampling text from the model needs all of .*--dataset"):
        _told(base, recipe(drop_layers=2), out, max_memory={"cpu": "4GB"})
    with pytest.raises(ConfigError, match="memory budget 'lots'"):
        _told(base, simple, out, max_memory={"cpu": "lots"})


def test_a_dry_run_tells_how_a_cut_is_made(base: Path, text: Path, tmp_path: Path, hub, new_repo_id) -> None:
    out, measured = tmp_path / "out", recipe(calibration={"dataset": str(text)}, drop_layers=2)
    assert "loaded again" in _told(base, measured, out)["prune"]
    bounded = _told(base, measured, out, max_memory={"cpu": "4GB"})
    assert "block by block" in bounded["measure"] and "from file to file" in bounded["prune"]
    repo, simple = new_repo_id(), PrunerConfig(method="simple", drop_layers=2)
    hub.add_repo(repo, base)
    fetched = "only what is kept is fetched"
    assert fetched in _told(repo, simple, out)["prune"]
    assert fetched not in _told(repo, simple, out, verify_hash=True)["prune"]
    assert fetched not in _told(repo, measured, out, max_memory={"cpu": "4GB"})["prune"]
    assert Pruner.from_pretrained(repo, simple, progress=False).model is not None
    assert fetched not in _told(repo, simple, out)["prune"], "all of it is in the cache"


@pytest.mark.usefixtures("in_process")
def test_from_the_hub_only_what_is_kept_is_fetched(
    hub, hub_token, new_repo_id, tmp_path: Path, nothing_loads, monkeypatch
) -> None:
    _, folder = base_folder(tmp_path / "base")
    repo = new_repo_id()
    commit = hub.add_repo(repo, folder)
    pruner = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
    pruner.save_pretrained(tmp_path / "out")
    finished = Finished.load(tmp_path / "out")
    assert finished.fetched == "ranges" and finished.plan.model.revision == commit
    assert "hash" in (tmp_path / "out/README.md").read_text()
    monkeypatch.setattr("hf_prune.file_to_file.check_streamed", lambda *args, **kwargs: "streamed")
    verified = Pruner.from_pretrained(
        repo, PrunerConfig(method="simple", drop_layers=3), progress=False, verify_hash=True
    )
    verified.save_pretrained(tmp_path / "verified")
    assert Finished.load(tmp_path / "verified").fetched == "verified"
    assert same_tensors(tmp_path / "out", tmp_path / "verified")
    again = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
    again.save_pretrained(tmp_path / "again")
    assert Finished.load(tmp_path / "again").fetched == "whole", "now all of it lies in the cache"


def test_what_is_made_of_parts_stays_so(hub, hub_token, new_repo_id, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hf_prune.reload.reload_level", lambda model: "streamed")
    monkeypatch.setattr("hf_prune.file_to_file.check_streamed", lambda *args, **kwargs: "streamed")
    repo, (_, folder) = new_repo_id(), base_folder(tmp_path / "base")
    hub.add_repo(repo, folder)
    pruner = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
    pruner.save_pretrained(tmp_path / "one")
    pruner.save_pretrained(tmp_path / "two")
    assert [Finished.load(tmp_path / name).fetched for name in ("one", "two")] == ["ranges", "ranges"]


def test_weights_that_do_not_fit_the_config_are_refused(hub, hub_token, new_repo_id, tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "base")
    edit_json(folder / "config.json", num_hidden_layers=7)
    deep, adapter = new_repo_id(), new_repo_id()
    hub.add_repo(deep, folder)
    edit_json(folder / "config.json", num_hidden_layers=8)
    (folder / "adapter_config.json").write_text("{}")
    hub.add_repo(adapter, folder)
    for repo, said in ((deep, "hold 8 layers, its config says num_hidden_layers=7"), (adapter, "has an adapter")):
        with pytest.raises(CheckpointError, match=said):
            pruner = Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
            pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verified_weights_are_another_output(hub, hub_token, new_repo_id, base: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hf_prune.file_to_file.check_streamed", lambda *args, **kwargs: "streamed")
    repo = new_repo_id()
    hub.add_repo(repo, base)
    config, out = PrunerConfig(method="simple", drop_layers=2), tmp_path / "out"
    run(repo, config, out, evaluate=False, progress=False)
    assert run(repo, config, out, evaluate=False, progress=False).repeated
    with pytest.raises(OutputError, match="is not empty"):
        run(repo, config, out, evaluate=False, progress=False, verify_hash=True)
    with pytest.raises(ConfigError, match="of the folder '.*': only files on the Hub have hashes"):
        run(base, config, tmp_path / "other", evaluate=False, progress=False, verify_hash=True)


def test_a_plan_of_another_commit_names_it(hub, hub_token, new_repo_id, base: Path) -> None:
    repo = new_repo_id()
    commit = hub.add_repo(repo, base)
    config = PrunerConfig(method="simple", drop_layers=2)
    plan = Pruner.from_pretrained(repo, config, progress=False).plan()
    hub.add_repo(repo, {"notes.md": "The branch moves."})
    with pytest.raises(ConfigError, match=rf"Plan again, or name the plan's commit \(--revision {commit}\)"):
        Pruner.from_pretrained(repo, config, progress=False).use_plan(plan)
    Pruner.from_pretrained(repo, config, progress=False, revision=commit).use_plan(plan)


def test_two_processes_do_not_fill_the_same_files(base: Path, tmp_path: Path) -> None:
    config, folder = PrunerConfig(method="simple", drop_layers=2), tmp_path / "out.run"
    pruner = Pruner.from_pretrained(base, config, run_folder=folder, progress=False)
    with RunFolder(folder).alone(), pytest.raises(OutputError, match=r"out\.run' is in use: another process"):
        pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with RunFolder(folder).alone():
        pass


def test_pickles_are_refused_before_anything_is_planned(hub, hub_token, new_repo_id, tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "base")
    for path in weight_files(folder):
        path.rename(folder / "pytorch_model.bin")
    repo = new_repo_id()
    hub.add_repo(repo, folder)
    with pytest.raises(CheckpointError, match="pickles"):
        Pruner.from_pretrained(repo, PrunerConfig(method="simple", drop_layers=3), progress=False)
