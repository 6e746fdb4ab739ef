"""Maps of the stream in the place of blocks: exact where blocks are linear, solved for, shipped with code."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig
from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.fitting.stream import emulate, hadamard, linear_patch
from hf_prune.fitting.task import Fitted, Task
from hf_prune.records import ModelRef, Operation, Plan
from hf_prune.run import run
from hf_prune.surgery import apply_plan
from hf_prune.surgery.patch import patch
from hf_prune.verify import verify
from tests.cli.support import fast, planted, recipe
from tests.making import logits
from tests.tiny import DEPTH, tiny_model, tokens

WIDTH = 32
CALIBRATION = {"samples": 64, "max_length": 32, "batch_size": 8}
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class Adds(nn.Module):
    """A block that adds W h + b to the stream."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """As a block answers."""
        return hidden_states + hidden_states @ self.weight.T + self.bias


def text(count: int = 80, length: int = 16) -> list[torch.Tensor]:
    return list(tokens(count, length, seed=3))


def planted_model(rank: int, layer: int = 3) -> Any:
    """A tiny model in which one block adds a map of this rank."""
    model: Any = tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    left, right, bias = (torch.randn(*shape, generator=generator) / 4 for shape in ((32, rank), (rank, 32), (32,)))
    model.model.layers[layer] = Adds(left @ right, bias)
    return model


def dropped_with(made: Fitted, folder: Path, model_type: str = "llama") -> Any:
    """The plan of a fit, carried out on the tiny model."""
    save_file({name: t.contiguous() for name, t in made.tensors.items()}, folder / Plan.FITTED)
    operations = tuple(
        Operation(op.kind, op.layers, op.options | ({"file": Plan.FITTED} if op.reads_fitted else {}))
        for op in made.operations
    )
    plan = Plan(ModelRef("org/model", None, model_type, DEPTH, "d" * 64), "m", "p", operations, "why").at(folder)
    model = tiny_model(model_type)
    apply_plan(decoder_of(model), plan)
    return model


@pytest.mark.parametrize("rank", [0, 3, None])
def test_what_a_block_adds_is_found_exactly(rank: int | None, tmp_path: Path) -> None:
    model = planted_model(WIDTH if rank is None else rank)
    made = emulate(Task(decoder_of(model), (3,), text()), rank=rank)
    assert [(op.kind, op.layers) for op in made.operations] == [("drop", (3,)), ("patch", (2,))]
    assert "it gets 0.0% of the square" in made.notes[0]
    found = dropped_with(made, tmp_path)
    assert found.config.num_hidden_layers == DEPTH - 1
    torch.testing.assert_close(logits(found, tokens()), logits(model, tokens()), rtol=0, atol=1e-2)
    assert torch.equal(found.generate(tokens(), **GREEDY), found.generate(tokens(), use_cache=False, **GREEDY))
    found.save_pretrained(tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded.eval(), tokens()), logits(found, tokens()))


def states(model: Any, window: tuple[int, int], sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, length, width) float64 in front of blocks and behind them."""
    found: list[torch.Tensor] = []
    blocks = model.model.layers
    handles = [
        blocks[window[0]].register_forward_pre_hook(lambda _m, args: found.append(args[0].double())),
        blocks[window[1] - 1].register_forward_hook(lambda _m, _a, out: found.append(out.double())),
    ]
    logits(model, torch.stack(sequences))
    for handle in handles:
        handle.remove()
    return found[0], found[1]


def test_a_map_of_low_rank_is_the_best_one() -> None:
    model, sequences = tiny_model("llama"), text()
    made = emulate(Task(decoder_of(model), (3, 4), sequences), rank=4)
    before, behind = states(model, (3, 5), sequences[:64])
    x, d = before.flatten(0, 1), (behind - before).flatten(0, 1)
    weight = (made.tensors["0.up.weight"] @ made.tensors["0.down.weight"]).double()
    error = (d - x @ weight.T - made.tensors["0.up.bias"]).square().sum()
    # By the projection of the full fit, whose own error is what no map avoids.
    x, d = x - x.mean(0), d - d.mean(0)
    full = x @ torch.linalg.lstsq(x, d).solution
    values = torch.linalg.svdvals(full)
    assert error.item() == pytest.approx(((d - full).square().sum() + values[4:].square().sum()).item(), rel=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 12, 32, 80])
def test_the_basis_is_orthogonal_and_even(width: int) -> None:
    basis = hadamard(width)
    torch.testing.assert_close(basis @ basis.T, torch.eye(width, dtype=torch.float64))
    assert basis.abs().max() <= math.sqrt(2 / width) + 1e-9


