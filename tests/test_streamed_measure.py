"""Measuring a checkpoint block by block: the numbers of the model in memory, to the bit, from a block's memory."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import memory_budget, precision
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.block_reader import CheckpointFiles
from hf_prune.block_weights import StreamedWeights
from hf_prune.errors import ArchitectureError, CheckpointError, MeasureError, OutputError
from hf_prune.loading import Source, load_model
from hf_prune.measure import measure_model
from hf_prune.measures.redundancy import LayerCosines
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.observing import Place
from hf_prune.runner import Walker
from hf_prune.samples import Batch, Samples, batches
from hf_prune.skeleton import skeleton
from hf_prune.tensors import TensorEntry
from tests.making import TEXT, act_between_blocks, reference
from tests.tiny import DEPTH, every_type, tiny_model, tokens

CONVERTED = ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v3", "afmoe")
SEQUENCES = tuple(tokens(1, length, length)[0] for length in (6, 11, 4, 11, 9))
FEW = SEQUENCES[:3]  # a padded batch of two, and a smaller one
SAMPLES = Samples(SEQUENCES, TEXT)


def saved(folder: Path, model_type: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Source:
    tiny_model(model_type, **overrides).to(dtype).save_pretrained(folder)
    return Source(reference(DEPTH, model_type=model_type), folder, False)


def streamed(source: Source, dtype: str = "auto", budget: int | None = None) -> tuple[Decoder, StreamedWeights]:
    assert source.folder is not None
    decoder = skeleton(source, dtype=dtype)
    return decoder, StreamedWeights(decoder, source.folder, states_budget=budget)


@pytest.fixture(params=every_type())
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


def sums(decoder: Decoder, weights: StreamedWeights | None = None) -> list[dict[str, Any]]:
    observers = [PairwiseAngles(), LayerCosines()]
    Walker(decoder, weights).walk(batches(FEW, 2), observers)
    return [observer.result() for observer in observers]


def test_streamed_sums_are_those_of_the_model_in_memory(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, model_type, torch.bfloat16)
    resident = decoder_of(load_model(source))
    decoder, weights = streamed(source, budget=0)
    for compute in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(precision, "faster_dtype", lambda _device, dtype, c=compute: c)
        assert sums(decoder, weights) == sums(resident), compute
        assert weights.copies == (compute == torch.float32 or model_type in CONVERTED)
        assert all(parameter.is_meta for parameter in decoder.model.parameters())
        assert {p.dtype for p in decoder.model.parameters()} == {p.dtype for p in resident.model.parameters()}


def test_records_are_equal_too(tmp_path: Path) -> None:
    source = saved(tmp_path, "llama")
    for name, options in (("angular", {}), ("redundancy", {"skip_first": True})):
        given: dict[str, Any] = {"model": source.ref, "name": name, "options": options, "batch_size": 2}
        resident = measure_model(decoder_of(load_model(source)), SAMPLES, **given)
        decoder, weights = streamed(source)
        found = measure_model(decoder, SAMPLES, weights=weights, scratch=tmp_path, **given)
        assert dataclasses.replace(found, seconds=0) == dataclasses.replace(resident, seconds=0)
        assert found.environment.device == "cpu"


@pytest.mark.parametrize("budget", [0, 3000, None])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_wherever_the_states_wait(budget: int | None, attention: str, dtype: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "base", "gemma3_text")
    decoder, weights = streamed(source, dtype, budget)
    resident = decoder_of(load_model(source, dtype=dtype))
    for model in (decoder.model, resident.model):
        model.set_attn_implementation(attention)
    (tmp_path / "scratch").mkdir()
    observers = [PairwiseAngles(), LayerCosines()]
    Walker(decoder, weights, tmp_path / "scratch").walk(batches(FEW, 2), observers)
    assert [observer.result() for observer in observers] == sums(resident)
    assert not list((tmp_path / "scratch").iterdir()), "scratch files are left"


class Watcher:
    """Notes which blocks are there, and how often it was shown something."""

    last_block = DEPTH - 1

    def __init__(self, decoder: Decoder, last_block: int | None = None) -> None:
        self.blocks, self.there, self.places = decoder.blocks, set[tuple[int, ...]](), list[Place]()
        if last_block is not None:
            self.last_block = last_block

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        there = (i for i, block in enumerate(self.blocks) if not any(p.is_meta for p in block.parameters()))
        self.there.add(tuple(there))
        self.places.append(at)

    def result(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors, in the order in which they were read."""
    names: list[str] = []
    own = CheckpointFiles.read

    def noting(self: CheckpointFiles, entry: TensorEntry, into: memoryview, start: int = 0) -> None:
        names.append(entry.name)
        own(self, entry, into, start)

    monkeypatch.setattr(CheckpointFiles, "read", noting)
    return names


def test_one_block_is_there_at_a_time_and_each_tensor_is_read_once(tmp_path: Path, read: list[str]) -> None:
    decoder, weights = streamed(saved(tmp_path, "mixtral"))
    walker = Walker(decoder, weights)
    read.clear()
    watcher = Watcher(decoder)
    walker.walk(batches(SEQUENCES, 2), [watcher])
    assert watcher.there == {(layer,) for layer in range(DEPTH)}
    assert [(at.layer, at.batch) for at in watcher.places] == [(i, b) for i in range(DEPTH) for b in range(3)]
    of_blocks = [name for name in read if ".layers." in name]
    assert len(of_blocks) == len(set(of_blocks)) == len([n for n in weights.files.entries if ".layers." in n])
    assert "lm_head.weight" not in read
    used = sum(len(set(torch.cat(SEQUENCES[i : i + 2]).tolist()) | {0}) for i in (0, 2, 4))
    assert read.count("model.embed_tokens.weight") in range(used - 3, used + 1), "more rows than tokens ask for"


