"""Surgery file to file: tensor by tensor the same as in memory, for every family, and what goes is never read."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_prune.architecture import FAMILIES, decoder_of
from hf_prune.checkpoint import INDEX, SINGLE, weight_files
from hf_prune.errors import CheckpointError, ConfigError, OutputError, StreamError
from hf_prune.loading import load_model, locate
from hf_prune.local_files import LocalFiles, local_weights
from hf_prune.moving import LARGEST_SPAN, SourceWeights, Span
from hf_prune.records import ModelRef, Operation, Plan
from hf_prune.saving import save_companions, save_model, staged
from hf_prune.surgery import apply_plan, checkpoint, cut_tensors
from hf_prune.surgery.checkpoint import write_weights

from .evaluation.text import byte_tokenizer
from .making import base_folder, edit_json
from .tiny import DEPTH

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]


def plan_of(*operations: Operation, model_type: str = "llama", depth: int = DEPTH) -> Plan:
    return Plan(ModelRef("org/model", None, model_type, depth, "d" * 64), "m", "p", operations, "why")


def drop(*layers: int, **fields: Any) -> Plan:
    return plan_of(Operation("drop", layers), **fields)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def in_memory(base: Path, plan: Plan, out: Path, dtype: Any = "auto", **kwargs: Any) -> None:
    source, _ = locate(base, base_model="org/model")
    model = load_model(source, dtype=dtype)
    apply_plan(decoder_of(model), plan)
    out.mkdir()
    save_model(model, byte_tokenizer(), out, source=base, keep=plan.kept, **kwargs)


def streamed(base: Path, plan: Plan, out: Path, weights: SourceWeights | None = None, **kwargs: Any) -> None:
    out.mkdir(exist_ok=True)
    model = write_weights(weights or local_weights(base), base, plan, out, **kwargs)
    save_companions(out, model=model, source=base, keep=plan.kept, tokenizer=byte_tokenizer())


def assert_same(base: Path, plan: Plan, folder: Path, dtype: Any = "auto", **kwargs: Any) -> Path:
    in_memory(base, plan, folder / "memory", dtype, **kwargs)
    streamed(base, plan, folder / "streamed", dtype=dtype, **kwargs)
    assert_equal(folder / "streamed", folder / "memory")
    return folder / "streamed"


def assert_equal(one: Path, two: Path, *, shards: bool = True) -> None:
    found, wanted = tensors_of(one), tensors_of(two)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    if not shards:
        return
    assert [p.name for p in weight_files(one)] == [p.name for p in weight_files(two)]
    for path in two.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert (one / path.relative_to(two)).read_bytes() == path.read_bytes(), path
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


# One of each way of storing: plain, merged linears, tied heads, experts, dense and sparse blocks, no attention.
LAYOUTS = ("llama", "gpt2", "gemma3_text", "mixtral", "deepseek_v3", "gpt_oss", "falcon", "mamba")


@pytest.mark.parametrize(
    "model_type", [t if t in LAYOUTS else pytest.param(t, marks=pytest.mark.slow) for t in MODEL_TYPES]
)
def test_every_family_as_in_memory(model_type: str, tmp_path: Path) -> None:
    base_folder(tmp_path / "base", model_type)
    assert_same(tmp_path / "base", drop(0, 3, 4, model_type=model_type), tmp_path)


# ---- plans, shards and dtypes


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint in one file, and one in many."""
    folder = tmp_path_factory.mktemp("bases")
    model, one = base_folder(folder / "one", "qwen2_moe")
    many = shutil.copytree(one, folder / "many")
    (many / SINGLE).unlink()
    model.save_pretrained(many, max_shard_size="40KB")
    assert (many / INDEX).is_file()
    return {"one": one, "many": many}


@settings(max_examples=6)
@given(
    st.sets(st.integers(0, DEPTH - 1), min_size=1, max_size=DEPTH - 1),
    st.sampled_from(["one", "many"]),
    st.sampled_from(["20KB", "70KB", "5GB"]),
)
def test_any_plan_from_any_shards_to_any(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, layers: set[int], given_base: str, size: str
) -> None:
    plan = drop(*sorted(layers), model_type="qwen2_moe")
    folder = tmp_path_factory.mktemp("out")
    in_memory(bases[given_base], plan, folder / "memory", max_shard_size=size)
    streamed(bases[given_base], plan, folder / "streamed", max_shard_size=size)
    # In memory the experts of a block are parts of one tensor, and so pass for one when files are divided.
    assert_equal(folder / "streamed", folder / "memory", shards=False)


