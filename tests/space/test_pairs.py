"""Pairs: found by a stranger's text, refused for what they are, open to whoever may read them, loaded as they were."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, HubError, PruneError
from hf_prune.slicing.modeling import model_class
from hf_prune.space import comparing, pairs, settings
from hf_prune.space.cache import models
from hf_prune.space.frames import Sampling
from hf_prune.space.ids import hub_id
from hf_prune.space.pair import DEMO, Pair, Visitor
from hf_prune.space.settings import GB
from hf_prune.stored import Stored
from tests.hub.server import LoopbackHub
from tests.making import logits
from tests.tiny import tokens

from .conftest import AS_ALICE, AS_BOB, BASE, KINDS, NOBODY, ON_SPACE

Files = dict[str, bytes]
Spoil = Callable[..., str]


def files_of(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edited(content: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(content) | changes).encode()


@pytest.fixture
def spoilt(hub: LoopbackHub, new_repo_id: Callable[..., str], pair_folders: Callable[[str], Path]) -> Spoil:
    """A function that pushes a pruned model with some files changed (bytes) or taken away (None)."""

    def push(changes: dict[str, bytes | None], kind: str = "pruned", **access: Any) -> str:
        name = new_repo_id("acme")
        files = files_of(pair_folders(kind)) | changes
        hub.add_repo(name, {path: content for path, content in files.items() if content is not None}, **access)
        return name

    return push


@pytest.fixture
def raw(pair_folders: Callable[[str], Path]) -> Files:
    """The files of the pruned model."""
    return files_of(pair_folders("pruned"))


def refused(name: str, kind: Any = PruneError, visitor: Visitor = NOBODY) -> str:
    """The one message with which a name is refused, in reasonable time, without a path of this machine."""
    start = time.perf_counter()
    with pytest.raises(kind) as error:
        pairs.find(name, visitor)
    message = str(error.value)
    assert time.perf_counter() - start < 10
    assert "/tmp" not in message and constants.HF_HUB_CACHE not in message and len(message) < 700
    assert message.isprintable()
    return message


def refused_opening(pair: Pair, kind: type[PruneError] = PruneError, visitor: Visitor = NOBODY) -> str:
    with pytest.raises(kind) as error, pairs.opened(pair, visitor):
        pass
    assert "/tmp" not in str(error.value) and constants.HF_HUB_CACHE not in str(error.value)
    return str(error.value)


# What is found.


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair(
    hub: LoopbackHub, pushed: Callable[[str], str], pair_folders: Callable[[str], Path], kind: str
) -> None:
    name = pushed(kind)
    hub.reset()
    pair = pairs.find(f"  {name}\n", NOBODY)
    downloads = {request.path.rpartition("/")[2] for request in hub.asked("GET", "/resolve/")}
    ranges = {request.headers.get("range") for request in hub.asked("GET", r"\.safetensors$")}
    assert ranges <= {"bytes=0-100000"} and not {file for file in downloads if file.endswith((".py", ".bin"))}
    assert (pair.name, pair.pruned.name, pair.original.name) == (name, name, BASE)
    assert pair.pruned.commit == hub.commits(name)[0].sha and pair.original.commit == hub.commits(BASE)[0].sha
    assert pair.label == ("healed" if KINDS[kind][0] else "pruned")
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (_folder_of(BASE, hub), pair_folders(kind))
    )
    for half, model in ((pair.original, before), (pair.pruned, after)):
        assert half.parameters == model.num_parameters() and half.bytes == 4 * half.parameters
        assert half.layers == model.config.num_hidden_layers and half.dtype == "float32"
        sizes = tuple(sum(p.numel() for p in block.parameters()) for block in model.model.layers)
        assert half.layer_parameters == sizes


def _folder_of(name: str, hub: LoopbackHub) -> Path:
    folder = hub.store.root / "copies" / name
    for path, content in hub.files(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_opened(
    hub: LoopbackHub, pushed: Callable[[str], str], pair_folders: Callable[[str], Path], kind: str
) -> None:
    pair, said = pairs.find(pushed(kind), NOBODY), list[str]()
    hub.reset()
    with pairs.opened(pair, NOBODY, said.append) as loaded:
        assert [line for line in said if line.startswith("Loading")] == [
            f"Loading {half.name} …" for half in (pair.original, pair.pruned)
        ]
        assert not hub.asked("*", r"\.py$")
        wanted = AutoModelForCausalLM.from_pretrained(_folder_of(BASE, hub))
        assert torch.equal(logits(loaded.original, tokens()), logits(wanted, tokens()))
        wanted = AutoModelForCausalLM.from_pretrained(pair_folders(kind))
        found = logits(loaded.pruned, tokens())
        if kind == "adapter":
            assert not torch.equal(found, logits(wanted, tokens()))
            with_peft = Stored(_source(pair, pair_folders(kind)), pair_folders(kind) / "adapter", {}).load()
            torch.testing.assert_close(found, logits(with_peft, tokens()), rtol=1e-4, atol=1e-4)
            assert type(loaded.pruned) is type(loaded.original)
        else:
            assert torch.equal(found, logits(wanted, tokens()))
        if kind == "sliced":
            assert type(loaded.pruned) is model_class("llama")
        assert loaded.pruned_tokenizer("The sea")["input_ids"] == loaded.tokenizer("The sea")["input_ids"]
        for model in (loaded.original, loaded.pruned):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert models().bytes == pair.original.bytes + pair.pruned.bytes
    said.clear()
    with pairs.opened(pair, NOBODY, said.append) as again:
        assert again.pruned is loaded.pruned and again.original is loaded.original
    assert not [line for line in said if "Loading" in line]


def _source(pair: Pair, folder: Path) -> Any:
    from hf_prune.loading import Source

    return Source(pair.records.plan.model, folder, False)


def test_pairs_of_one_original_share_it(pushed: Callable[[str], str]) -> None:
    one, other = (pairs.find(pushed(kind), NOBODY) for kind in ("pruned", "healed"))
    with pairs.opened(one, NOBODY) as first, pairs.opened(other, NOBODY) as second:
        assert first.original is second.original and first.pruned is not second.pruned
        assert models().bytes == one.original.bytes + one.pruned.bytes + other.pruned.bytes


def test_a_repo_that_moves_on(hub: LoopbackHub, spoilt: Spoil, raw: Files, tmp_path: Path) -> None:
    """Whoever has a pair keeps the commit it was found at; whoever looks now gets what is there now."""
    name = spoilt({})
    old = pairs.find(name, NOBODY)
    (tmp_path / "m.safetensors").write_bytes(raw["model.safetensors"])
    tensors = load_file(tmp_path / "m.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    with pairs.opened(old, NOBODY) as before:
        hub.add_repo(name, {"model.safetensors": tmp_path / "m.safetensors"})
        new = pairs.find(name, NOBODY)
        assert new.pruned.commit != old.pruned.commit and new.original == old.original
        with pairs.opened(new, NOBODY) as after, pairs.opened(old, NOBODY) as again:
            assert torch.equal(after.pruned.lm_head.weight, before.pruned.lm_head.weight + 1)
            assert again.pruned is before.pruned


def test_the_embedded_pair(hub: LoopbackHub) -> None:
    pair = pairs.find(DEMO, NOBODY)
    assert pair.name == DEMO and pair.original.commit is None and pair.pruned.layers < pair.original.layers
    with pairs.opened(pair, NOBODY) as loaded:
        for half, model in ((pair.original, loaded.original), (pair.pruned, loaded.pruned)):
            assert (half.parameters, half.layers) == (model.num_parameters(), model.config.num_hidden_layers)
    pairs.authorise(pair, NOBODY)
    assert hub.requests == []


def test_half_precision(hub: LoopbackHub, spoilt: Spoil, raw: Files, tmp_path: Path) -> None:
    """Where the processor is slow in it, its numbers are kept and computed with in float32, at twice the bytes."""
    from hf_prune.precision import faster_dtype

    (tmp_path / "m.safetensors").write_bytes(raw["model.safetensors"])
    half = {key: tensor.bfloat16() for key, tensor in load_file(tmp_path / "m.safetensors").items()}
    save_file(half, tmp_path / "m.safetensors", {"format": "pt"})
    weights = (tmp_path / "m.safetensors").read_bytes()
    dtype = faster_dtype(torch.device("cpu"), torch.bfloat16)
    for config in (
        edited(raw["config.json"], dtype="bfloat16", torch_dtype="bfloat16"),
        edited(raw["config.json"], dtype=None, torch_dtype=None),  # the weights tell
    ):
        pair = pairs.find(spoilt({"model.safetensors": weights, "config.json": config}), NOBODY)
        assert (pair.pruned.dtype, pair.pruned.bytes) == (
            str(dtype).removeprefix("torch."),
            dtype.itemsize * pair.pruned.parameters,
        )
        with pairs.opened(pair, NOBODY) as loaded:
            assert loaded.pruned.dtype == dtype
            assert torch.equal(loaded.pruned.lm_head.weight, half["lm_head.weight"].to(dtype))


def test_sharded_weights(spoilt: Spoil, raw: Files, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(raw["model.safetensors"])
    tensors = load_file(tmp_path / "m.safetensors")
    index: dict[str, str] = {}
    files: dict[str, bytes | None] = {"model.safetensors": None}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, tmp_path / file, {"format": "pt"})
        files[file] = (tmp_path / file).read_bytes()
        index |= dict.fromkeys(names, file)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": index}).encode()
    pair = pairs.find(spoilt(files), NOBODY)
    assert pair.pruned.parameters == sum(tensor.numel() for tensor in tensors.values())
    with pairs.opened(pair, NOBODY) as loaded:
        assert torch.equal(loaded.pruned.lm_head.weight, tensors["lm_head.weight"])
    outside = json.dumps({"weight_map": {"a": "../../config.json"}}).encode()
    assert "not there: ../../config.json" in refused(spoilt(files | {"model.safetensors.index.json": outside}))


# Names that visitors type.

TRICKS = [
    "", " ", "x", "../x", "../../etc", "/etc", "/etc/passwd", "~", "~/x", "C:\\models", "a\\b", "a/b/c", "a//b", "./a",
    "a/..", "../a/b", "a/b/..", ".a/b", "a/.b", "a b/c", "a/b c", "a\x00/b", "a/b\x1b[31m", "a/b\u202e", "а/b", "a/é",
    "a/b?x=1", "a/b#c", "a%2Fb", "a/b@main", "hf://a/b", "http://127.0.0.1/a", "datasets/a/b", "a--b/c", "a/b.git",
    "-a/b", "a/-b", "a/b-", "a/b.", "<b>a</b>", "a/" + 10_000 * "b", 10_000 * "../", "a/b\n/c", "a..b/c", "a/b..c",
]  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_names_that_are_none(hub: LoopbackHub, name: str) -> None:
    message = refused(name, ConfigError)
    assert "is no Hub id; expected owner/name" in message and len(message) < 250
    assert hub.requests == []


def test_a_name_of_another_kind() -> None:
    for name in (None, 3, ["a/b"], {"a": "b"}):
        with pytest.raises(ConfigError, match="is no Hub id"):
            hub_id(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["the pruned model", "the original"])
def test_a_folder_of_that_name_is_not_looked_at(
    pushed_pair: str, pair_folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = pushed_pair if place == "the pruned model" else BASE
    wanted = pairs.find(pushed_pair, NOBODY)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text("{broken")
    monkeypatch.chdir(tmp_path)
    assert pairs.find(pushed_pair, NOBODY) == wanted
    with pairs.opened(wanted, NOBODY) as loaded:
        assert loaded.pruned.config.num_hidden_layers == 4


def test_a_local_folder_alone_is_no_repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: Files) -> None:
    for file, content in raw.items():
        (tmp_path / "local/model" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local/model" / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert "there is no such model on the Hub" in refused("local/model", HubError)


# Repos that are not what they should be.


def test_not_ours(hub: LoopbackHub, new_repo_id: Callable[..., str], spoilt: Spoil) -> None:
    name = new_repo_id()
    hub.add_repo(name, {"config.json": "{}", "model.safetensors": b"x" * 100})
    assert "has no records of hf-prune ('pruner_config.json' is missing)" in refused(name, ConfigError)
    assert "'pruning/plan.json' is missing" in refused(spoilt({"pruning/plan.json": None}), ConfigError)


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("pruning/plan.json", b"{", "is not JSON"),
        ("pruning/plan.json", b"[]", "schema 'list'"),
        ("pruning/plan.json", b"[" * 100_000, "is not JSON"),
        ("pruning/plan.json", b'{"schema": ' + b"9" * 100_000 + b"}", "is not JSON"),
        ("pruning/plan.json", b"\xff\xfe\x00", "is not JSON"),
        ("pruning/plan.json", b" " * 3_000_000, "is 3.0 MB; expected at most 2 MB"),
        ("pruning/scores.json", b"{}", "schema None"),
        ("pruning/evaluation.json", b'{"schema": 1}', "lacks the key"),
        ("pruner_config.json", b'{"method": "no such"}', "no such"),
        ("pruner_config.json", b'"text"', "must be a JSON object"),
    ],
)
def test_records_that_are_none(spoilt: Spoil, file: str, content: bytes, wanted: str) -> None:
    assert wanted in refused(spoilt({file: content}), ConfigError)


MILLION = 10**6


@pytest.mark.parametrize(
    ("file", "path", "value", "wanted"),
    [
        ("plan", ("model", "num_layers"), MILLION, "speaks of 1000000 layers; expected 1 to 1024"),
        ("plan", ("model", "num_layers"), 10**4000, "layers; expected 1 to 1024"),
        ("plan", ("model", "num_layers"), -1, "speaks of -1 layers"),
        ("plan", ("model", "num_layers"), float("nan"), "expected int"),
        ("plan", ("model", "num_layers"), "6", "expected int"),
        ("plan", ("model",), None, "must be a JSON object"),
        ("plan", ("method",), "m" * 301, "in more than 300 characters"),
        ("plan", ("model", "id"), "m" * 301, "in more than 300 characters"),
        ("scores", ("model", "model_type"), "m" * 301, "in more than 300 characters"),
        ("plan", ("reason",), "half a \ud800 character", "UnicodeEncodeError"),
        ("scores", ("data", "sha256"), "\udfff", "UnicodeEncodeError"),
        ("evaluation", ("models", 0, "dtype"), "\udfff", "UnicodeEncodeError"),
        ("plan", ("model", "revision"), "../../main", "names a commit of its original that is none"),
        ("plan", ("model", "revision"), "f" * 100_000, "names a commit of its original that is none"),
        ("plan", ("operations", 0, "layers"), [5, 6], "acts on layers that the 6 of the model don't have"),
        ("plan", ("operations", 0, "layers"), list(range(6)), "keeps no layer"),
        ("plan", ("operations", 0, "layers"), [-1], "acts on layers"),
        ("plan", ("operations",), [{"kind": "drop", "layers": [0]}] * 30_000, "are gone by then"),
        ("scores", ("model", "num_layers"), 7, "speak of another model"),
        ("scores", ("distances", 0), [0.0] * 8, "no table of 7 × 7 distances"),
        ("scores", ("standard_errors",), [[0.0]], "no table of 7 × 7 distances"),
        ("scores", ("standard_errors",), [], "no table of 7 × 7 distances"),
        ("scores", ("distances", 0, 1), float("nan"), "expected a finite number"),
        ("scores", ("distances", 0, 1), float("inf"), "expected a finite number"),
        ("scores", ("layers",), [0.0] * 100_000, "speak of 100000 layers"),
        ("scores", ("distances", 0, 1), -1e300, "figures that no measurement gives"),
        ("scores", ("standard_errors", 0, 1), -0.1, "figures that no measurement gives"),
        ("scores", ("layers",), [0.0] * 5 + [1e13], "figures that no measurement gives"),
        ("scores", ("layer_standard_errors",), [0.0] * 5 + [-0.1], "figures that no measurement gives"),
        ("scores", ("importances",), {"block": [0.0] * 5}, "importances of 5 layers"),
        ("scores", ("importances",), {"heads": [0.0] * 6}, "importances of 'heads'"),
        ("scores", ("importances",), {"block": [0.0] * 5 + [float("nan")]}, "expected"),
        ("scores", ("importances",), {"block": [0.0] * 5 + [-1e300]}, "figures that no measurement gives"),
        ("scores", ("importances",), {"block": [0.0] * 100_000}, "importances of 100000 layers"),
        ("plan", ("operations", 0, "kind"), "explode", "an operation 'explode'"),
        ("plan", ("operations", 0), {"kind": "silence", "layers": [1], "options": {"part": "x"}}, "the part 'x'"),
        ("plan", ("operations", 0), {"kind": "silence", "layers": [1], "options": {}}, "the part None"),
        (
            "plan",
            ("trials",),
            [{"removed": [{"layer": 1, "part": "head"}], "score": 1, "tried": 1}],
            "expected one of",
        ),
    ],
)
def test_records_that_lie(
    spoilt: Spoil, raw: Files, file: str, path: tuple[Any, ...], value: Any, wanted: str
) -> None:
    data = json.loads(raw[f"pruning/{file}.json"])
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    text = json.dumps(data) if value != 10**4000 else json.dumps(data | {"model": 0})
    if value == 10**4000:  # more digits than Python prints
        text = json.dumps(data | {"model": data["model"] | {"num_layers": "X"}}).replace('"X"', "1" + "0" * 4000)
    assert wanted in refused(spoilt({f"pruning/{file}.json": text.encode()}), ConfigError)


def test_a_sliced_plan_that_lies(spoilt: Spoil, pair_folders: Callable[[str], Path]) -> None:
    data = json.loads((pair_folders("sliced") / "pruning/plan.json").read_bytes())
    for changes, wanted in (
        ({"mlp_out": [24] * 9}, "slices 9 layers; expected 6"),
        ({"embed": 10**9}, "widths that no model has"),
        ({"parameters": 0}, "counts no parameters"),
    ):
        lie = json.dumps(data | {"slicing": data["slicing"] | changes}).encode()
        assert wanted in refused(spoilt({"pruning/plan.json": lie}, "sliced"), ConfigError)


def test_an_original_that_was_a_folder(spoilt: Spoil, raw: Files) -> None:
    plan = json.loads(raw["pruning/plan.json"])
    local = json.dumps(plan | {"model": plan["model"] | {"id": "my-folder", "revision": None}}).encode()
    named = {"pruning/plan.json": local, "README.md": f"---\nbase_model: {BASE}\n---\n".encode()}
    assert pairs.find(spoilt(named), NOBODY).original.name == BASE
    listed = named | {"README.md": f"---\nbase_model:\n- {BASE}\n---\n".encode()}
    assert pairs.find(spoilt(listed), NOBODY).original.name == BASE
    for card in (
        b"",
        b"---\nbase_model: ../../etc\n---\n",
        b"---\nbase_model: [a/b, c/d]\n---\n",
        b"---\nbase_model: 3\n---\n",
    ):
        message = refused(spoilt(named | {"README.md": card}), ConfigError)
        assert "cannot be looked up: its records call it 'my-folder'" in message


def test_an_original_with_a_path_for_a_name(spoilt: Spoil, raw: Files) -> None:
    plan = json.loads(raw["pruning/plan.json"])
    for name in ("/etc", "../../x", "C:\\x", "a/b/c", "a" * 200_000):
        lie = json.dumps(plan | {"model": plan["model"] | {"id": name}}).encode()
        message = refused(spoilt({"pruning/plan.json": lie, "README.md": b""}), ConfigError)
        assert ("more than 300 characters" if len(name) > 300 else "cannot be looked up") in message


def test_another_original(hub: LoopbackHub, spoilt: Spoil, raw: Files, new_repo_id: Callable[..., str]) -> None:
    plan = json.loads(raw["pruning/plan.json"])

    def named(**changes: Any) -> str:
        lie = json.dumps(plan | {"model": plan["model"] | changes}).encode()
        return spoilt({"pruning/plan.json": lie})

    assert "has no revision" in refused(named(revision="f" * 40), HubError)
    assert "there is no such model" in refused(named(id="acme/nowhere"), HubError)
    assert "speak of mistral with 6" in refused(named(model_type="mistral"), ConfigError)
    other = new_repo_id()
    commit = hub.add_repo(other, {file: raw[file] for file in ("config.json", "model.safetensors")})
    assert f"'{other}' is llama with 4 layers" in refused(named(id=other, revision=commit), ConfigError)


def test_pickles_and_adapters(spoilt: Spoil, raw: Files) -> None:
    pickled = spoilt({"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."})
    assert "weights only as pickles (pytorch_model.bin)" in refused(pickled, CheckpointError)
    assert "expected model.safetensors" in refused(spoilt({"model.safetensors": None}), CheckpointError)
    assert "is an adapter" in refused(spoilt({"adapter_config.json": b"{}"}), CheckpointError)
    assert "holds no config.json" in refused(spoilt({"config.json": None}), CheckpointError)
    assert "no model needs that" in refused(spoilt({"vocab.json": b" " * 65_000_000}), CheckpointError)


def test_code_of_a_repo_never_runs(hub: LoopbackHub, spoilt: Spoil, raw: Files, tmp_path: Path) -> None:
    trap = tmp_path / "it ran"
    code = f"open({str(trap)!r}, 'w')\n".encode()
    theirs = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    unknown = edited(raw["config.json"], model_type="evil", auto_map=theirs)
    message = refused(spoilt({"config.json": unknown, "evil.py": code}), ArchitectureError)
    assert "needs code from its repo to be loaded. The page never runs code of a repo" in message
    assert "trust_remote_code" not in message
    # A known architecture is loaded by its own class, whatever else the repo offers.
    known = edited(raw["config.json"], auto_map=theirs)
    tokenizer = edited(raw["tokenizer_config.json"], auto_map={"AutoTokenizer": ["evil.Evil", None]})
    name = spoilt({"config.json": known, "evil.py": code, "tokenizer_config.json": tokenizer})
    hub.reset()
    with pairs.opened(pairs.find(name, NOBODY), NOBODY) as loaded:
        assert type(loaded.pruned).__name__ == "LlamaForCausalLM"
    assert not trap.exists() and not hub.asked("GET", r"\.py$")
    for key in ("attn_implementation", "_attn_implementation"):
        kernel = spoilt({"config.json": edited(raw["config.json"], **{key: "evil/kernel"})})
        assert "names code on the Hub, 'evil/kernel'" in refused(kernel, ArchitectureError)


def test_a_tokenizer_that_needs_code(spoilt: Spoil, raw: Files) -> None:
    theirs = edited(
        raw["tokenizer_config.json"], tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    )
    name = spoilt({"tokenizer_config.json": theirs, "tokenizer.json": None, "evil.py": b"raise SystemExit"})
    assert "no tokenizer" in refused_opening(pairs.find(name, NOBODY), CheckpointError)


@pytest.mark.parametrize(
    ("changes", "kind", "wanted"),
    [
        ({"num_hidden_layers": MILLION}, CheckpointError, "'num_hidden_layers' in config.json"),
        ({"num_attention_heads": 10**9}, CheckpointError, "'num_attention_heads' in config.json"),
        ({"model_type": "gpt_neo", "attention_types": [[["local"], 10**9]]}, CheckpointError, "'attention_types' in"),
        ({"num_hidden_layers": "4"}, PruneError, "config.json"),
        ({"num_hidden_layers": 5}, ConfigError, "5 layers; its records say that 4"),
        ({"model_type": "bert"}, (ArchitectureError, CheckpointError), "acme/model"),
        ({"model_type": ["llama"]}, (ArchitectureError, CheckpointError), "acme/model"),
        ({"model_type": "no-such"}, ArchitectureError, "doesn't know"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, CheckpointError, "are quantized"),
        ({"hidden_act": 3}, CheckpointError, "config.json"),
    ],
)
def test_configs_that_lie(spoilt: Spoil, raw: Files, changes: Any, kind: type[PruneError], wanted: str) -> None:
    assert wanted in refused(spoilt({"config.json": edited(raw["config.json"], **changes)}), kind)


def test_configs_that_are_none(spoilt: Spoil) -> None:
    for content in (b"{", b"[]", b"3", b"[" * 100_000, b'{"a":' * 40 + b"1" + b"}" * 40):
        assert "config.json of" in refused(spoilt({"config.json": content}), (CheckpointError, ArchitectureError))
    assert "is 2.0 MB" in refused(spoilt({"config.json": b" " * 2_000_000}), ConfigError)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 2**40}, {"vocab_size": 2**40}, {"intermediate_size": 2**36}, {"head_dim": 2**40}],
)
def test_weights_smaller_than_the_config(spoilt: Spoil, raw: Files, changes: dict[str, int]) -> None:
    """Loading would make the missing ones up, terabytes of them; nothing is allocated."""
    pair = pairs.find(spoilt({"config.json": edited(raw["config.json"], **changes)}), NOBODY)
    assert "by its config and 0.00 GB by its weights" in refused_opening(pair, CheckpointError)
    assert models().bytes == pair.original.bytes


def header(tensors: Any) -> bytes:
    text = json.dumps(tensors).encode() if not isinstance(tensors, bytes) else tensors
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"short",
        b"\xff" * 100,
        header(b"{broken"),
        header([]),
        header({"a": 3}),
        header({"a": {"dtype": "F32", "shape": "x" * 10, "data_offsets": [0, 4]}}) + b"0000",
        header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}) + b"0" * 16,
        header({"a": {"dtype": "F32", "shape": [10**60], "data_offsets": [0, 16]}}) + b"0" * 16,
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**9]}}) + b"0" * 16,
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}) + b"0" * 16,
        header({"a": {"dtype": "I8", "shape": [4, 4], "data_offsets": [0, 16]}}) + b"0" * 16,
    ],
)
def test_weights_that_are_none(spoilt: Spoil, weights: bytes) -> None:
    assert "cannot be reached" not in refused(spoilt({"model.safetensors": weights}))


def test_an_adapter_that_is_another_one(spoilt: Spoil, pair_folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = pair_folders("adapter") / "adapter"
    config = (folder / "adapter_config.json").read_bytes()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: tensor[:1] for key, tensor in tensors.items()}, tmp_path / "small")
    for changes, wanted in (
        ({"adapter/adapter_model.safetensors": None}, "not the one of its records"),
        ({"adapter/adapter_model.safetensors": b"rubbish"}, "not the one of its records"),
        ({"adapter/adapter_model.safetensors": (tmp_path / "small").read_bytes()}, "not those of the record"),
        ({"adapter/adapter_config.json": edited(config, lora_alpha=10**6)}, "lora_alpha"),
        ({"adapter/adapter_config.json": edited(config, layer_replication=[[0, 1]] * 9)}, "layer_replication"),
    ):
        pair = pairs.find(spoilt(changes, "adapter"), NOBODY)
        assert wanted in refused_opening(pair, PruneError)


# What fits.


def test_too_large(pushed_pair: str) -> None:
    size = pairs.find(pushed_pair, NOBODY).original.bytes
    settings.use(dataclasses.replace(ON_SPACE, model_bytes=size))
    pair = pairs.find(pushed_pair, NOBODY)
    settings.use(dataclasses.replace(ON_SPACE, model_bytes=size - 1))
    message = refused(pushed_pair, ConfigError)
    assert message.startswith(f"'{BASE}' takes 0.00 GB once loaded (in float32); at most 0.00 GB can be opened here")
    assert "on a Space of tests" in message
    settings.use(dataclasses.replace(ON_SPACE, memory_bytes=size))
    assert "these models take 0.00 GB together" in refused_opening(pair, ConfigError)


def test_downloads_are_told_of(spoilt: Spoil) -> None:
    pair, said = pairs.find(spoilt({}), NOBODY), list[str]()
    with pairs.opened(pair, NOBODY, said.append):
        assert f"Downloading {pair.name} (0.00 GB) …" in said
    models().clear()
    said.clear()
    with pairs.opened(pair, NOBODY, said.append):
        assert not [line for line in said if line.startswith("Downloading")]


def test_a_full_disk(hub: LoopbackHub, spoilt: Spoil) -> None:
    pair = pairs.find(spoilt({"notes.txt": b"1"}), NOBODY)
    settings.use(dataclasses.replace(ON_SPACE, disk_bytes=1000))
    hub.reset()
    assert "GB of the disk are for models" in refused_opening(pair, ConfigError)
    assert not [r for r in hub.asked("GET", r"\.safetensors$") if "range" not in r.headers]
    settings.use(dataclasses.replace(ON_SPACE, disk_bytes=GB))
    with pairs.opened(pair, NOBODY):
        pass


# Who may.


@pytest.mark.parametrize("access", [{"private": True}, {"gated": True}])
@pytest.mark.parametrize("closed", ["the pruned model", "the original"])
def test_what_one_opened_is_not_open_to_all(
    hub: LoopbackHub, spoilt: Spoil, raw: Files, new_repo_id: Callable[..., str], access: dict[str, bool], closed: str
) -> None:
    if closed == "the pruned model":
        name = spoilt({}, **access)
        place = name
    else:
        place = new_repo_id("acme")
        commit = hub.add_repo(place, hub.files(BASE), **access)
        plan = json.loads(raw["pruning/plan.json"])
        plan["model"] |= {"id": place, "revision": commit}
        scores = json.loads(raw["pruning/scores.json"])
        scores["model"] |= {"id": place, "revision": commit}
        name = spoilt(
            {f: json.dumps(d).encode() for f, d in (("pruning/plan.json", plan), ("pruning/scores.json", scores))}
        )
    pair = pairs.find(name, AS_ALICE)
    with pairs.opened(pair, AS_ALICE) as loaded:
        assert loaded.pruned is not None
        hub.reset()
        # All of it is in memory and on disk now, and in use. Bob may even hold the very `Pair`.
        for visitor in (AS_BOB, NOBODY):
            for message in (refused(name, HubError, visitor), refused_opening(pair, HubError, visitor)):
                if "gated" in access:
                    assert f"cannot open '{place}': it is gated" in message
                else:
                    missing = refused("acme/no-such", HubError, visitor)
                    assert message == missing.replace("acme/no-such", place)
            with pytest.raises(HubError):
                pairs.authorise(pair, visitor)
        assert not hub.asked("GET", "/resolve/.*safetensors")
        with pairs.opened(pair, AS_ALICE) as again:
            assert again.pruned is loaded.pruned
    # Whoever is let out is out at once.
    hub.add_repo(place, {"README.md": "closed"}, private=True)
    repo = hub.store.get("model", place)
    hub.store.repos.pop(("model", place))
    assert "there is no such model" in refused_opening(pair, HubError, AS_ALICE)
    hub.store.repos["model", place] = repo


def test_invited(hub: LoopbackHub, spoilt: Spoil) -> None:
    name = spoilt({}, gated=True, allowed=("bob",))
    with pairs.opened(pairs.find(name, AS_BOB), AS_BOB) as loaded:
        assert loaded.pruned is not None
    assert "it is gated, and this account was not let in" in refused(
        name, HubError, dataclasses.replace(AS_BOB, token="hf_" + "LoopbackReader" * 3)
    )


def test_the_hub_out_of_reach(hub: LoopbackHub, pushed_pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pairs.find(pushed_pair, NOBODY)
    with pairs.opened(pair, NOBODY):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for message in (refused(pushed_pair, HubError), refused_opening(pair, HubError)):
            assert "the Hub cannot be reached; try again in a minute (the demo pair needs no Hub)" in message
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "cannot be reached" in refused_opening(pair, HubError)


def test_an_unwell_hub(hub: LoopbackHub, pushed_pair: str) -> None:
    pair = pairs.find(pushed_pair, NOBODY)
    hub.fail("GET", "auth-check", 500)
    assert "the Hub is not well" in refused_opening(pair, HubError)
    with pairs.opened(pair, NOBODY):
        pass


def test_no_token_in_what_goes_wrong(hub: LoopbackHub, pushed_pair: str) -> None:
    pair = pairs.find(pushed_pair, AS_ALICE)
    for status in (400, 401, 403, 404, 429, 500):
        hub.fail("GET", "auth-check", status, message=f"no, {AS_ALICE.token}", headers={"Retry-After": "1"})
        assert str(AS_ALICE.token) not in refused_opening(pair, HubError, AS_ALICE)
        hub.faults.reset()


# Many at once.


def test_many_visitors(hub: LoopbackHub, pushed: Callable[[str], str]) -> None:
    """Twelve visitors, four pairs, room for two: each gets its own, as if it were alone."""
    names = [pushed(kind) for kind in KINDS]
    alone = {}
    for name in names:
        with pairs.opened(pairs.find(name, NOBODY), NOBODY) as loaded:
            alone[name] = logits(loaded.pruned, tokens())
    models().clear()
    settings.use(dataclasses.replace(ON_SPACE, memory_bytes=2 * pairs.find(names[0], NOBODY).original.bytes + 300_000))
    started = threading.Barrier(12)

    def visit(number: int) -> bool:
        name = names[number % 4]
        started.wait(20)
        pair = pairs.find(name, (NOBODY, AS_ALICE, AS_BOB)[number % 3])
        with pairs.opened(pair, NOBODY) as loaded:
            assert models().bytes <= settings.current().memory_bytes
            return torch.equal(logits(loaded.pruned, tokens()), alone[name])

    with ThreadPoolExecutor(12) as pool:
        assert all(future.result(120) for future in [pool.submit(visit, number) for number in range(12)])
    assert torch.get_default_dtype() == torch.float32


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
ONE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [ONE] * 12}}, "more than 1000 characters of one"),
        ({"decoder": {"type": "Sequence", "decoders": [ONE] * 12}}, "more than 1000 characters of one"),
        ({"decoder": ONE | {"content": "a" * 10**6}}, "more than 1000 characters of one"),
        ({"added_tokens": [{"id": 0, "content": "a" * 10**6} | dict.fromkeys(FLAGS, False)]}, "of 1,000,000 char"),
    ],
)
def test_tokenizers_that_fill_the_memory(spoilt: Spoil, raw: Files, changes: Any, said: str) -> None:
    name = spoilt({"tokenizer.json": edited(raw["tokenizer.json"], **changes)})
    assert said in refused_opening(pairs.find(name, NOBODY), CheckpointError)


def test_a_tokenizer_that_panics_is_told(spoilt: Spoil, raw: Files) -> None:
    """What Rust gives up with is no `Exception`: it ended the event without a word, and whoever waited waited on."""
    costly = {"Regex": "^(([a-z])+.)+[A-Z]([a-z])+$"}
    split = {"type": "Split", "pattern": costly, "behavior": "Isolated", "invert": False}
    name = spoilt({"tokenizer.json": edited(raw["tokenizer.json"], pre_tokenizer=split)})
    with pytest.raises(CheckpointError, match=f"a tokenizer of '{name}' fails on this text"):
        list(comparing.compare(name, "a" * 1000, Sampling(), NOBODY))


def test_a_panic_while_loading_is_told(pushed_pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As Rust's, which only files that nobody has found yet would raise here."""

    def panic(*_: object, **__: object) -> None:
        raise Panic("at a path")

    monkeypatch.setattr("hf_prune.loading.load_tokenizer", panic)
    with pytest.raises(CheckpointError, match="cannot be loaded: Panic"):
        list(comparing.compare(pushed_pair, "Once", Sampling(), NOBODY))
    monkeypatch.setattr("hf_prune.space.pairs.opened", panic)
    with pytest.raises(PruneError, match="cannot be loaded"):
        list(comparing.compare(pushed_pair, "Once", Sampling(), NOBODY))


def test_too_much_beside_the_weights(spoilt: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_prune.space.weighing._MOST_BESIDE", 10**6)
    many = {f"{i}.json": b" " * 600_000 for i in range(2)}
    assert "MB beside its weights" in refused(spoilt(dict(many)), CheckpointError)
