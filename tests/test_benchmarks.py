"""The parts that benchmarks are made of, and the table that README shows of their results."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.checkpoint import checkpoint_entries
from tests.benchmarks import gpu, healing, observers, pruned_speed, scaling, searching, table
from tests.benchmarks.checkpoints import SEVEN_B, Shapes, checkpoint
from tests.benchmarks.costs import cold, memory_limit, read_seconds, run_child, weights_of
from tests.benchmarks.scaling import Size, exponents
from tests.evaluation.text import VOCAB

README = Path(__file__).parent.parent / "README.md"
TINY = Shapes(hidden=64, intermediate=96, layers=8, heads=2, vocabulary=VOCAB, shards=3)
SHORT = {
    "streamed_measure": {"sequences": 4, "length": 64, "batch": 2, "memory": 10**9},
    "streamed_surgery": {"runs": 1},
}
ABOUT = {"hardware": "a processor, 2 threads", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}


def test_checkpoint_is_a_stock_one_with_blocks_of_their_own(tmp_path: Path) -> None:
    with checkpoint(TINY, tmp_path) as folder:
        entries = checkpoint_entries(folder)
        assert {entry.file for entry in entries.values()} == {path.name for path in weights_of(folder)}
        assert len(weights_of(folder)) == TINY.shards
        assert sum(entry.size for entry in entries.values()) == TINY.bytes
        model, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert sum(p.numel() for p in model.parameters()) == TINY.describe()["parameters"]
        queries = torch.stack([block.self_attn.q_proj.weight for block in model.model.layers]).float()
        assert len(queries.flatten(1).unique(dim=0)) == TINY.layers
        assert queries.std().item() == pytest.approx(0.02, rel=0.1)
        ids = AutoTokenizer.from_pretrained(folder)("calm", return_tensors="pt")["input_ids"]
        assert model(ids).logits.isfinite().all()
    assert not list(tmp_path.iterdir())


def test_checkpoint_goes_when_something_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="halfway"), checkpoint(TINY, tmp_path):
        raise RuntimeError("halfway")
    assert not list(tmp_path.iterdir())


def test_the_large_checkpoint_is_what_the_figures_say() -> None:
    assert SEVEN_B.describe()["parameters"] == 6_738_415_616
    assert SEVEN_B.bytes > 12e9 and SEVEN_B.shards >= 4


def test_child_tells_what_it_took() -> None:
    cost = run_child("costs:resident", {"field": "VmRSS"})
    assert 0 < cost.imports <= cost.peak
    assert 0 < cost.seconds < cost.wall
    assert abs(cost.result - cost.peak) < 10e6
    assert cost.read < 10_000 and cost.written == 0


def test_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)costs:resident ended with 1.*StopIteration"):
        run_child("costs:resident", {"field": "NoSuchField"})


def test_child_is_held_to_its_limit() -> None:
    with memory_limit(64 * 2**20) as limit:
        if limit.folder is None:
            pytest.skip(limit.kind)
        assert 0 < run_child("costs:hoard", {"size": 2**20}, limit=limit).limited <= 64 * 2**20
        with pytest.raises(RuntimeError, match="out of memory"):
            run_child("costs:hoard", {"size": 2**27}, limit=limit)
    assert not limit.folder.exists()


def test_cold_files_are_read_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(2**20))
    cold([path])
    assert read_seconds([path]) > 0


@given(
    power=st.floats(-1, 3),
    factor=st.floats(1e-3, 1e3),
    sizes=st.lists(st.integers(1, 10_000), min_size=3, unique=True).map(sorted),
)
def test_exponent_of_a_power_law_is_its_power(power: float, factor: float, sizes: list[int]) -> None:
    found = exponents(sizes, [factor * size**power for size in sizes])
    assert found["exponent"] == pytest.approx(power, abs=0.011)
    assert found["exponents between neighbours"] == pytest.approx([power] * (len(sizes) - 1), abs=0.011)
    assert found["bends at"] is None


def test_exponents_bend_where_a_constant_gives_way() -> None:
    sizes = [2**power for power in range(8)]
    found = exponents(sizes, [max(1, size / 16) for size in sizes])
    assert found["bends at"] == 16
    assert found["exponents between neighbours"] == [0, 0, 0, 0, 1, 1, 1]


def test_rows_of_measured_figures() -> None:
    speed = pruned_speed.main(TINY, prompt=8, new=2, rounds=1)
    assert speed["dropped"][0]["prefill over ideal"] == [1, 1, 1]
    assert [row["blocks"] for row in speed["dropped"]] == [0, 1, 2, 2, 3, 4]
    grown = scaling.main(
        1, {kind: [Size(2, 64, 1, 8), Size(4, 128, 2, 16)] for kind in scaling.SIZES}, Size(4, 64, 1, 8)
    )
    shown = table.render(
        [
            {"benchmark": name, "figures": found, **ABOUT}
            for name, found in (("pruned-speed", speed), ("scaling", grown))
        ]
    )
    assert shown.count("\n|") == 1 + 2 + 5
    assert shown.count("10 % to 50 % of blocks dropped") == 2
    assert shown.endswith("Measured on: a processor, 2 threads; torch 2.13.0, transformers 5.23.0.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streamed_measure", "streamed_surgery", "range_download"])
def test_streaming_benchmarks_run(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    figures = json.loads(json.dumps(module.main(TINY, scratch=tmp_path, **SHORT.get(name, {}))))
    assert not list(tmp_path.iterdir())
    shown = table.render([{"benchmark": name.replace("_", "-"), "figures": figures, **ABOUT}])
    assert len(shown.splitlines()) > 5


@pytest.mark.slow
def test_search_benchmark_runs() -> None:
    figures = json.loads(json.dumps(searching.main(small=True)))
    for found in figures["tree"].values():
        assert found["largest difference of scores"] < 1e-5
        assert found["forwards"][0] < found["forwards"][1]
    for found in (figures["greedy kl, 4 of 12"], figures["greedy kl, 8 of 32"]):
        assert found["forwards"] <= found["forwards, promised at most"] < found["forwards without a tree"]


@pytest.mark.slow
def test_benchmark_of_healing_runs() -> None:
    figures = json.loads(json.dumps(healing.main(small=True)))
    for rows in figures["last third"].values():
        for row in rows.values():
            assert 1 < row["ideal by operations"] < 5 / 3
            assert row["bytes on disk"] >= figures["tokens a pass"] * figures["bytes a stored token"]
    for row in figures["last third, KL to the original in memory"].values():
        assert row["ideal by operations"] > 1 and row["bytes on disk"] == 0
    shown = table.render([{"benchmark": "healing", "figures": figures, **ABOUT}])
    assert shown.count("\n|") == 1 + 1 + 1 + 1


@pytest.mark.slow
def test_benchmark_of_observers_runs() -> None:
    figures = json.loads(json.dumps(observers.main(small=True)))
    names = {"angular", "cosine", "cka", "block_influence", "relative_magnitude", "sublayer_cosine", "entropy"}
    assert names <= figures["each alone"].keys()
    for found in (*figures["each alone"].values(), figures["all at once"]):
        assert found["time over a bare walk (median of pairs)"] > 0 <= found["memory above it, bytes"]


@pytest.mark.slow
def test_the_gpu_s_benchmark_runs_without_one(tmp_path: Path) -> None:
    """What needs no GPU of it: the figures of its memory are missing."""
    figures = gpu.main(TINY, sequences=6, length=32, batch=2, steps=2, device="cpu", scratch=tmp_path)
    assert figures["resident"]["memory"]["peak"] is None
    assert figures["healing"]["tokens"] == 2 * 2 * 32
    assert figures["streamed"]["weights moved (GB/s)"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_of_a_gpu(tmp_path: Path) -> None:
    figures = gpu.main(TINY, sequences=6, length=32, batch=2, steps=2, scratch=tmp_path)
    assert table.render([{"benchmark": "gpu", "figures": figures, **ABOUT}]).count("\n|") == 5


def test_results_that_are_kept_name_their_machine() -> None:
    for result in table.load():
        assert result["hardware"] and result["versions"]["torch"]
        assert table.render([result]).count("\n|") > 1


@pytest.mark.skipif("<!-- benchmarks -->" not in README.read_text(encoding="utf-8"), reason="README shows no results")
def test_readme_shows_the_results() -> None:
    found = re.search(
        r"<!-- benchmarks -->\n(.*?)\n<!-- /benchmarks -->", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None, "expected the table between <!-- benchmarks --> and <!-- /benchmarks -->"
    assert found[1].strip() == table.render(table.load()), "make it anew: python -m tests.benchmarks.table"
