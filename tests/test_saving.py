"""Model folders: there whole or not at all, with the base's own files around the new weights."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_prune import prune_layers
from hf_prune.checkpoint import INDEX, SINGLE
from hf_prune.errors import OutputError
from hf_prune.saving import check_output, licence_files, save_model, staged

from .evaluation.text import byte_tokenizer
from .making import base_folder, edit_json, logits
from .tiny import DEPTH, tiny_model, tokens

CUT, KEEP = [1, 4, 5], [0, 2, 3, 6, 7]


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# ---- whole or not at all


def test_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged(out) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("x")
        assert not out.exists() and stage.parent == out.parent
    assert left(tmp_path) == ["deep", "deep/out", "deep/out/sub", "deep/out/sub/file"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
    assert left(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(5, "Input/output error")]
)
@pytest.mark.parametrize("where", ["out", "deep/er/out"])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException, where: str) -> None:
    with pytest.raises(type(error)) as raised, staged(tmp_path / where) as stage:
        (stage / "file").write_text("x")
        raise error
    assert raised.value is error
    assert left(tmp_path) == []


def test_an_error_leaves_an_empty_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError), staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        raise ValueError
    assert left(tmp_path) == ["out"]


def test_remains_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial" / "sub"
    stale.mkdir(parents=True)
    (stale / "half").write_text("x")
    with staged(tmp_path / "out") as stage:
        assert left(stage) == []
        (stage / "file").write_text("x")
    assert left(tmp_path) == ["out", "out/file"]


def test_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hidden").write_text("mine")
    for refuse in (check_output, lambda folder: staged(folder).__enter__()):
        with pytest.raises(OutputError, match=r"out' is not empty; expected a new or empty one"):
            refuse(tmp_path / "out")
    assert left(tmp_path) == ["out", "out/.hidden"]


def test_output_that_fills_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not empty"), staged(tmp_path / "out") as stage:
        (stage / "ours").write_text("x")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("y")
    assert left(tmp_path) == ["out", "out/theirs"]


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out' is a file; expected a folder"):
        check_output(tmp_path / "out")


@pytest.mark.parametrize("below", ["file/out", "file/deep/er/out"])
def test_parent_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"out' cannot be made: '.*file' is a file"):
        check_output(tmp_path / below)
    with pytest.raises(OutputError, match="cannot be made"):
        staged(tmp_path / below).__enter__()
    assert left(tmp_path) == ["file"]


def test_parent_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=f"cannot be made: '{tmp_path}' is not writable"):
        check_output(tmp_path / "deep" / "out")


def test_kernel_refuses_the_folder() -> None:
    with pytest.raises(OutputError, match=r"'/proc/hf-prune/out' cannot be made"):
        staged(Path("/proc/hf-prune/out")).__enter__()


def test_mount_point_is_refused_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # as an empty volume
    with pytest.raises(OutputError, match="'/proc' is a mount point; name a new folder in it"):
        check_output(Path("/proc"))


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in (("to-empty", "empty"), ("to-nothing", "new")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with staged(tmp_path / name) as stage:
            (stage / "file").write_text(name)
        assert (tmp_path / name).is_symlink() and (tmp_path / target / "file").read_text() == name
    assert left(tmp_path) == ["empty", "empty/file", "new", "new/file", "to-empty", "to-nothing"]


def test_current_folder_and_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged(Path("out")) as stage:
        (stage / "file").write_text("x")
    assert left(tmp_path) == ["here", "here/out", "here/out/file"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "a file is too large for"),
    ],
)
def test_disk_full_in_words(tmp_path: Path, code: int, message: str) -> None:
    as_text = RuntimeError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
    for error in (OSError(code, os.strerror(code)), as_text):
        with (
            pytest.raises(OutputError, match=rf"{message}.*out' \(\d+ MB free\); nothing was left there") as raised,
            staged(tmp_path / "out"),
        ):
            raise error
        assert raised.value.__cause__ is error
    assert left(tmp_path) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel lets this process write no byte behind that one."""
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_kernel_stops_a_write(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    with files_of_at_most(20_000), pytest.raises(OutputError) as stopped, staged(tmp_path / "deep" / "out") as stage:
        save_model(model, tokenizer, stage, source=None, keep=range(8))
    assert "a file is too large for" in str(stopped.value) and "nothing was left there" in str(stopped.value)
    assert left(tmp_path) == []


# ---- what is written

OLD = {
    "architectures": ["LlamaForCausalLM"], "_name_or_path": "org/old", "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": [2, 5], "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
    "intermediate_size": 48, "max_position_embeddings": 64, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": DEPTH, "num_key_value_heads": 2, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32", "transformers_version": "4.40.0", "use_cache": True, "vocab_size": 264,
    "custom_key_of_somebody": {"layers": [1, 2, 3]},
}  # fmt: skip

OTHERS = {
    "generation_config.json": b'{\n   "temperature": 0.6, "do_sample": false, "eos_token_id": [2, 5], "top_p": 3}\n',
    "chat_template.jinja": "{% for m in messages %}{{ m }}{% endfor %} – ü\n".encode(),
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "LICENSE": b"Do what you want, but \xe9 keep this line.\r\n",
    "NOTICE.txt": b"Built with Base.",
    "USE_POLICY.md": b"Be kind.",
}
LEFT_BEHIND = {
    "README.md": b"# Base", "modeling_evil.py": b"raise SystemExit", "optimizer.pt": b"x", "onnx/model.onnx": b"x",
    "pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "training_args.bin": b"x", ".gitattributes": b"x",
}  # fmt: skip


@pytest.fixture
def old_base(tmp_path: Path) -> Path:
    """A base as transformers 4 wrote it, with all that may lie around."""
    _, folder = base_folder(tmp_path / "base", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    (folder / "config.json").write_text(json.dumps(OLD, indent=4))
    for name, content in {**OTHERS, **LEFT_BEHIND}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def saved(base: Path, out: Path, **kwargs) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, **kwargs.pop("loading", {}))
    prune_layers(model, CUT)
    with staged(out) as stage:
        save_model(model, byte_tokenizer(), stage, source=base, keep=KEEP, **kwargs)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_config_is_the_base_own(old_base: Path, tmp_path: Path) -> None:
    model = saved(old_base, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw == OLD | {"num_hidden_layers": len(KEEP)}
    assert list(raw) == list(OLD), "keys stay in their order"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.rope_parameters["rope_theta"] == 500000.0
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_the_base_come_along_byte_for_byte(old_base: Path, tmp_path: Path) -> None:
    saved(old_base, tmp_path / "out")
    for name, content in OTHERS.items():
        assert (tmp_path / "out" / name).read_bytes() == content, name
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (old_base / name).read_bytes()
    written = {p for p in left(tmp_path / "out") if (tmp_path / "out" / p).is_file()}
    assert written == {*OTHERS, "config.json", SINGLE, "tokenizer.json", "tokenizer_config.json"}
    assert licence_files(tmp_path / "out") == ("LICENSE", "NOTICE.txt", "USE_POLICY.md")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_links_of_a_cache_become_files(old_base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in old_base.iterdir():
        if path.is_file():
            (cache / path.name).symlink_to(path)
    saved(cache, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink()]
    shutil.rmtree(old_base)
    assert (tmp_path / "out" / "LICENSE").read_bytes() == OTHERS["LICENSE"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dtype_that_is_written_is_stated(old_base: Path, tmp_path: Path) -> None:
    saved(old_base, tmp_path / "out", loading={"dtype": torch.bfloat16})
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw == OLD | {"num_hidden_layers": len(KEEP), "torch_dtype": "bfloat16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_code_comes_along_only_where_the_config_names_it(tmp_path: Path) -> None:
    model, base = base_folder(tmp_path / "base")
    (base / "modeling_own.py").write_text("class OwnForCausalLM: ...\n")
    edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    (tmp_path / "out").mkdir()
    save_model(prune_layers(model, CUT), byte_tokenizer(), tmp_path / "out", source=base, keep=KEEP)
    assert (tmp_path / "out" / "modeling_own.py").is_file()


def test_model_from_memory_says_it_for_old_readers_too(tmp_path: Path) -> None:
    model = prune_layers(
        tiny_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}), CUT
    )
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7)
    save_model(model, byte_tokenizer(), tmp_path, source=None, keep=KEEP)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_theta"] == 500000.0 and raw["torch_dtype"] == raw["dtype"] == "float32"
    assert raw["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert raw["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}
    assert raw["num_hidden_layers"] == len(KEEP)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
    assert loaded.generation_config.temperature == 0.7
    assert AutoTokenizer.from_pretrained(tmp_path)("The sea")["input_ids"] == byte_tokenizer()("The sea")["input_ids"]
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named == "PreTrainedTokenizerFast", "transformers 4 knows no TokenizersBackend"
    assert model.generation_config.temperature == 0.7, "the model handed over is left as it was"


def test_two_kinds_of_rotation_for_old_readers(tmp_path: Path) -> None:
    model = tiny_model(
        "gemma3_text",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    )
    save_model(model, byte_tokenizer(), tmp_path, source=None, keep=range(DEPTH))
    raw = json.loads((tmp_path / "config.json").read_text())
    assert (raw["rope_theta"], raw["rope_local_base_freq"]) == (2e6, 3e4)
    assert raw["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_part_of_the_head_that_rotates_for_old_readers(tmp_path: Path) -> None:
    model = tiny_model(
        "phi", rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
    )
    save_model(model, byte_tokenizer(), tmp_path, source=None, keep=range(DEPTH))
    raw = json.loads((tmp_path / "config.json").read_text())
    assert (raw["rope_theta"], raw["partial_rotary_factor"]) == (2e4, 0.25) and "rope_scaling" not in raw


def test_shards(tmp_path: Path) -> None:
    model, base = base_folder(tmp_path / "base")
    prune_layers(model, CUT)
    (tmp_path / "out").mkdir()
    save_model(model, byte_tokenizer(), tmp_path / "out", source=base, keep=KEEP, max_shard_size="30KB")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "out" / SINGLE).exists()
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"].values()) == {p.name for p in shards}
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokens()), logits(model, tokens())
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_generation_settings_are_put_back_on_error(
    old_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(old_base)
    own = model.generation_config

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", fail)
    with pytest.raises(OutputError, match="disk is full"), staged(tmp_path / "out") as stage:
        save_model(model, byte_tokenizer(), stage, source=old_base, keep=range(DEPTH))
    assert model.generation_config is own and not (tmp_path / "out").exists()
