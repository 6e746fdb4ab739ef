"""What people get wrong, each with one clear error, as early as it can be known."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import PruneError, PrunerConfig, hub_client
from hf_prune.methods import METHODS
from tests.cli.support import call, done, fast, planted, recipe_file
from tests.evaluation.text import byte_tokenizer
from tests.making import base_folder, edit_json

WRONG_TOKEN = "hf_" + "wrong" * 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "tiny-base")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01, 0.01))
    fast(monkeypatch)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""

    def never(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("hf_prune.loading.AutoModelForCausalLM.from_pretrained", never)


def refused(model: str | Path, *words: str | Path, before: tuple[str, ...] = ("--drop-layers", "2")) -> str:
    """The error of a run; it leaves neither an output nor working state."""
    said = call("run", model, *before, *words, "--output", "out").failed()
    assert not Path("out").exists() and not Path("out.run").exists()
    return said


# The model


def test_no_such_repo(hub, untouched) -> None:
    assert "there is no model 'alice/nothing' on the Hub (nor a folder of this name)" in refused("alice/nothing")
    assert "neither a folder nor a repo id" in refused("./nowhere/at/all")


def test_no_such_revision(hub, new_repo_id, made: Path, untouched) -> None:
    repo = new_repo_id()
    hub.add_repo(repo, made)
    assert f"'{repo}' has no revision 'v9'" in refused(repo, "--revision", "v9")


@pytest.mark.parametrize(
    ("kind", "said"), [("gated", "is gated and this account was not let in"), ("private", "or it is private")]
)
def test_restricted_without_a_token(hub, new_repo_id, made: Path, untouched, kind: str, said: str) -> None:
    repo = new_repo_id()
    hub.add_repo(repo, made, gated=kind == "gated", private=kind == "private")
    message = refused(repo)
    assert said in message and "`hf auth login`" in message and repo in message
    assert "hf_" not in refused(repo, "--token", WRONG_TOKEN)


def test_offline_with_nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what the variable sets, once imported
    called = call("run", "org/model", "--drop-layers", "2")
    assert called.failed().startswith("cannot open 'org/model': HF_HUB_OFFLINE") and called.err.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "was saved as ['BertForMaskedLM'] (config key 'architectures')",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "is an encoder-decoder (config key 'is_encoder_decoder'",
        ),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "text_config"),
        ({"_class_name": "UNet2DConditionModel"}, "not a diffusion pipeline"),
        ({"model_type": "brand_new"}, "doesn't know"),
    ],
    ids=["encoder", "encoder-decoder", "multimodal", "diffusion", "unknown"],
)
def test_no_causal_language_model(hub, new_repo_id, untouched, config: dict, said: str) -> None:
    repo = new_repo_id()
    hub.add_repo(repo, {"config.json": json.dumps(config), "model.safetensors": b"0" * 100})
    assert said in refused(repo)
    assert not [r for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]


def test_diffusion_folder(hub, untouched) -> None:
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "holds no config.json; expected a Transformers model" in refused("pipeline")


def test_pickles(hub, new_repo_id, base: Path, untouched) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "only as pickles (pytorch_model.bin), which can run code" in refused(base)
    repo = new_repo_id()
    hub.add_repo(repo, base)
    assert "only as pickles (pytorch_model.bin), which can run code" in refused(repo)
    assert not [r for r in hub.requests if r.method == "GET" and r.path.endswith(".bin")]


def test_truncated_weights(base: Path, untouched) -> None:
    weights = base / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 10)
    assert "model.safetensors is truncated" in refused(base)


def test_header_of_another_length(base: Path, untouched) -> None:
    with (base / "model.safetensors").open("ab") as file:
        file.write(b"0" * 10)
    assert "model.safetensors is too long" in refused(base)


def test_another_number_of_layers_than_the_weights(base: Path, untouched) -> None:
    edit_json(base / "config.json", num_hidden_layers=10)
    assert "hold 8 layers, its config says num_hidden_layers=10" in refused(base)


def test_no_tokenizer(base: Path, untouched) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()
    assert "'tiny-base' has no tokenizer that transformers can load" in refused(base)


# How much


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "how much of 'tiny-base' shall go? Give one of drop_layers (1 to 7)"),
        (("--drop-layers", "0"), "drop_layers=0; expected a whole number of at least 1"),
        (("--drop-layers", "-2"), "drop_layers=-2; expected a whole number of at least 1"),
        (("--drop-layers", "8"), "drop_layers=8 leaves 0 of 8 layers"),
        (("--drop-layers", "9"), "drop_layers=9 leaves 0 of 8 layers"),
        (("--sparsity", "0"), "sparsity=0.0; expected a number above 0"),
        (("--sparsity", "1"), "sparsity=1.0; expected a number above 0"),
        (("--sparsity", "nan"), "sparsity=nan; expected a number above 0"),
        (("--sparsity", "0.05"), "sparsity=0.05"),
        (("--drop-layers", "2", "--sparsity", "0.2"), "2 amounts at once (drop_layers=2, sparsity=0.2)"),
        (("--drop-layers", "2", "--layers", "3"), "2 amounts at once (drop_layers=2, layers=[3])"),
        (("--drop-layers", "7", "--protect-last", "2"), "protects 0 first and 2 last, so at most 6 can go"),
        (("--layers", "7", "--protect-last", "1"), "layers=[7]: [7] protected"),
        (("--layers", "6-8"), "layers=[6, 7, 8]: [8] out of range; 'tiny-base' has 8 blocks, counted 0 to 7"),
        (("--layers", "3,3"), "[3] named twice"),
        (("--layers", "2-4,3"), "[3] named twice"),
        (("--layers", "0-7"), "leaves none of the 8 blocks"),
        (("--layers", "5-3"), "--layers '5-3': '5-3' is no layer or range; expected such as 21-28 or 3,5,9"),
        (("--layers", "-1"), "'-1' is no layer or range"),
        (("--layers", ""), "'' is no layer or range"),
        (("--method", "uidle", "--drop-layers", "2"), "unknown method 'uidle'"),
        (("--drop-layers", "2", "--dtype", "float8"), "dtype='float8'; expected one of: auto, float32, bfloat16"),
        (("--drop-layers", "2", "--device", "gpu0"), "device 'gpu0'; expected cpu, cuda, cuda:N, mps, or auto"),
        (("--drop-layers", "2", "--device", "cuda:99"), "device 'cuda:99': "),
        (("--drop-layers", "2", "--base-model", "no id"), "base_model='no id'; expected a Hub id"),
        (("--drop-layers", "2", "--revision", "main"), "only models on the Hub have revisions"),
        (("--drop-layers", "2", "--heal-quantize", "int3"), "HealingConfig.quantize='int3'; expected one of"),
        (("--drop-layers", "2", "--samples", "0"), "CalibrationConfig.samples=0"),
        (("--drop-layers", "2", "--config", "nowhere.json"), "nowhere.json"),
    ],
)  # fmt: skip
def test_amounts_and_settings(hub, made: Path, untouched, words: tuple[str, ...], said: str) -> None:
    assert said in refused(made, *words, before=())
    assert said in call("run", made, *words, "--dry-run").failed()


def test_did_you_mean() -> None:
    said = call("run", "m", "--method", "uidle", "--drop-layers", "2").failed()
    known = f"one of the {len(METHODS)} that `hf-prune methods` lists, such as uidl, simple, slicegpt, dynamic-slicing"
    assert said == f"unknown method 'uidle'; expected {known}. Did you mean 'uidl'?"


def test_amounts_in_python() -> None:
    for fields, said in (
        ({"drop_layers": 2.0}, "drop_layers=2.0; expected a whole number"),
        ({"drop_layers": "2"}, "drop_layers='2'; expected a whole number"),
        ({"drop_layers": True}, "drop_layers=True; expected a whole number"),
        ({"layers": [1.5]}, "1.5 is not a whole number"),
        ({"layers": []}, "drops nothing"),
    ):
        with pytest.raises(PruneError, match=said):
            PrunerConfig(**fields)


# The text


def quick(**fields) -> tuple[str, str]:
    return "--config", recipe_file(Path("recipe"), **fields)


def of_text(made: Path, name: str, content: str, *words: str) -> str:
    """The error of measuring on a file with this content, before any weight is loaded."""
    Path(name).write_text(content)
    return call("measure", made, *quick(), "--dataset", name, *words).failed()


def test_empty_dataset(made: Path, untouched) -> None:
    assert "the dataset 'text.txt' is empty" in of_text(made, "text.txt", "")
    assert "the dataset 'text.jsonl' is empty" in of_text(made, "text.jsonl", '{"text": ""}\n{"text": "  "}\n')


def test_missing_text_column(made: Path, untouched) -> None:
    rows = "".join(json.dumps({"content": f"The sea {i}", "id": i}) + "\n" for i in range(9))
    said = of_text(made, "text.jsonl", rows)
    assert "has no column 'text'; it has: content, id." in said and "(--text-column)" in said
    assert "holds int; expected text" in of_text(made, "text.jsonl", rows, "--text-column", "id")


def test_samples_all_too_short(made: Path, untouched) -> None:
    rows = "".join(json.dumps({"text": letter}) + "\n" for letter in "abcdefgh" * 40)
    assert "all shorter than two tokens" in of_text(made, "text.jsonl", rows)


def test_unknown_dataset(hub, made: Path, untouched) -> None:
    said = call("measure", made, *quick(), "--dataset", "org/nowhere").failed()
    assert "there is no dataset 'org/nowhere' on the Hub" in said and "(--dataset)" in said
    said = call("measure", made, *quick(), "--dataset", "./nowhere.txt").failed()
    assert "no file or folder './nowhere.txt'" in said


def test_model_without_a_pad_token_is_fine() -> None:
    """Neither does the tokenizer of GPT-2 have one, nor that of Llama."""
    base_folder(Path("base"), "gpt2", pad_token_id=None)
    byte_tokenizer(pad=False, eos=False).save_pretrained("base")
    Path("text.jsonl").write_text(
        "".join(json.dumps({"text": "The sea was calm. " * (i % 7 + 1) + str(i)}) + "\n" for i in range(200))
    )
    done("run", "base", *quick(), "--dataset", "text.jsonl", "--heal", "--output", "out")
    assert AutoModelForCausalLM.from_pretrained("out").config.num_hidden_layers == 6


def damaged(base: Path, layer: int) -> None:
    """Put NaN into one block."""
    tensors = load_file(base / "model.safetensors")
    tensors[f"model.layers.{layer}.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def test_nan_names_the_layer(base: Path) -> None:
    damaged(base, 5)
    said = call("measure", base, *quick()).failed()
    assert "NaN or infinity comes out of the model's layer 5 while text is sampled" in said
    Path("text.txt").write_text("".join(f"The wind was gone, and the sea was calm. {i}. " for i in range(300)))
    said = call("measure", base, *quick(), "--dataset", "text.txt").failed()
    assert "block 5 of 'tiny-base' gives NaN or infinite hidden states in batch 0" in said


# The output


def test_output_that_is_taken(made: Path, untouched) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    words = ("run", made, "--drop-layers", "2", "--output")
    assert "the output folder 'full' is not empty" in call(*words, "full").failed()
    assert "the output 'file' is a file" in call(*words, "file").failed()
    assert "cannot be made: " in call(*words, "file/out").failed()
    assert "the output folder 'full' is not empty" in call("prune", made, *words[2:], "full").failed()
    assert "is not empty" in call("heal", "anything", "--output", "full").failed()
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]


@pytest.mark.parametrize("command", ["prune", "run"])
def test_full_disk_leaves_nothing(made: Path, command: str) -> None:
    """A limit on the size of files fails like a full disk, in the midst of the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        said = call(command, made, *quick(), "--quiet", "--output", "out").failed()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "while writing 'out'" in said and "nothing was left there" in said
    assert {path.name for path in Path().iterdir()} <= {"recipe", "out.run"}  # the state of a run goes on from there
    done(command, made, *quick(), "--output", "out")
    assert {path.name for path in Path().iterdir()} == {"recipe", "out"}


