"""Linear maps in the place of attention: exact where attention is linear, chosen by correlation, shipped with code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hf_prune import PrunerConfig
from hf_prune.architecture import FAMILIES, decoder_of
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError
from hf_prune.fitting.nbl import nbl
from hf_prune.fitting.task import Task
from hf_prune.joint_moments import JointMoments, best_map, correlations, left_over
from hf_prune.patching.modeling import PATCHABLE
from hf_prune.records import Plan
from hf_prune.run import run
from hf_prune.runner import Walker
from hf_prune.samples import Batch
from hf_prune.surgery.linearize import linearize
from hf_prune.verify import verify
from tests.cli.support import fast, planted, recipe
from tests.making import logits
from tests.tiny import DEPTH, tiny_model, tokens

WIDTH = 32
CALIBRATION = {"samples": 64, "max_length": 32, "batch_size": 8}


class Linear(nn.Module):
    """An attention that is a linear map of what it reads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.o_proj = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """As attention answers."""
        return self.o_proj(hidden_states), None


def planted_model(layers: tuple[int, ...], model_type: str = "llama") -> Any:
    """A tiny model in which attention, with its norm, is linear in some blocks."""
    model: Any = tiny_model(model_type)
    for layer in layers:
        model.model.layers[layer].self_attn = Linear(layer)
        model.model.layers[layer].input_layernorm = nn.Identity()
    return model


def text(count: int = 80, length: int = 16) -> list[torch.Tensor]:
    return list(tokens(count, length, seed=3))


def importances(model: Any, sequences: list[torch.Tensor], size: int = 8) -> tuple[float | None, ...]:
    from hf_prune.measures.linearity import linearity

    seen = linearity()
    made = [torch.stack(sequences[i : i + size]) for i in range(0, len(sequences), size)]
    Walker(decoder_of(model)).walk([Batch(ids, torch.ones_like(ids)) for ids in made], [seen])
    return seen.result()["importances"]["attention"]


def moments(x: torch.Tensor, y: torch.Tensor) -> JointMoments:
    found = JointMoments.zeros(x.shape[1])
    for rows in range(0, len(x), 7):
        found.add(x[rows : rows + 7], y[rows : rows + 7])
    return found


def test_the_map_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    y = x @ torch.randn(6, 6, dtype=torch.float64) - 2 + torch.randn(300, 6, dtype=torch.float64)
    weight, bias = best_map(moments(x, y))
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(300, 1, dtype=x.dtype)], 1), y).solution
    torch.testing.assert_close(weight, wanted[:-1].T)
    torch.testing.assert_close(bias, wanted[-1])
    rest = (y - x @ weight.T - bias).square().sum() / y.square().sum()
    assert left_over(moments(x, y), weight, bias) == pytest.approx(rest.item(), rel=1e-9)
    assert left_over(moments(x, y), torch.zeros_like(weight), torch.zeros_like(bias)) == pytest.approx(1)


def test_correlations_by_whitening() -> None:
    torch.manual_seed(1)
    x, noise = torch.randn(500, 4, dtype=torch.float64), torch.randn(500, 4, dtype=torch.float64)
    y = torch.stack([x[:, 0] * 3 + 1, x[:, 1] + noise[:, 1], noise[:, 2], x[:, 0] - 2], 1)  # of rank three
    found = correlations(moments(x, y))
    x_basis, y_basis = (torch.linalg.svd(s - s.mean(0), full_matrices=False)[0] for s in (x, y))
    wanted = torch.linalg.svdvals(y_basis[:, :3].T @ x_basis)
    assert len(found) == 3 and found[0] == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_attention_that_is_linear_scores_zero_and_others_do_not() -> None:
    found = importances(planted_model((1, 4)), text())
    assert all(found[i] == pytest.approx(0, abs=1e-6) for i in (1, 4))
    assert min(f for i, f in enumerate(found) if f is not None and i not in (1, 4)) > 1e-2
    again = importances(planted_model((1, 4)), text(), size=20)
    assert again == pytest.approx(found, abs=1e-7)


@pytest.mark.parametrize("model_type", [t for family in FAMILIES for t in family.model_types][::4])
def test_every_family_is_measured_or_has_no_figure(model_type: str) -> None:
    found = importances(tiny_model(model_type), text(40, 8), size=20)
    assert len(found) == DEPTH
    assert all(figure is None or 0 <= figure <= WIDTH for figure in found)
    assert any(figure is not None for figure in found) or model_type == "mamba"


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(MeasureError, match="32 channels over 32 tokens, .* expected more tokens than channels"):
        importances(tiny_model("llama"), text(4, 8))
    task = Task(decoder_of(tiny_model("llama")), (1,), text(20, 8))
    with pytest.raises(ConfigError, match="surgery 'nbl' fits a map of 32 x 32 numbers to 128 tokens"):
        nbl(task)
    with pytest.raises(ArchitectureError, match="there for llama"):
        nbl(Task(decoder_of(tiny_model("gpt2")), (1,), text()))
    with pytest.raises(ArchitectureError, match="attention of all 8 blocks"):
        nbl(Task(decoder_of(tiny_model("llama")), tuple(range(DEPTH)), text()))