@pytest.mark.parametrize("size", ["10KB", "33KB", "5GB"])
def test_divided_as_in_memory(tmp_path: Path, size: str) -> None:
    _, base = base_folder(tmp_path / "base")
    assert_same(base, drop(2, 3), tmp_path, max_shard_size=size)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", ["auto", torch.float32, torch.float16])
def test_dtypes(tmp_path: Path, stored: torch.dtype, wanted: Any) -> None:
    model, base = base_folder(tmp_path / "base")
    model.to(stored).save_pretrained(base)
    out = assert_same(base, drop(2, 5), tmp_path, wanted)
    assert {t.dtype for t in tensors_of(out).values()} == {stored if wanted == "auto" else wanted}


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3"])
def test_mixed_dtypes_become_the_one_of_the_config(tmp_path: Path, model_type: str) -> None:
    """Norms in float32, everything else in bfloat16; what transformers keeps in float32 stays so."""
    model, base = base_folder(tmp_path / "base", model_type)
    model.to(torch.bfloat16).save_pretrained(base)
    tensors = load_file(base / SINGLE)
    tensors = {n: t.float() if "norm" in n or "bias" in n else t for n, t in tensors.items()}
    save_file(tensors, base / SINGLE, {"format": "pt"})
    assert_same(base, drop(1, 4, model_type=model_type), tmp_path)
    for path in ("memory", "streamed"):
        shutil.rmtree(tmp_path / path)
    edit_json(base / "config.json", dtype=None)  # then the first floating tensor of the file decides
    assert_same(base, drop(1, 4, model_type=model_type), tmp_path)


def test_old_base_without_the_prefix_and_with_masks(tmp_path: Path) -> None:
    """As the first GPT-2 checkpoints are: names without `transformer.`, and a mask in every block."""
    _, base = base_folder(tmp_path / "base", "gpt2")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(base / SINGLE).items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(DEPTH)}
    save_file({**tensors, **masks}, base / SINGLE, {"format": "pt"})
    assert_same(base, drop(0, 6, model_type="gpt2"), tmp_path)


