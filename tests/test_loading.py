"""A Hub id or a folder in: what is found, what it is called, and all that is refused before the weights load."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hf_prune.checkpoint import SINGLE, folder_digest
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, HubError
from hf_prune.loading import Source, dtype_of, load_model, load_tokenizer, locate, read_config
from hf_prune.records import ModelRef

from .making import base_folder, edit_json, logits
from .tiny import DEPTH, tiny_config, tiny_model, tokens


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("made") / "some-base")[1]


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "some-base")


def test_folder(base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    source, config = locate(base)
    assert source == Source(ModelRef("some-base", None, "llama", DEPTH, folder_digest(base)), base, False)
    assert config.num_hidden_layers == DEPTH
    assert source.card == "---\nlicense: mit\n---\n# Hello\n"
    model = load_model(source)
    expected = tiny_model("llama", vocab_size=model.config.vocab_size)
    assert torch.equal(logits(model, tokens()), logits(expected, tokens())) and not model.training
    assert load_tokenizer(source)("The sea")["input_ids"]


def test_hub_id(hub, new_repo_id, base: Path) -> None:
    repo = new_repo_id()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    commit = hub.add_repo(repo, base)
    source, config = locate(repo)
    assert source.ref == ModelRef(repo, commit, "llama", DEPTH, commit)
    assert source.on_hub and source.folder is not None and not (source.folder / "pytorch_model.bin").exists()
    assert torch.equal(logits(load_model(source), tokens()), logits(load_model(locate(base)[0]), tokens()))
    assert load_tokenizer(source)("The sea")["input_ids"] == load_tokenizer(locate(base)[0])("The sea")["input_ids"]
    assert locate(repo, revision=commit)[0] == source


def test_no_weights_are_downloaded_before_they_are_needed(hub, new_repo_id, base: Path) -> None:
    repo = new_repo_id()
    commit = hub.add_repo(repo, base)
    source, _ = locate(repo, weights=False)
    assert source.ref == ModelRef(repo, commit, "llama", DEPTH, commit)
    assert not [r for r in hub.requests if SINGLE in r.path and r.method == "GET"]


def test_encoder_on_the_hub_is_refused_without_its_weights(hub, new_repo_id, tmp_path: Path) -> None:
    repo = new_repo_id()
    AutoConfig.for_model("bert", architectures=["BertModel"]).save_pretrained(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"x" * 1000)
    hub.add_repo(repo, tmp_path)
    with pytest.raises(ArchitectureError, match=f"'{repo}'.*BertModel"):
        locate(repo)
    assert not [r for r in hub.requests if SINGLE in r.path and r.method == "GET"]


def test_nothing_there(hub) -> None:
    with pytest.raises(HubError, match="no model 'alice/nothing' on the Hub"):
        locate("alice/nothing")
    with pytest.raises(HubError, match=r"'\./nothing/at/all' is neither a folder nor a repo id"):
        locate("./nothing/at/all")


@pytest.mark.parametrize("given", ["", "{tmp}", "{tmp}/", "{tmp}/../some-base", "{tmp}/.", "link"])
def test_records_never_hold_a_path(
    base: Path, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(base)
    with caplog.at_level(logging.WARNING):
        source, _ = locate(given.format(tmp=base) or "some-base")
    assert source.ref.id == "some-base"
    assert "is a folder" in caplog.text and "--base-model" in caplog.text and str(tmp_path) not in caplog.text


def test_base_model_names_a_folder(base: Path) -> None:
    source, _ = locate(base, base_model="org/model-1.5B")
    assert source.ref.id == "org/model-1.5B" and source.on_hub and source.ref.revision is None
    (base / "README.md").write_text("---\nmodel_name: org/from-card\n---\n")
    assert locate(base)[0].ref.id == "org/from-card"
    assert locate(base, base_model="org/other")[0].ref.id == "org/other"


@pytest.mark.parametrize("name", ["/home/user/model", "model", "a/b/c", "../x", "org/", "org/mo del", "org/model\n"])
def test_base_model_has_to_be_a_hub_id(base: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="base_model=.*expected a Hub id such as org/name"):
        locate(base, base_model=name)


@pytest.mark.parametrize(
    "card",
    [
        "---\nmodel_name: /home/user/secret\n---\n",
        "---\nmodel_name: [1, 2]\n---\n",
        "---\n: : :\n---\n",
        "no front matter",
        "---\nmodel_name: ../up\n---",
    ],
)
def test_cards_that_name_nothing_usable(base: Path, card: str) -> None:
    (base / "README.md").write_text(card)
    assert locate(base)[0].ref.id == "some-base"


def test_config_missing_or_broken(base: Path) -> None:
    (base / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json of 'some-base' is not JSON"):
        locate(base)
    (base / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match=r"config\.json of 'some-base' is not JSON"):
        locate(base)
    (base / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        locate(base)
    with pytest.raises(CheckpointError, match=r"'x' has no config\.json; expected a model saved by transformers"):
        read_config(base, "x")


@pytest.mark.parametrize("content", ["[]", "3", '{"_class_name": "StableDiffusionPipeline"}', "{}"])
def test_no_transformers_config(base: Path, content: str) -> None:
    (base / "config.json").write_text(content)
    with pytest.raises(ArchitectureError, match="names no model_type; expected a causal language model"):
        locate(base)


@pytest.mark.parametrize("value", ["lama", 5, ["llama"], None])
def test_unknown_model_type(base: Path, value: object) -> None:
    raw = json.loads((base / "config.json").read_text()) | {"model_type": value}
    (base / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ArchitectureError, match="has model_type .* which this version of transformers doesn't know"):
        locate(base)


def test_code_of_the_repo_is_not_run_unasked(base: Path) -> None:
    edit_json(base / "config.json", model_type="ours", auto_map={"AutoConfig": "configuration_ours.OursConfig"})
    (base / "configuration_ours.py").write_text("raise SystemExit('run')")
    with pytest.raises(
        ArchitectureError, match=r"'some-base' \(model_type 'ours'\) needs code from its repo.*trust_remote_code=True"
    ):
        locate(base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": "eight"}, "num_hidden_layers"),
        ({"hidden_size": [1]}, "hidden_size"),
        ({"num_hidden_layers": None}, "hold 8 layers, its config says num_hidden_layers=32"),
        ({"num_attention_heads": 5}, "attention heads"),
    ],
)
def test_config_that_transformers_refuses(base: Path, changes: dict, message: str) -> None:
    edit_json(base / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"(?s)some-base.*{message}"):
        source, _ = locate(base)
        load_model(source)


def test_layer_types_of_another_depth(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", layer_types=["full_attention"] * (DEPTH - 1))
    with pytest.raises(CheckpointError, match=r"(?s)config\.json of 'base'.*layer_types"):
        locate(tmp_path / "base")


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("bert", {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ("bert", {}, "is_decoder=False"),
        ("roberta", {}, "encoder"),
        ("t5", {}, "is_encoder_decoder"),
        ("bart", {}, "is_encoder_decoder"),
        ("whisper", {}, "is_encoder_decoder"),
        ("gemma3", {}, "text_config"),
        ("qwen2_5_vl", {}, "text_config"),
        ("llava", {}, "text_config"),
        ("vit", {}, "no causal language model class"),
        ("clip", {}, "no causal language model class|text_config"),
        ("jamba", {}, "attn_layer_period"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("llama", {"num_hidden_layers": 1}, "num_hidden_layers=1; expected at least 2"),
    ],
)
def test_no_decoder_is_refused_before_its_weights(tmp_path: Path, model_type: str, fields: dict, message: str) -> None:
    AutoConfig.for_model(model_type, **fields).save_pretrained(tmp_path / "other")
    with pytest.raises(ArchitectureError, match=f"'other'.*({message})"):
        locate(tmp_path / "other")


def test_pickles_and_nothing(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        locate(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="only as pickles"):
        locate(tmp_path)


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def test_missing_weight(base: Path) -> None:
    change_tensors(base, lambda tensors: tensors.pop("model.layers.3.mlp.up_proj.weight"))
    with pytest.raises(
        CheckpointError, match=r"weights of 'some-base' do not fit .*missing: model\.layers\.3\.mlp\.up_proj\.weight"
    ):
        load_model(locate(base)[0])


def test_weight_of_another_shape(base: Path) -> None:
    change_tensors(base, lambda tensors: tensors.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(3, 4)}))
    with pytest.raises(
        CheckpointError, match=r"(?s)weights of 'some-base' do not fit .*model\.layers\.3\.mlp\.up_proj\.weight"
    ):
        load_model(locate(base)[0])


@pytest.mark.filterwarnings("ignore")
def test_missing_tokenizer(base: Path) -> None:
    for path in base.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="'some-base' has no tokenizer .*add its tokenizer files"):
        load_tokenizer(locate(base)[0])


def test_broken_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match="'some-base' has no tokenizer that transformers can load"):
        load_tokenizer(locate(base)[0])


def test_dtypes(base: Path) -> None:
    assert [dtype_of(n) for n in ("auto", "float32", "bfloat16", "float16")] == [
        "auto",
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    for name in ("int8", "bf16", "", "Tensor"):
        with pytest.raises(ConfigError, match=f"dtype='{name}'; expected one of: auto, float32, bfloat16, float16"):
            dtype_of(name)
    assert load_model(locate(base)[0], dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_model(locate(base)[0]).dtype == torch.float32