@pytest.mark.parametrize("model_type", PATCHABLE)
def test_a_linear_attention_is_found_exactly(model_type: str, tmp_path: Path) -> None:
    layers = (0, 2, 5)
    model = planted_model(layers, model_type)
    made = nbl(Task(decoder_of(model), layers, text()))
    assert [op.kind for op in made.operations] == ["linearize"] and len(made.notes) == 3
    assert all("gets 0.0% of the square" in note for note in made.notes)
    for number, layer in enumerate(layers):
        own = model.model.layers[layer].self_attn.o_proj
        torch.testing.assert_close(made.tensors[f"{number}.weight"], own.weight, rtol=0, atol=1e-4)
        torch.testing.assert_close(made.tensors[f"{number}.bias"], own.bias, rtol=0, atol=1e-4)
    save_file(made.tensors, tmp_path / Plan.FITTED)
    patched = tiny_model(model_type)
    linearize(decoder_of(patched), layers, file=str(tmp_path / Plan.FITTED))
    torch.testing.assert_close(logits(patched, tokens()), logits(model, tokens()), rtol=0, atol=1e-2)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = patched.generate(tokens(), **settings)
    assert torch.equal(cached, patched.generate(tokens(), use_cache=False, **settings))
    patched.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded, tokens()), logits(patched, tokens()))
    with pytest.raises(ArchitectureError, match=r"blocks \[2\] .* have no attention any more"):
        linearize(decoder_of(patched), (2, 3), file=str(tmp_path / Plan.FITTED))
    with pytest.raises(ConfigError, match="does not hold the maps of 1 attentions of width 32"):
        linearize(decoder_of(tiny_model(model_type)), (1,), file=str(tmp_path / Plan.FITTED))


def test_what_it_leaves_over_is_that_of_the_model_that_is_made() -> None:
    model, sequences = tiny_model("llama"), text()
    made = nbl(Task(decoder_of(model), (3,), sequences))
    before: list[torch.Tensor] = []
    behind: list[torch.Tensor] = []
    block = model.model.layers[3]
    handles = [
        block.register_forward_pre_hook(lambda _m, args: before.append(args[0])),
        block.self_attn.register_forward_hook(lambda _m, _a, out: behind.append(out[0])),
    ]
    logits(model, torch.stack(sequences[-16:]))
    for handle in handles:
        handle.remove()
    guess = before[0] @ made.tensors["0.weight"].T + made.tensors["0.bias"]
    rest = ((behind[0] - guess).square().sum() / behind[0].square().sum()).item()
    assert f"gets {rest:.1%} of the square" in made.notes[0]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fast(monkeypatch)
    yield


@pytest.mark.parametrize("heal", [False, True], ids=["pruned", "healed"])
def test_from_recipe_to_verified_folder(tmp_path: Path, quickly: None, heal: bool) -> None:
    base, folder = planted(tmp_path / "base", (0, 3), depth=5), tmp_path / "out"
    config = recipe(method="nbl", drop_layers=2, calibration=CALIBRATION)
    run(base, config, folder, heal=heal, progress=False)
    plan = Plan.load(folder / "pruning" / "plan.json")
    assert [op.kind for op in plan.operations] == ["linearize"] and plan.operations[0].layers == (0, 3)
    written = json.loads((folder / "config.json").read_text())
    assert written["model_type"] == "patched_llama" and written["linear_attention"] == [0, 3]
    card = (folder / "README.md").read_text()
    for part in ("replaced by linear maps", "on held-out text it gets", "trust_remote_code=True", "`patched_llama`"):
        assert part in card, part
    assert "silenced" not in card and "are taken out" not in card
    found = verify(folder, original=base)
    assert found.passed, found.table()
    assert {check.name: check.status for check in found.checks}["fitted tensors"] == "shown"
    if not heal:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.map.weight"][0, 0] = float("nan")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        spoilt = verify(folder, original=base, evaluations="none")
        assert "fitted tensors" in {check.name for check in spoilt.checks if check.status == "fail"}


def test_recipes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="stands in for the attention of blocks; unit='mlp' .* unit 'attention'"):
        PrunerConfig(method="nbl", drop_layers=2, unit="mlp")
    with pytest.raises(ConfigError, match="stands in for the attention of blocks; unit='block'"):
        PrunerConfig(method="uidl", drop_layers=2, surgery="nbl")
    assert PrunerConfig(method="blockpruner", drop_layers=2, surgery="nbl", unit="attention").ships_code
