"""Budgets of memory: read, obeyed by a process that is watched by the kernel, or refused with what would do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_prune import precision
from hf_prune.block_weights import StreamedWeights
from hf_prune.errors import ConfigError
from hf_prune.loading import Source
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.memory_budget import budget_of, needed, parse_memory, streamed
from hf_prune.runner import Walker
from hf_prune.samples import batches
from hf_prune.skeleton import skeleton
from tests.making import reference
from tests.tiny import DEPTH, tiny_model


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("4GB", 4 * 10**9), ("512mb", 512 * 10**6), (" 1.5 GB ", 15 * 10**8), ("4GiB", 2**32), ("100 KiB", 102_400),
        (4096, 4096), ("4096", 4096), ("2TB", 2 * 10**12),
    ],
)  # fmt: skip
def test_sizes(value: int | str, expected: int) -> None:
    assert parse_memory(value) == expected


@given(st.integers(1, 10**13))
def test_numbers_are_bytes(size: int) -> None:
    assert parse_memory(size) == parse_memory(str(size)) == parse_memory(f"{size}KB") // 1000 == size


@pytest.mark.parametrize(
    "value", ["", "GB", "4 gigabytes", "-4GB", 0, -1, "0GB", "nan", "4Gb/s", True, 1.5, None, "4TiB4"]
)
def test_no_sizes(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"memory budget {re.escape(repr(value))}; expected a size such as 4GB"):
        parse_memory(value)


def test_budget_of_each_device() -> None:
    assert budget_of(None) == budget_of({}) == {}
    assert budget_of({"cpu": "4GB", 0: 10**9}) == {"cpu": 4 * 10**9, 0: 10**9}
    for key in ("disk", "gpu", "0", -1, True, 1.0):
        with pytest.raises(ConfigError, match=f"max_memory names {key!r}; expected 'cpu' or the number of a GPU"):
            budget_of({key: "4GB"})  # type: ignore[dict-item]


WORK = {"batch_size": 2, "max_length": 16, "samples": 4}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    return Source(reference(DEPTH), tmp_path, False)


def test_refused_with_the_smallest_that_will_do(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"of 0.01 GB for 'cpu' is too small to measure 'org/model'") as refused:
        streamed(source, max_memory={"cpu": "10MB"}, **WORK)
    found = re.search(r"expected at least ([\d.]+) GB \((\d+) MB for the process", str(refused.value))
    assert found is not None
    smallest = round(float(found[1]) * 10**9)
    _, weights = streamed(
        source, max_memory={"cpu": smallest + 10**8}, **WORK
    )  # this process may have grown meanwhile
    assert weights.states_budget is not None and 0 <= weights.states_budget < 2 * 10**8


def test_a_refusal_promises_nothing_that_does_not_help(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"of 4 bytes for 'cpu'.*for the process, .*for the measure\)$"):
        streamed(source, max_memory={"cpu": "4"}, **WORK)
    with pytest.raises(ConfigError, match="one batch.*smaller batch size"):
        streamed(source, max_memory={"cpu": "8GB"}, **WORK | {"batch_size": 10**6})


def test_what_is_not_bounded_is_left_to_the_store(source: Source) -> None:
    assert streamed(source, **WORK)[1].states_budget is None
    assert streamed(source, max_memory={0: "1KB"}, **WORK)[1].states_budget is None


@pytest.mark.parametrize(
    ("model_type", "compute"), [("llama", "bfloat16"), ("llama", "float32"), ("mixtral", "bfloat16")]
)
def test_weights_held(model_type: str, compute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "faster_dtype", lambda _device, _dtype: getattr(torch, compute))
    model = tiny_model(model_type).bfloat16()
    model.save_pretrained(tmp_path)
    decoder = skeleton(Source(reference(DEPTH), tmp_path, False))
    weights = StreamedWeights(decoder, tmp_path)
    block = sum(p.numel() * 2 for p in model.model.layers[0].parameters())
    buffers, made, around = weights.bytes_held()
    padding = 64 * len(weights.files.entries)
    if compute == "float32":
        assert block <= buffers <= block + padding and made == 2 * block
    elif model_type == "mixtral":
        assert block <= buffers <= block + padding and block < made < 2 * block
    else:
        assert 2 * block <= buffers <= 2 * block + padding and made == 0
    assert around < 1000, "the table of embeddings counts"


def test_more_work_needs_more(source: Source) -> None:
    decoder, weights = streamed(source, **WORK)

    def total(**changes: int) -> int:
        return needed(decoder, weights, **{**WORK, **changes}, process=0).total

    base = total()
    assert total(batch_size=4) > base and total(max_length=32) > base and total(samples=64) > base
    assert needed(decoder, weights, **WORK, process=10**9).total == base + 10**9


@pytest.mark.parametrize(
    ("model_type", "scores"), [("llama", False), ("bloom", True), ("deepseek_v3", True), ("gemma3_text", False)]
)
def test_attention_that_has_all_its_scores_at_once_needs_room_for_them(
    model_type: str, scores: bool, tmp_path: Path
) -> None:
    model = tiny_model(model_type).bfloat16()
    model.save_pretrained(tmp_path)
    decoder, weights = streamed(Source(reference(DEPTH), tmp_path, False), **WORK)
    length = 1 << 16
    found = needed(decoder, weights, **{**WORK, "max_length": length}, process=0).workspace
    expected = 2 * 3 * 4 * model.config.num_attention_heads * length**2
    assert (found >= expected) == scores


_CHILD = """
import json, re, sys
from pathlib import Path
import torch
from hf_prune import precision
from hf_prune.errors import ConfigError
from hf_prune.loading import Source
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.measure import measure_model
from hf_prune.memory_budget import streamed
from hf_prune.records import ModelRef, TextUse
from hf_prune.samples import Samples

