"""Other forms of a finished folder: they load back, answer as they should, and are refused where they cannot be."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import decoder_of
from hf_prune.card_check import check_card
from hf_prune.config import PrunerConfig
from hf_prune.errors import ArchitectureError, ConfigError, DataError, OutputError, ReloadError
from hf_prune.exporting import Export, base_adapter, export_base_adapter, export_nf4, is_export, nf4, push_export
from hf_prune.exporting.base_adapter import check_layers, layer_ranges
from hf_prune.figures import Evaluation
from hf_prune.healing.adapter import Adapters, save_adapter
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.held_out import held_out_loss
from hf_prune.output import ADAPTER, Finished
from hf_prune.records import ModelRef, Operation, Plan
from hf_prune.samples import Samples
from hf_prune.saving import RECORDS, save_model
from hf_prune.surgery import prune_layers
from tests.cli.support import call, done, tree
from tests.evaluation.text import byte_tokenizer
from tests.healing.support import settings, text
from tests.hub.fixtures import ALICE, start_session_hub
from tests.making import base_folder, logits
from tests.test_cards import evaluation as some_evaluation
from tests.test_cards import healing as some_healing
from tests.test_cards import model as some_figures
from tests.test_cards import perplexity
from tests.tiny import tokens

BASE = "acme/exported-base"
DROPPED = (2, 5)
GEMMA = {"layer_types": ["sliding_attention", "full_attention"] * 4}
KEPT = (0, 1, 3, 4, 6, 7)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)


@dataclasses.dataclass(frozen=True)
class Base:
    """A base on the Hub."""

    id: str
    commit: str
    folder: Path


def put_on_hub(folder: Path, model_type: str = "llama", name: str = BASE, **overrides: Any) -> Base:
    base_folder(folder, model_type, **overrides)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return Base(name, start_session_hub().add_repo(name, folder), folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return put_on_hub(tmp_path_factory.mktemp("bases") / "base")


def finished_folder(
    folder: Path, base: Base, *, output: str = "adapter", dropped: tuple[int, ...] = DROPPED, **changes: Any
) -> Path:
    """What a run leaves that has dropped layers and healed them, with weights of its own making."""
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    depth = decoder_of(model).num_layers
    ref = ModelRef(base.id, base.commit, model.config.model_type, depth, base.commit)
    made = Plan(ref, "uidl", "window", (Operation("drop", dropped),), "the closest")
    prune_layers(model, dropped)
    folder.mkdir()
    save_model(model, byte_tokenizer(), folder, source=base.folder, keep=made.kept)
    config = settings(target="all", output=output, **changes)
    chosen = Adapters.of(decoder_of(model), "all")
    record = some_healing(
        settings=serial.to_dict(config), target_modules=chosen.names, output=output, quantization=None, warnings=()
    )
    generator = torch.Generator().manual_seed(1)
    fresh = chosen.begin(model, config)
    state = {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in chosen.state(fresh).items()}
    if output == "adapter":
        save_adapter(fresh, state, folder / ADAPTER)
    recipe = PrunerConfig(layers=dropped, base_model=base.id, base_revision=base.commit)
    card = (base.folder / "README.md").read_text()
    Finished(recipe, made, None, record, None, card, ("LICENSE",), "full").save(folder)
    return folder


@pytest.fixture(scope="module")
def healed(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("finished") / "healed", base)


@pytest.fixture(scope="module")
def merged(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("finished") / "merged", base, output="merged")


@pytest.fixture
def spoilt(healed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healed, tmp_path / "spoilt"))


def with_adapter(folder: Path, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    with quiet_peft():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).eval()


def snippet(folder: Path, name: Path | str) -> dict[str, Any]:
    """What the card's own code makes, with this folder or repo in the place of the name."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    with quiet_peft():
        exec(re.sub(r'^name = ".*"$', f'name = "{name}"', code, flags=re.MULTILINE), names)
    return names


# An adapter on the original.