@pytest.mark.parametrize("last", [0, 3])
def test_blocks_behind_the_last_needed_one_are_neither_read_nor_run(
    last: int, tmp_path: Path, read: list[str]
) -> None:
    source = saved(tmp_path, "llama")
    decoder, weights = streamed(source)
    walker = Walker(decoder, weights)
    read.clear()
    watchers = [Watcher(decoder, last), Watcher(decoder, 0)]
    walker.walk(batches(SEQUENCES, 2), watchers)
    assert {int(name.split(".")[2]) for name in read if ".layers." in name} == set(range(last + 1))
    assert [at.layer for at in watchers[0].places] == [layer for layer in range(last + 1) for _ in range(3)]

    resident = decoder_of(load_model(source))
    ran: list[int] = []
    for layer, block in enumerate(resident.blocks):
        block.register_forward_pre_hook(lambda _m, args, layer=layer: ran.append(layer) if args[0].is_cpu else None)
    walker = Walker(resident)
    tracer = Watcher(resident, last)
    ran.clear()
    walker.walk(batches(SEQUENCES, 2), [tracer])
    assert [at.layer for at in tracer.places] == [*range(last + 1)] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_block_that_gives_nan_is_named(value: float, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[5].mlp.down_proj.weight.data[3, 2] = value
    model.save_pretrained(tmp_path)
    decoder, weights = streamed(Source(reference(DEPTH), tmp_path, False))
    with pytest.raises(MeasureError, match=r"block 5 of 'org/model' gives NaN or infinite .* in batch 0 \("):
        sums(decoder, weights)
    assert all(parameter.is_meta for parameter in decoder.model.parameters())


def test_bad_embeddings_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[SEQUENCES[0][2]] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(MeasureError, match=r"the embeddings of '.*' hold NaN"):
        sums(*streamed(Source(reference(DEPTH), tmp_path, False)))


def test_token_that_the_model_does_not_know(tmp_path: Path) -> None:
    decoder, weights = streamed(saved(tmp_path, "llama"))
    batch = Batch(torch.tensor([[1, 10**6]]), torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(IndexError, match="1 to 1000000; the table has 96"):
        Walker(decoder, weights).walk([batch], [PairwiseAngles()])
    assert not decoder.model.get_input_embeddings()._forward_pre_hooks
    assert all(parameter.is_meta for parameter in decoder.model.parameters())


def test_model_that_acts_between_blocks_is_refused(tmp_path: Path) -> None:
    decoder, weights = streamed(saved(tmp_path, "llama"))
    act_between_blocks(decoder.base)
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM.* changes the hidden states between two blocks"):
        Walker(decoder, weights)


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(("spoil", "message"), [(touched, "changed while it was read"), (cut_short, "changed while"),
                                                (Path.unlink, "cannot be read")])  # fmt: skip
def test_files_that_change_meanwhile(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    source = Source(reference(DEPTH), tmp_path, False)
    last = CheckpointFiles(tmp_path).entries["model.layers.5.mlp.up_proj.weight"].file

    class Spoiling(Watcher):
        def see(self, at: Place, *seen: torch.Tensor) -> None:
            if at == Place(2, DEPTH, 0):
                spoil(tmp_path / last)

    decoder, weights = streamed(source)
    with pytest.raises(CheckpointError, match=f"{last} {message}"):
        Walker(decoder, weights).walk(batches(SEQUENCES, 2), [Spoiling(decoder)])
    assert all(parameter.is_meta for parameter in decoder.model.parameters())


def test_file_that_ends_early(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    files = CheckpointFiles(tmp_path)
    entry = files.entries["lm_head.weight"]
    os.truncate(tmp_path / entry.file, entry.start + 100)
    with pytest.raises(CheckpointError, match=r"model.safetensors ended after 100 of \d+ bytes of 'lm_head.weight'"):
        files.read(entry, memoryview(bytearray(entry.size)))
    files.close()


def test_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, weights = streamed(saved(tmp_path, "llama"))
    walker, own = Walker(decoder, weights), os.preadv
    first = weights.files.entries["model.layers.3.mlp.up_proj.weight"].start

    def failing(handle: int, buffers: list[memoryview], offset: int) -> int:
        if offset == first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return own(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"safetensors cannot be read at 'model.layers.3.*Input/output error"):
        walker.walk(batches(FEW, 2), [PairwiseAngles()])
    assert all(parameter.is_meta for parameter in decoder.model.parameters())


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, weights = streamed(saved(tmp_path, "llama"), budget=0)

    def full(*_given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="no room for 0 MB of hidden states in .*No space left on device"):
        sums(decoder, weights)


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gemma3_text"])
@pytest.mark.parametrize("budget", [0, None])
def test_streamed_to_a_gpu(model_type: str, budget: int | None, tmp_path: Path) -> None:
    source = saved(tmp_path, model_type, torch.bfloat16)
    resident = decoder_of(load_model(source, device_map="cuda"))
    decoder = skeleton(source, device="cuda")
    weights = StreamedWeights(decoder, tmp_path, "cuda", budget)
    watcher = Watcher(decoder)
    Walker(decoder, weights).walk(batches(SEQUENCES, 2), [watcher])
    assert watcher.there == {(layer,) for layer in range(DEPTH)}
    for _ in range(3):  # copies run beside the computing: a race would not show each time
        assert sums(decoder, weights) == sums(resident)
    decoder, weights = memory_budget.streamed(
        source, device="cuda", max_memory={0: "4GB", "cpu": "16GB"}, batch_size=2, max_length=11, samples=5
    )
    assert weights.states_budget and sums(decoder, weights) == sums(resident)