folder, scratch, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
precision.faster_dtype = lambda device, dtype: getattr(torch, given["compute"])
ref = ModelRef(id="org/model", revision=None, model_type="llama", num_layers=given["layers"], digest="d" * 64)
work = {key: given[key] for key in ("batch_size", "max_length", "samples")}
source = Source(ref, folder, False)
try:
    streamed(source, max_memory={"cpu": "1MB"}, **work)
except ConfigError as error:
    gigabytes = float(re.search(r"expected at least ([\\d.]+) GB", str(error))[1])
budget = round(gigabytes * 10**9) + 10**7  # a few more pages came in with the refusal
before = 1024 * int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0])
decoder, weights = streamed(source, max_memory={"cpu": budget}, **work)
weights.states_budget //= 4  # most of them go to the disk
text = TextUse("org/books", "en", "train", "c0ffee", 4, 100, 32, 0, "5" * 64)
generator = torch.Generator().manual_seed(0)
ids = [torch.randint(0, 512, (given["max_length"],), generator=generator) for _ in range(given["samples"])]
measure_model(decoder, Samples(tuple(ids), text), model=ref, name=given["measure"],
              batch_size=given["batch_size"], weights=weights, scratch=scratch)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = 1024 * int(status["VmHWM"].split()[0])
print(json.dumps({"peak": peak, "grown": peak - before, "states": weights.states_budget, "budget": budget}))
"""


def measured(folder: Path, scratch: Path, **given: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, str(folder), str(scratch), json.dumps(given)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.strip().splitlines()[-1])


def wide_model(folder: Path, width: int, layers: int) -> int:
    """Few wide layers and a tiny vocabulary; returns the bytes of its weights."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100MB")
    return sum(2 * p.numel() for p in model.parameters())


def obeyed(size: int, folder: Path, scratch: Path, **given: Any) -> None:
    """Measure weights of `size` bytes in a process of its own, with the smallest budget that is not refused."""
    answer = measured(folder, scratch, **given)
    assert answer["states"] < 40_000_000
    assert answer["peak"] <= answer["budget"]
    computed = 2 * size if given["compute"] == "float32" else size
    assert answer["grown"] < computed, "the budget has room for code that is read in: all weights could hide there"
    assert not list(scratch.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the peak")
def test_a_small_budget_is_obeyed(tmp_path: Path) -> None:
    size = wide_model(tmp_path / "base", 512, 10)
    (tmp_path / "scratch").mkdir()
    assert size > 80_000_000
    obeyed(size, tmp_path / "base", tmp_path / "scratch", compute="float32", layers=10, batch_size=1, max_length=64,
           samples=4, measure="redundancy")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("measure", ["angular", "redundancy"])
def test_a_budget_is_obeyed(compute: str, measure: str, tmp_path: Path) -> None:
    size = wide_model(tmp_path / "base", 1024, 9)
    (tmp_path / "scratch").mkdir()
    assert size > 300_000_000
    given: dict[str, Any] = {
        "compute": compute, "layers": 9, "batch_size": 4, "max_length": 128, "samples": 24, "measure": measure,
    }  # fmt: skip
    obeyed(size, tmp_path / "base", tmp_path / "scratch", **given)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_where_memory_is_bounded_blocks_leave_the_page_cache(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _handle, start, size, _advice: dropped.append((start, size)))
    batch = next(batches([torch.arange(3, 9)], 1))
    for bound in (None, {"cpu": "64GB"}):
        decoder, weights = streamed(source, max_memory=bound, **WORK)
        Walker(decoder, weights).walk([batch], [PairwiseAngles()])
        expected = (
            {(e.start, e.size) for e in weights.files.entries.values() if ".layers." in e.name} if bound else set()
        )
        assert set(dropped) == expected