def test_base_adapter_is_the_healed_model(base: Base, healed: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    export = export_base_adapter(healed, out, progress=False)
    assert export == Export.load(out / RECORDS) and is_export(out) and not is_export(healed)
    assert export.difference == 0 and 1e-5 <= export.tolerance < 1e-2
    assert set(tree(out)) == {
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors", "pruner_config.json",
        "pruning/export.json", "pruning/healing.json", "pruning/plan.json",
    }  # fmt: skip
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.id and config["revision"] == base.commit
    assert config["layer_replication"] == [[0, 2], [3, 5], [6, 8]]
    wanted = logits(with_adapter(healed, healed / ADAPTER), tokens())
    assert torch.equal(logits(with_adapter(base.folder, out), tokens()), wanted)
    assert not torch.equal(logits(AutoModelForCausalLM.from_pretrained(healed), tokens()), wanted)
    names = snippet(out, out)
    assert torch.equal(logits(names["model"], tokens()), wanted) and names["commit"] == base.commit
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_what_was_written_comes_back_from_the_hub(hub, new_repo_id, base: Base, healed: Path, tmp_path: Path) -> None:
    out, repo = tmp_path / "out", new_repo_id()
    told = done("export", healed, "--to", "base-adapter", "--output", out)
    size = (out / "adapter_model.safetensors").stat().st_size
    assert told.out.startswith(f"✓ Exported {healed} as base-adapter") and f"weights: {size / 1000:.2f} kB" in told.out
    would = done("push", out, repo, "--dry-run")
    assert not hub.exists(repo) and "adapter_model.safetensors" in would.out
    done("push", out, repo, "--public")
    assert f'name = "{repo}"' in (out / "README.md").read_text()
    wanted = logits(with_adapter(healed, healed / ADAPTER), tokens())
    assert torch.equal(logits(snippet(out, repo)["model"], tokens()), wanted)
    push_export(out, repo)  # a second time it is known as ours
    assert "path/to/this/folder" not in (out / "README.md").read_text()


def test_card_of_a_base_adapter(base: Base, healed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_base_adapter(healed, out, progress=False)
    assert [finding for finding in check_card(out) if finding.level == "error"] == []
    card = (out / "README.md").read_text()
    assert f"base_model: {base.id}" in card and "base_model_relation: adapter" in card and "library_name: peft" in card
    assert "license: apache-2.0" in card and "Carried over from it: `LICENSE`." in card
    assert f'base, commit = "{base.id}", "{base.commit}"' in card and "does not pin the base" in card
    assert "Drop layers 2, 5 (2 of 8, counted from 0)." in card and str(tmp_path) not in card


def test_every_gap_is_a_range() -> None:
    assert layer_ranges(KEPT) == [[0, 2], [3, 5], [6, 8]]
    assert layer_ranges((2, 3)) == [[2, 4]] and layer_ranges((0, 2, 4)) == [[0, 1], [2, 3], [4, 5]]


def test_ranks_that_grow_and_dora_go_along(base: Base, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "grown", base, last_rank=8, use_dora=True)
    assert export_base_adapter(folder, tmp_path / "out", progress=False).difference == 0


def test_another_model_is_not_kept(spoilt: Path, tmp_path: Path) -> None:
    tensors = load_file(spoilt / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 0.01
    save_file(tensors, spoilt / "model.safetensors", {"format": "pt"})
    with pytest.raises(ReloadError, match=r"differ by up to .*, at most .* was expected"):
        export_base_adapter(spoilt, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_dry_run_writes_and_loads_nothing(healed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_adapter, "find_base", lambda *given: pytest.fail("weights are fetched"))
    told = done("export", healed, "--to", "base-adapter", "--output", tmp_path / "out", "--dry-run", "--json").json
    assert told == {"folder": str(tmp_path / "out"), "form": "base-adapter", "possible": True}
    assert not (tmp_path / "out").exists()


def change(folder: Path, **changes: Any) -> None:
    """Replace parts of a folder's records."""
    found = Finished.load(folder)
    dataclasses.replace(found, **{name: make(getattr(found, name)) for name, make in changes.items()}).save(folder)


SILENCE = Operation("silence", (1,), {"part": "mlp"})

REFUSED = {
    "not healed": (lambda f: (f / RECORDS / "healing.json").unlink(), "was not healed: there is no adapter"),
    "weights": (
        lambda f: change(f, healing=lambda h: dataclasses.replace(h, kind="weights")),
        "training weights themselves",
    ),
    "merged": (lambda f: shutil.rmtree(f / ADAPTER), "was merged into its weights"),
    "silenced": (
        lambda f: change(f, plan=lambda p: dataclasses.replace(p, operations=(*p.operations, SILENCE))),
        r"more than dropping layers \(operations: drop, silence\)",
    ),
    "rounds": (
        lambda f: change(f, config=lambda c: dataclasses.replace(c, layers=None, drop_layers=2, rounds=2)),
        "2 rounds",
    ),
    "local": (
        lambda f: change(f, plan=lambda p: dataclasses.replace(p, model=dataclasses.replace(p.model, revision=None))),
        "has to name a repo on the Hub",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_an_adapter_cannot_say_is_refused(spoilt: Path, tmp_path: Path, kind: str) -> None:
    spoil, reason = REFUSED[kind]
    spoil(spoilt)
    with pytest.raises(ConfigError, match=reason):
        export_base_adapter(spoilt, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def plan_of(model_type: str, dropped: tuple[int, ...], depth: int = 8) -> Plan:
    return Plan(
        ModelRef("org/model", "c" * 40, model_type, depth), "uidl", "window", (Operation("drop", dropped),), ""
    )


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "opt", "falcon", "bloom"])
def test_families_whose_layers_peft_does_not_find(tmp_path: Path, model_type: str) -> None:
    base_folder(tmp_path / "base", model_type)
    with pytest.raises(ArchitectureError, match=f"does not find the layers of 'org/model' .*{model_type}"):
        check_layers(tmp_path / "base", plan_of(model_type, (2, 5)))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "olmo2", "mixtral"])
def test_families_that_become_adapters(tmp_path: Path, model_type: str) -> None:
    base_folder(tmp_path / "base", model_type)
    check_layers(tmp_path / "base", plan_of(model_type, (2, 5)))


def test_layers_that_are_not_alike(tmp_path: Path) -> None:
    base_folder(tmp_path / "base", "gemma3_text", **GEMMA)
    with pytest.raises(ArchitectureError, match="not all alike: config key 'layer_types'"):
        check_layers(tmp_path / "base", plan_of("gemma3_text", (2, 5)))
    check_layers(tmp_path / "base", plan_of("gemma3_text", (4, 5)))  # those that are left follow the same pattern


@pytest.mark.parametrize(
    ("model_type", "dropped", "overrides"), [("gemma3_text", (4, 5), GEMMA), ("qwen2", (2, 5), {})]
)
def test_layers_of_several_kinds_answer_alike(tmp_path: Path, model_type: str, dropped, overrides) -> None:
    found = put_on_hub(tmp_path / "base", model_type, f"acme/exported-{model_type}", **overrides)
    folder = finished_folder(tmp_path / "healed", found, dropped=dropped)
    assert export_base_adapter(folder, tmp_path / "out", progress=False).difference == 0


# Four bits.


def evaluated(folder: Path) -> tuple[Path, Samples]:
    """The folder with an evaluation on text of its own."""
    samples = text(5, seed=3)
    samples = Samples(samples.sequences, dataclasses.replace(samples.use, dataset=None))
    samples.save(folder / RECORDS / "evaluation_tokens.safetensors")
    figures = some_figures("healed", perplexity=(perplexity(data=samples.use),))
    change(folder, evaluation=lambda _: Evaluation((figures,), some_evaluation().environment))
    return folder, samples


@pytest.fixture
def own_text(merged: Path, tmp_path: Path) -> tuple[Path, Samples]:
    return evaluated(Path(shutil.copytree(merged, tmp_path / "evaluated")))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is loaded back in this process: a new one takes seconds."""
    monkeypatch.setattr(nf4, "check_reload", lambda *given, **kwargs: "full")


def test_four_bits_load_back_and_cost_what_is_said(own_text, here, tmp_path: Path) -> None:
    folder, samples = own_text
    export = export_nf4(folder, tmp_path / "out", progress=False)
    assert export == Export.load(tmp_path / "out" / RECORDS)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    maps = [type(m).__name__ for n, m in found.named_modules() if n.endswith("_proj")]
    assert set(maps) == {"Linear4bit"} and len(maps) == 7 * len(KEPT)
    assert export.loss_after == held_out_loss(found, samples) != export.loss_before == held_out_loss(plain, samples)
    assert export.loss_tokens == samples.tokens - 5 and export.loss_data == samples.use
    assert export.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size < export.source_bytes
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a").input_ids
    assert not (tmp_path / "out" / RECORDS / "evaluation.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| before | {export.loss_before:.3f} |" in card and f"| in 4 bits | {export.loss_after:.3f} |" in card
    assert "base_model_relation: quantized" in card and "4-bit" in card and str(tmp_path) not in card
    assert [finding for finding in check_card(tmp_path / "out") if finding.level == "error"] == []


@pytest.mark.slow
def test_what_is_saved_is_loaded_by_another_process(tmp_path: Path) -> None:
    # As wide as bitsandbytes' own kernels for processors ask for: the card's code runs with those.
    wide = put_on_hub(tmp_path / "base", name="acme/exported-wide", hidden_size=64, intermediate_size=64, head_dim=16)
    folder = finished_folder(tmp_path / "merged", wide, output="merged")
    told = done("export", folder, "--to", "nf4", "--output", tmp_path / "out", "--json").json
    assert told["loss on the evaluation's text"] == "not measured" and told["largest difference of logits"] == 0
    assert "What quantizing costs was not measured" in (tmp_path / "out" / "README.md").read_text()
    assert torch.isfinite(logits(snippet(tmp_path / "out", tmp_path / "out")["model"], tokens())).all()


@pytest.mark.slow
def test_four_bits_that_do_not_load_back_are_not_kept(merged: Path, tmp_path: Path, monkeypatch) -> None:
    def save(model: Any, tokenizer: Any, folder: Path, **kwargs: Any) -> None:
        save_model(model, tokenizer, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= 2
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(nf4, "save_model", save)
    with pytest.raises(ReloadError, match="loads back as another model: logits differ"):
        export_nf4(merged, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_the_evaluations(own_text, tmp_path: Path) -> None:
    folder, _ = own_text
    text(5, seed=4).save(folder / RECORDS / "evaluation_tokens.safetensors")
    with pytest.raises(DataError, match="the evaluation's text has"):
        export_nf4(folder, tmp_path / "out", progress=False)


def test_text_of_a_dataset_is_not_looked_for(own_text) -> None:
    folder, samples = own_text
    use = dataclasses.replace(samples.use, dataset="org/texts")
    figures = some_figures("healed", perplexity=(perplexity(data=use),))
    change(folder, evaluation=lambda _: Evaluation((figures,), some_evaluation().environment))
    assert nf4.evaluation_text(folder, Finished.load(folder)) is None


def test_what_cannot_become_four_bits_is_refused(healed: Path, merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="holds an adapter beside pruned weights"):
        export_nf4(healed, out)
    folder = Path(shutil.copytree(merged, tmp_path / "quantized"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantized already .*bitsandbytes"):
        export_nf4(folder, out)
    patched = Path(shutil.copytree(merged, tmp_path / "patched"))
    remove = Operation("remove", (1,), {"part": "mlp"})
    change(patched, plan=lambda p: dataclasses.replace(p, operations=(*p.operations, remove)))
    with pytest.raises(ConfigError, match="ships its modeling code"):
        export_nf4(patched, out)
    assert not out.exists()


# The command.


def test_refusals_of_the_command(healed: Path, merged: Path, tmp_path: Path) -> None:
    assert "expected one of: base-adapter, nf4. Did you mean 'nf4'?" in call("export", merged, "--to", "nf").failed()
    said = call("export", merged, "--to", "nf4", "--original", "org/model", "--output", tmp_path / "out").failed()
    assert "--original 'org/model' is for base-adapter" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty" in call("export", merged, "--to", "nf4", "--output", tmp_path / "full").failed()
    assert "no folder that hf-prune has finished" in call("export", tmp_path, "--to", "nf4").failed()
    with pytest.raises(OutputError, match="is not empty"):
        export_base_adapter(healed, tmp_path / "full")
    with pytest.raises(ConfigError, match="is no export of hf-prune"):
        push_export(merged, "me/model")