def test_the_patch_is_that_of_the_formula() -> None:
    model, sequences = tiny_model("llama"), text()
    made = linear_patch(Task(decoder_of(model), (3, 4), sequences, batch_size=5))
    before, behind = states(model, (3, 5), sequences[:64])
    basis = hadamard(WIDTH)
    factors = ((behind @ basis).abs().mean(1) / (before @ basis).abs().mean(1)).mean(0)
    wanted = basis @ torch.diag(factors) @ basis.T - torch.eye(WIDTH, dtype=torch.float64)
    if made.tensors:
        torch.testing.assert_close(made.tensors["0.up.weight"].double(), wanted, rtol=0, atol=1e-4)
    else:
        assert "NOT used" in made.notes[0]
    model.model.layers[3] = Adds(0.5 * torch.eye(WIDTH), torch.zeros(WIDTH))
    made = linear_patch(Task(decoder_of(model), (3,), sequences))
    torch.testing.assert_close(made.tensors["0.up.weight"], 0.5 * torch.eye(WIDTH), rtol=0, atol=1e-5)


def test_several_windows_and_padding(tmp_path: Path) -> None:
    model: Any = planted_model(2, 2)
    model.model.layers[5] = planted_model(1, 5).model.layers[5]
    sequences = [row[: 16 - i % 5] for i, row in enumerate(text(100))]
    made = emulate(Task(decoder_of(model), (2, 5), sequences), rank=2)
    assert made.operations[1].layers == (1, 4)
    found = dropped_with(made, tmp_path)
    assert found.config.stream_patches == [1, 3]
    torch.testing.assert_close(logits(found, tokens()), logits(model, tokens()), rtol=0, atol=1e-2)


def test_refusals() -> None:
    decoder = decoder_of(tiny_model("llama"))
    with pytest.raises(ConfigError, match="rank=32; expected a whole number from 0 to 31"):
        emulate(Task(decoder, (3,), text()), rank=32)
    with pytest.raises(ConfigError, match="layers .0. of .* have none before them"):
        emulate(Task(decoder, (0,), text()))
    with pytest.raises(ConfigError, match="surgery 'emulate' fits a map of 32 x 32 numbers to 128 tokens"):
        emulate(Task(decoder, (3,), text(20, 8)), rank=2)
    with pytest.raises(ArchitectureError, match="there for llama"):
        linear_patch(Task(decoder_of(tiny_model("gpt2")), (3,), text()))
    with pytest.raises(ConfigError, match="there is no file of fitted tensors"):
        patch(decoder, (3,), file="nowhere")
    with pytest.raises(ConfigError, match="stands in for whole blocks; unit='attention'"):
        PrunerConfig(method="linearpatch", drop_layers=2, unit="attention")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fast(monkeypatch)
    yield


@pytest.mark.parametrize(
    ("method", "options", "heal"),
    [("linearpatch", {}, False), ("emulated-updates", {}, True), ("emulated-updates", {"rank": 4}, False)],
)
def test_from_recipe_to_verified_folder(
    method: str, options: dict[str, Any], heal: bool, tmp_path: Path, quickly: None
) -> None:
    base, folder = planted(tmp_path / "base", (), depth=5), tmp_path / "out"
    config = recipe(method=method, drop_layers=2, calibration=CALIBRATION, surgery_kwargs=options)
    run(base, config, folder, heal=heal, progress=False)
    plan = Plan.load(folder / "pruning" / "plan.json")
    written = json.loads((folder / "config.json").read_text())
    card = (folder / "README.md").read_text()
    found = verify(folder, original=base)
    assert found.passed, found.table()
    if len(plan.operations) == 2:
        assert [op.kind for op in plan.operations] == ["drop", "patch"]
        assert written["model_type"] == "patched_llama" and len(written["stream_patches"]) == 1
        assert "trust_remote_code=True" in card and "Maps of the stream" in card
    else:
        assert written["model_type"] == "llama" and "NOT used" in card


@pytest.mark.parametrize(
    ("method", "options"), [("nbl", {}), pytest.param("emulated-updates", {"rank": 4}, marks=pytest.mark.slow)]
)
def test_the_code_in_the_folder_is_enough(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Saving loads the folder in a process that knows nothing of this package, and compares."""
    base = planted(tmp_path / "base", (), depth=5)
    config = recipe(method=method, drop_layers=2, calibration=CALIBRATION, surgery_kwargs=options)
    pruner = Pruner.from_pretrained(base, config, device_map="cpu", progress=False)
    folder = pruner.save_pretrained(tmp_path / "out")
    assert pruner.plan().ships_code and (folder / "patched.py").is_file()
    assert Pruner.from_pruned(folder, original=base).finished().plan == pruner.plan().at(folder / "pruning")
    assert "trust_remote_code=True` in a process of its own" in (folder / "README.md").read_text()