def test_tensors_that_nobody_loads_are_left_behind(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base", "deepseek_v3")
    tensors = load_file(base / SINGLE)
    more = {f"model.layers.{DEPTH}.mlp.up_proj.weight": torch.ones(4), "model.rotary_emb.inv_freq": torch.ones(3)}
    save_file({**tensors, **more}, base / SINGLE, {"format": "pt"})
    edit_json(base / "config.json", num_nextn_predict_layers=1)
    out = assert_same(base, drop(7, model_type="deepseek_v3"), tmp_path)
    assert not more.keys() & tensors_of(out).keys()


def test_shards_of_one_name_in_two_folders(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    tensors = load_file(base / SINGLE)
    (base / SINGLE).unlink()
    files = {name: f"{'ab'[number % 2]}/part.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        (base / file).parent.mkdir()
        save_file({name: tensors[name] for name in tensors if files[name] == file}, base / file, {"format": "pt"})
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same(base, drop(1, 4), tmp_path)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("model_type", ["gemma", "gpt2"])
def test_a_tied_head_that_is_stored_twice(tmp_path: Path, model_type: str, same: bool) -> None:
    model, base = base_folder(tmp_path / "base", model_type)
    tensors = load_file(base / SINGLE)
    head = model.get_output_embeddings().weight.detach().clone()
    save_file({**tensors, "lm_head.weight": head if same else head + 1}, base / SINGLE, {"format": "pt"})
    out = assert_same(base, drop(3, model_type=model_type), tmp_path)
    assert ("lm_head.weight" in tensors_of(out)) != same


def test_config_without_a_tokenizer_or_generation_config(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    for path in (*base.glob("tokenizer*"), base / "generation_config.json"):
        path.unlink()
    assert_same(base, drop(3), tmp_path)


# ---- other operations


def fitted(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, folder / "fitted.safetensors")
    return str(folder / "fitted.safetensors")


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_scale_and_replace_as_in_memory(tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_tensors, "_CHUNK", 1000)  # so that tensors are worked on in pieces
    _, base = base_folder(tmp_path / "base")
    file = fitted(tmp_path, {"1.mlp.down_proj.weight": torch.randn(32, 48, dtype=torch.float64)})
    weights = ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
    plan = plan_of(
        Operation("scale", (0, 1, 4), {"weights": weights, "factor": 1.1}),
        Operation("drop", (2, 3)),
        Operation("replace", (1, 6), {"file": file}),
        Operation("scale", (5, 6), {"weights": weights, "factor": 1 / 3}),
        Operation("drop", (7,)),
    )
    out = assert_same(base, plan, tmp_path, dtype)
    before, after = tensors_of(base), tensors_of(out)
    kept = torch.bfloat16 if dtype != "auto" else torch.float32
    name = "mlp.down_proj.weight"
    wide = before[f"model.layers.4.{name}"].to(kept).float()
    assert torch.equal(after[f"model.layers.2.{name}"], (wide * 1.1).to(kept)), "block 4 is the third that stays"
    made = load_file(file)["1.mlp.down_proj.weight"].to(kept)
    assert torch.equal(after[f"model.layers.4.{name}"], (made.float() * (1 / 3)).to(kept))


def test_what_treats_all_numbers_alike_reaches_experts_that_are_stored_apart(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base", "mixtral")
    tripled = Operation("scale", (1,), {"weights": ["mlp.experts.down_proj"], "factor": 3.0})
    plan = plan_of(tripled, model_type="mixtral")
    out = assert_same(base, plan, tmp_path)
    before, after = tensors_of(base), tensors_of(out)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in range(4)}


def test_operations_that_cannot_be(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    shape = fitted(tmp_path, {"0.mlp.down_proj.weight": torch.zeros(3, 3)})
    (tmp_path / "more").mkdir()
    stranger = fitted(tmp_path / "more", {"1.mlp.down_proj.weight": torch.zeros(32, 48)})
    cases: list[tuple[Operation, str]] = [
        (
            Operation("scale", (1,), {"weights": ["mlp.nothing"]}),
            "block 1 of '.*' has no weight 'mlp.nothing'; it has: ",
        ),
        (Operation("scale", (8,), {}), r"'scale' of the plan acts on the blocks \[8\], which .* does not have"),
        (Operation("replace", (1,), {"file": "gone"}), "no file of fitted tensors 'gone'; fit them again"),
        (Operation("replace", (1,), {"file": shape}), r"shape \[3, 3\]; '.*' has \[32, 48\] there"),
        (Operation("replace", (1,), {"file": stranger}), "number of one of the 1 blocks"),
        (Operation("scale", (1,), {"factors": 2}), "has no option 'factors'"),
    ]
    for operation, message in cases:
        for act in (in_memory, streamed):
            out = tmp_path / "out"
            with pytest.raises(ConfigError, match=message):
                act(base, plan_of(operation), out)
            shutil.rmtree(out, ignore_errors=True)
    with pytest.raises(ConfigError, match=r"'scale' of the plan acts on the blocks \[3\]"):
        streamed(base, plan_of(Operation("drop", (3,)), Operation("scale", (3,))), tmp_path / "out")


def test_what_only_memory_can_do(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base", "mixtral")
    experts = fitted(tmp_path, {"0.mlp.experts.down_proj": torch.zeros(4, 32, 48)})
    (tmp_path / "out").mkdir()
    for plan, message in [
        (plan_of(Operation("slice", ()), model_type="mixtral"), "'slice' of the plan needs the model in memory"),
        (
            plan_of(Operation("replace", (1,), {"file": experts}), model_type="mixtral"),
            "does not store as it holds them",
        ),
    ]:
        with pytest.raises(StreamError, match=message):
            streamed(base, plan, tmp_path / "out")
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(StreamError, match="'org/model' is quantized"):
        streamed(base, drop(1, model_type="mixtral"), tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


# ---- what is read and written


class Counting(LocalFiles):
    """Counts the bytes that are moved and read, and keeps the spans."""

    def __init__(self, folder: Path) -> None:
        super().__init__({path.name: path for path in weight_files(folder)})
        self.spans: list[Span] = []
        self.read_bytes = 0

    def move(self, spans: Sequence[Span], folder: Path, done: Callable[[Span], None]) -> None:
        self.spans += spans
        super().move(spans, folder, done)

    def read(self, file: str, start: int, size: int) -> bytes:
        self.read_bytes += size
        return super().read(file, start, size)


def counted(base: Path) -> tuple[SourceWeights, Counting]:
    mover = Counting(base)
    return dataclasses.replace(local_weights(base), mover=mover), mover


def test_what_goes_is_never_read_and_neighbours_move_together(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    weights, mover = counted(base)
    streamed(base, drop(2, 3), tmp_path / "out", weights)
    written = sum(entry.size for entry in local_weights(tmp_path / "out").entries.values())
    assert sum(span.size for span in mover.spans) == written and mover.read_bytes == 0
    gone = [e for e in weights.entries.values() if ".layers.2." in e.name or ".layers.3." in e.name]
    assert gone
    for span in mover.spans:
        assert not any(e.start < span.start + span.size and span.start < e.start + e.size for e in gone)
    assert len(mover.spans) == 2, "all before block 2, and all behind block 3"


def test_long_pieces_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, base = base_folder(tmp_path / "base")
    monkeypatch.setattr(checkpoint, "LARGEST_SPAN", 1024)
    weights, mover = counted(base)
    streamed(base, drop(2, 3), tmp_path / "out", weights)
    assert max(span.size for span in mover.spans) == 1024 < LARGEST_SPAN
    in_memory(base, drop(2, 3), tmp_path / "memory")
    assert_equal(tmp_path / "out", tmp_path / "memory")


# ---- killed, and run again

KILLED = """
import sys, time
from pathlib import Path
from hf_prune import journal, surgery
from hf_prune.local_files import LocalFiles
from hf_prune.surgery import checkpoint
from tests.test_streamed_surgery import drop, counted, write_weights

base, out = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint.LARGEST_SPAN = 4096
journal._BATCH = 1
move = LocalFiles.move

def slowly(self, spans, folder, done):
    for number, span in enumerate(spans):
        move(self, [span], folder, done)
        if number == 5:
            print("moving", flush=True)
        if number >= 5:
            time.sleep(0.05)

LocalFiles.move = slowly
weights, _ = counted(base)
write_weights(weights, base, drop(2, 3), out, journal=out / "journal")
print("done", flush=True)
"""


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, base = base_folder(tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(base), str(out)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert child.stdout is not None
    with child, child.stdout as told:
        assert told.readline() == b"moving\n"
        while not (out / "journal").exists():
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    monkeypatch.setattr(checkpoint, "LARGEST_SPAN", 4096)
    weights, mover = counted(base)
    streamed(base, drop(2, 3), out, weights, journal=out / "journal")
    moved = sum(span.size for span in mover.spans)
    written = sum(entry.size for entry in local_weights(out).entries.values())
    entered = {tuple(entry) for line in (out / "journal").read_text().splitlines()[1:] for entry in json.loads(line)}
    assert 0 < moved < written and sum(size for _, _, size in entered) == written
    (out / "journal").unlink()
    in_memory(base, drop(2, 3), tmp_path / "memory")
    assert_equal(out, tmp_path / "memory")


def test_what_was_moved_counts_only_for_the_same_work(tmp_path: Path) -> None:
    _, base = base_folder(tmp_path / "base")
    out, journal = tmp_path / "out", tmp_path / "journal"

    def moved(plan: Plan, **kwargs: Any) -> int:
        weights, mover = counted(base)
        streamed(base, plan, out, weights, journal=journal, **kwargs)
        return sum(span.size for span in mover.spans)

    whole = moved(drop(2, 3))
    assert moved(drop(2, 3)) == 0
    assert moved(drop(2, 4)) == whole, "another plan"
    assert moved(drop(2, 4), max_shard_size="50KB") == whole, "other files"
    assert moved(drop(2, 4), max_shard_size="50KB") == 0
    shards = weight_files(out)
    shards[0].unlink()
    assert moved(drop(2, 4), max_shard_size="50KB") == whole, "a file is gone"
    os.utime(base / SINGLE, ns=(1, 1))
    assert moved(drop(2, 4), max_shard_size="50KB") == whole, "other weights"
    assert moved(drop(2, 4)) == whole and [p.name for p in weight_files(out)] == [SINGLE]
    assert not list(out.glob("model-*")) and not (out / INDEX).exists()


# ---- bad input


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    model, base = base_folder(folder / "base")
    (base / SINGLE).unlink()
    model.save_pretrained(base, max_shard_size="60KB")
    return base


def header_changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in header.items() if key != "__metadata__")


def shard(folder: Path, number: int = 0) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def mapped(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda f: shard(f).unlink(), "missing in .*model-00001"),
    "a shard is truncated": (lambda f: os.truncate(shard(f, 1), shard(f, 1).stat().st_size - 1), "is truncated"),
    "a shard lies in two": (lambda f: shutil.copy(shard(f), shard(f, 1)), "lies in two shards"),
    "the index leaves one out": (lambda f: mapped(f, lambda m: m.pop("model.norm.weight")), "leaves out 1 tensors"),
    "the index names another": (
        lambda f: mapped(f, lambda m: m.update(x=shard(f).name)),
        "'x' is in .* where it is not",
    ),
    "the index names a wrong file": (
        lambda f: mapped(f, lambda m: m.update({"model.norm.weight": shard(f).name})),
        "'model.norm.weight' is in .*; it lies in",
    ),
    "an absurd header": (lambda f: shard(f).write_bytes(b"\xff" * 7 + b"\0" + bytes(100)), "promises a header of"),
    "no JSON": (lambda f: shard(f).write_bytes((8).to_bytes(8, "little") + b"nonsense"), "no safetensors header"),
    "offsets that overlap": (
        lambda f: header_changed(shard(f), lambda h: first_tensor(h).update(data_offsets=[8, 8 + first_size(h)])),
        "overlaps|leaves a hole|too long",
    ),
    "offsets past the end": (
        lambda f: header_changed(shard(f), lambda h: first_tensor(h).update(shape=[2**50], data_offsets=[0, 2**52])),
        "truncated|overlaps",
    ),
    "an unknown dtype": (
        lambda f: header_changed(shard(f), lambda h: first_tensor(h).update(dtype="Q7")),
        "dtype 'Q7'",
    ),
    "pickles": (
        lambda f: (
            [p.rename(p.with_name(p.name.replace("safetensors", "bin"))) for p in f.glob("model-*")]
            and (f / INDEX).unlink()
        ),
        "only as pickles",
    ),
    "weights of another depth": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=DEPTH + 1),
        "do not fit its config: missing",
    ),
    "weights of another width": (lambda f: edit_json(f / "config.json", intermediate_size=40), "mismatched"),
}


def first_size(header: dict[str, Any]) -> int:
    start, end = first_tensor(header)["data_offsets"]
    return end - start


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_checkpoints_are_refused_before_a_byte_is_written(sharded: Path, tmp_path: Path, damage: str) -> None:
    base, out = shutil.copytree(sharded, tmp_path / "base"), tmp_path / "out"
    act, message = BROKEN[damage]
    act(base)
    depth = DEPTH + 1 if damage == "weights of another depth" else DEPTH
    with pytest.raises(CheckpointError, match=message):
        streamed(base, drop(1, depth=depth), out)
    assert not any(out.iterdir())


def test_plan_of_another_model(sharded: Path, tmp_path: Path) -> None:
    for plan in (drop(1, depth=9), drop(1, model_type="gpt2")):
        with pytest.raises(ConfigError, match="the plan was made for 'org/model'"):
            streamed(sharded, plan, tmp_path / "out")


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_a_file_that_changes_while_it_is_read(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    base, out = shutil.copytree(sharded, tmp_path / "base"), tmp_path / "out"
    move = LocalFiles.move

    def changed(self: LocalFiles, spans: Sequence[Span], folder: Path, done: Callable[[Span], None]) -> None:
        move(self, spans[:1], folder, done)
        for path in weight_files(base):
            with path.open("ab") as file:
                file.truncate(file.tell() + 1 if change == "longer" else 10)
        move(self, spans[1:], folder, done)

    monkeypatch.setattr(LocalFiles, "move", changed)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        streamed(base, drop(1), out)
    assert not any(out.iterdir()), "nothing half-written"


def test_target_and_base_are_apart(sharded: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sharded, tmp_path / "deep" / "base")
    (tmp_path / "link").symlink_to(base)
    for out in (base, base / "out", tmp_path / "deep", tmp_path / "link", tmp_path / "link" / "out"):
        with pytest.raises(OutputError, match="are the same folder, or one lies in the other; choose another output"):
            write_weights(local_weights(base), base, drop(1), out)
    assert sorted(p.name for p in base.iterdir()) == sorted(p.name for p in sharded.iterdir())


def test_target_holds_weights_already(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SINGLE).write_text("mine")
    with pytest.raises(OutputError, match=r"out' holds weights already \(model.safetensors\); expected an empty one"):
        streamed(sharded, drop(1), tmp_path / "out")
    assert (tmp_path / "out" / SINGLE).read_text() == "mine"


def test_no_room_is_told_before_any_work(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: usage._replace(free=10**5))
    weights, mover = counted(sharded)
    with pytest.raises(OutputError, match=r"the weights take 0.00 GB; '.*out' has room for 0.00 GB\. Free some space"):
        streamed(sharded, drop(1), tmp_path / "out", weights)
    assert not mover.spans and not any((tmp_path / "out").iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses files of more than 100 kB."""
    own = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, own[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, own)


def test_the_kernel_refuses_the_size(sharded: Path, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OutputError, match="a file is too large for .* 0.00 GB are needed; choose another disk"):
        streamed(sharded, drop(1), tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a disk that fills up has to be mounted")
def test_a_disk_that_fills_up(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        usage = shutil.disk_usage(tmp_path)
        for checked in (True, False):
            if not checked:  # somebody else fills it between the look and the work
                monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: usage)
            with pytest.raises(OutputError, match="has room for 0.00 GB" if checked else "the disk is full"):
                streamed(sharded, drop(1), disk / "out")
            assert not any((disk / "out").iterdir())
        with (
            pytest.raises(OutputError, match="the disk is full .*; nothing was left there"),
            staged(disk / "new") as stage,
        ):
            streamed(sharded, drop(1), stage)
        assert [path.name for path in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_cannot_be_written(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        streamed(sharded, drop(1), tmp_path / "out")


# ---- memory

MEASURED = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
from hf_prune.local_files import local_weights
from hf_prune.registry import surgery
from hf_prune.surgery.checkpoint import write_weights
from tests.test_streamed_surgery import drop

surgery.get("drop")
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
before = peak()
base, out, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
write_weights(local_weights(base), base, drop(1, 2, depth=int(sys.argv[4])), out, dtype=dtype)
print(json.dumps({"before": before, "above": peak() - before}))
"""


def hollow(folder: Path, size: int, depth: int) -> int:
    """A checkpoint of `depth` blocks whose tensors are holes in a file; returns its bytes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from hf_prune.shards import lay_out

    config = LlamaConfig(
        hidden_size=size, intermediate_size=3 * size, num_hidden_layers=depth, vocab_size=8000, dtype="bfloat16",
        num_attention_heads=16, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.save_pretrained(folder)
    (shard,) = lay_out(model.state_dict(), "1TB")
    with (folder / shard.file).open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.size)
    return shard.size


@pytest.mark.parametrize(
    ("size", "depth", "dtype"),
    [
        (1024, 8, "float16"),
        pytest.param(1024, 8, "auto", marks=pytest.mark.slow),
        pytest.param(4096, 16, "auto", marks=pytest.mark.slow),
        pytest.param(4096, 16, "float16", marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_model(tmp_path: Path, size: int, depth: int, dtype: str) -> None:
    """At most 80 MB above the imports; the large one has 6 GB."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    assert hollow(base, size, depth) > 0.2e9
    child = subprocess.run(
        [sys.executable, "-c", MEASURED, str(base), str(out), dtype, str(depth)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    shutil.rmtree(out)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1])["above"] < 80