@pytest.mark.parametrize("command", ["measure", "run"])
def test_full_disk_under_the_working_state(made: Path, command: str) -> None:
    words = (
        command,
        made,
        "--drop-layers",
        "2",
        "--samples",
        "30",
        "--max-length",
        "12",
        "--quiet",
        "--output",
        "out",
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        said = call(*words).failed()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "what was finished is kept. Free some space, and run the same command again" in said


def test_folders_that_hf_prune_did_not_write(hub, hub_token, made: Path) -> None:
    for words in (("heal", made, "--output", "out"), ("card", made), ("push", made, "name")):
        assert "is no folder that hf-prune has finished (it has no pruning/output.json)" in call(*words).failed()
        gone = call(words[0], "nowhere", *words[2:]).failed()
        assert gone.startswith("'nowhere' is no folder that hf-prune has finished (it is not there)")
    assert not list(Path().iterdir()) and not hub.exists("alice/name")


# Hub and packages


def test_interrupted_download_goes_on(hub, new_repo_id, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = new_repo_id()
    hub.add_repo(repo, made)
    size = (made / "model.safetensors").stat().st_size
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.truncate(r"model\.safetensors$", size // 2)
    done("run", repo, *quick(), "--no-evaluate", "--output", "out")
    asked = [r.headers for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    ranges = [{key.lower(): value for key, value in headers.items()}.get("range") for headers in asked]
    assert len(asked) >= 2 and f"bytes={size // 20_000 * 10_000}-" in ranges, ranges


def test_healing_without_its_packages(made: Path, untouched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refused(made, "--heal")
    assert said.startswith("healing needs the package 'peft', which is not installed. ")
    assert said.endswith("Install it with: pip install 'hf-prune[heal]'")
    assert said == call("run", made, "--drop-layers", "2", "--heal", "--dry-run").failed()


def test_push_without_an_account(hub, new_repo_id, made: Path, untouched) -> None:
    target = new_repo_id()
    assert "no access token is saved: log in with `hf auth login`" in refused(made, "--push", target)
    said = refused(made, "--push", target, "--token", WRONG_TOKEN)
    assert "401" in said and "log in with `hf auth login`" in said and WRONG_TOKEN not in said


def test_push_of_what_is_not_ours(hub, hub_token, new_repo_id, made: Path, untouched) -> None:
    target = new_repo_id()
    hub.add_repo(target, {"config.json": "{}", "model.safetensors": b"0"})
    assert "holds a model that hf-prune did not make" in refused(made, "--push", target)
    assert "a pull request is opened on main; drop one" in refused(
        made, "--push", target, "--create-pr", "--push-revision", "dev"
    )
