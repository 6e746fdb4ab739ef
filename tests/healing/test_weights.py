"""Weights trained themselves: which ones a target means, and that nothing else changes, to the bit."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hf_prune.architecture import decoder_of
from hf_prune.architecture.ends import ending_of
from hf_prune.errors import ConfigError
from hf_prune.healing import heal, held_out_loss
from hf_prune.healing.budget import Throughput
from hf_prune.healing.choice import choose
from hf_prune.healing.origin import Origin
from hf_prune.healing.trainer import last_checkpoint
from hf_prune.healing.weights import Weights
from hf_prune.units import Unit

from ..tiny import every_type, tiny_model, tokens
from .support import SETTINGS, pruned_checkpoint, settings, split_text

FLOAT32 = Throughput(flops=1e12, dtype="float32")
GAPS = Origin(kept=(0, 1, 4, 5), depth=7)
"""Four blocks of seven: a gap behind block 1, and one at the end."""
PLAIN: dict[str, Any] = {"rank": None, "alpha": None, "dropout": None, "learning_rate": 0.003}


@pytest.fixture(autouse=True)
def one_thread(fixed_speed: None) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chosen(model: Any, target: str, origin: Origin | None = None, **changes: Any) -> Weights:
    decoder = decoder_of(model, "tiny")
    found = choose(decoder, settings(target=target, **changes), origin or Origin(tuple(range(decoder.num_layers)), 8))
    assert isinstance(found, Weights)
    return found


def of_blocks(model: Any, *positions: int) -> set[str]:
    prefixes = tuple(decoder_of(model).block_prefix(at) for at in positions)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def go(folder: Path, run: Path, target: str, origin: Origin | None = None, **changes: Any) -> Any:
    config = settings(target=target, **PLAIN | changes)
    return heal(folder, *split_text(), config, run_folder=run, base_model="o/b", progress=False, origin=origin)


def final_state(run: Path) -> dict[str, torch.Tensor]:
    found = last_checkpoint(run / "checkpoints")
    assert found is not None
    return load_file(found / "trained.safetensors")


@pytest.mark.parametrize("model_type", every_type())
def test_what_comes_behind_the_blocks_is_what_runs_there(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder, behind = decoder_of(model), set[str]()
    inside = {id(module) for module in decoder.blocks.modules()}

    def note(name: str, module: nn.Module) -> Any:
        return lambda *_: behind.update(f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False))

    def start(*_: Any) -> None:
        for name, module in model.named_modules():
            if id(module) not in inside:
                module.register_forward_hook(note(name, module))

    decoder.blocks[-1].register_forward_hook(start)
    with torch.no_grad():
        model(input_ids=tokens(1, 4))
    ending, head = ending_of(decoder), model.get_output_embeddings()
    (prefix,) = (name for name, module in model.named_modules() if module is head)
    of_head = {f"{prefix}.{leaf}" for leaf, _ in head.named_parameters()}
    assert set(ending.norm) == behind - of_head
    assert ending.tied == (head.weight is model.get_input_embeddings().weight)
    assert set(ending.head) == (of_head - {f"{prefix}.weight"} if ending.tied else of_head)


def test_a_map_behind_the_last_norm_of_a_sliced_model_belongs_to_the_end() -> None:
    ending = ending_of(decoder_of(tiny_model("shortcut_llama", 2)))
    assert ending.norm == ("model.norm.weight", "model.norm.map.weight")


def test_last() -> None:
    model = tiny_model("llama")
    found = chosen(model, "last")
    assert set(found.names) == of_blocks(model, 5, 6, 7) | {"model.norm.weight", "lm_head.weight"}
    assert (found.lowest, found.warning) == (5, None)
    assert chosen(model, "last", last_blocks=1).lowest == 7
    assert chosen(tiny_model("llama", 2), "last").lowest == 0
    assert chosen(tiny_model("phi"), "last", last_blocks=1).names[-2:] == ("lm_head.weight", "lm_head.bias")
    with pytest.raises(ConfigError, match=r"last_blocks=9, and 'tiny' has 8 blocks"):
        chosen(model, "last", last_blocks=9)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gemma"])
def test_a_tied_head_stays_and_that_is_told(model_type: str) -> None:
    model = tiny_model(model_type)
    found, everything = chosen(model, "last", last_blocks=2), chosen(model, "full")
    assert set(found.names) == of_blocks(model, 6, 7) | set(ending_of(decoder_of(model)).norm)
    assert found.lowest == 6
    assert "is its table of embeddings" in str(found.warning)
    assert len(everything.names) == len(list(model.named_parameters()))
    assert everything.lowest == 0
    assert "one table" in str(everything.warning)
    assert "tiny" not in f"{found.warning}{everything.warning}"  # cards repeat both: no folder's name


@pytest.mark.parametrize(
    ("kept", "depth", "positions"),
    [
        ((0, 1, 4, 5), 6, (1, 2)),
        ((0, 1, 4, 5), 7, (1, 2, 3)),  # the end has no block behind it
        ((2, 3, 4, 5), 6, (0,)),  # nor the start one before it
        ((0, 2, 4, 5), 6, (0, 1, 2)),
        ((3,), 6, (0,)),
    ],
)
def test_seam(kept: tuple[int, ...], depth: int, positions: tuple[int, ...]) -> None:
    model = tiny_model("llama", len(kept))
    found = chosen(model, "seam", Origin(kept, depth))
    assert set(found.names) == of_blocks(model, *positions)
    assert found.lowest == min(positions)


def test_refusals_say_what_to_take() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match=r"target='seam'.*all of its 8 blocks.*Take target 'mlp'"):
        chosen(model, "seam")
    with pytest.raises(ConfigError, match=r"target='replaced'.*'streamline', 'merge'.*Take target 'seam'"):
        chosen(model, "replaced")
    with pytest.raises(ConfigError, match=r"target='patch'.*'linear_patch', 'emulate' or 'nbl'.*Take target 'seam'"):
        chosen(model, "patch")
    silent = tuple(Unit(7, part) for part in ("attention", "mlp"))
    left = chosen(model, "replaced", Origin(tuple(range(8)), 8, silent=silent, replaced=(7,)))
    assert left.names == tuple(f"model.layers.7.{n}_layernorm.weight" for n in ("input", "post_attention"))


@pytest.mark.parametrize("target", ["full", "seam", "last", "replaced"])
def test_silenced_parts_are_left_out(target: str) -> None:
    model = tiny_model("llama", 4)
    origin = Origin((0, 1, 2, 3), 5, silent=(Unit(3, "attention"), Unit(1, "mlp")), replaced=(3,))
    names = chosen(model, target, origin).names
    assert not [n for n in names if n.startswith(("model.layers.3.self_attn.", "model.layers.1.mlp."))]
    assert "model.layers.3.mlp.up_proj.weight" in names


def test_what_no_gradient_reaches_by_design_is_no_trained_weight() -> None:
    assert not [name for name in chosen(tiny_model("afmoe"), "full").names if "expert_bias" in name]


@pytest.mark.parametrize(
    ("target", "model_type", "positions", "rest", "dtype"),
    [
        ("seam", "llama", (1, 2, 3), (), "bfloat16"),
        ("last", "llama", (3,), ("model.norm.weight", "lm_head.weight"), "float32"),
        ("last", "gpt2", (3,), ("transformer.ln_f.weight", "transformer.ln_f.bias"), "bfloat16"),
        ("seam", "gpt2", (1, 2, 3), (), "float32"),
        ("last", "qwen3", (3,), ("model.norm.weight", "lm_head.weight"), "bfloat16"),
        ("seam", "qwen3", (1, 2, 3), (), "float32"),
        ("seam", "opt", (1, 2, 3), (), "bfloat16"),
        ("seam", "opt", (1, 2, 3), (), "float32"),
        ("last", "gemma", (3,), ("model.norm.weight",), "bfloat16"),
        ("seam", "gemma", (1, 2, 3), (), "float32"),
    ],
)
def test_only_what_is_trained_changes(
    target: str,
    model_type: str,
    positions: tuple[int, ...],
    rest: tuple[str, ...],
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that multiplies bfloat16, and on one that computes in float32."""
    monkeypatch.setattr("hf_prune.healing.job.probe", lambda *_: Throughput(1e12, dtype))
    folder = pruned_checkpoint(tmp_path / "pruned", model_type, 4)
    last_blocks = 1 if target == "last" else None
    result = go(folder, tmp_path / "run", target, GAPS, steps=2, last_blocks=last_blocks)
    before = AutoModelForCausalLM.from_pretrained(folder)
    trained = of_blocks(before, *positions) | set(rest)
    state, weights = final_state(tmp_path / "run"), dict(before.named_parameters())
    assert set(state) == trained == set(result.record.target_modules)
    assert result.record.trained_parameters == sum(weights[name].numel() for name in trained)
    for name, tensor in result.model.named_parameters():
        assert tensor.dtype == torch.bfloat16
        if name in trained:
            assert state[name].dtype == torch.float32
            assert not torch.equal(state[name], weights[name].float()), name
            assert torch.equal(tensor, state[name].to(torch.bfloat16)), name  # cast once
        else:
            assert torch.equal(tensor, weights[name]), name
    losses = result.record.held_out
    assert losses.merged == held_out_loss(result.model, split_text()[1], batch_size=2)
    before.float().load_state_dict(state, strict=False)
    assert losses.adapter == held_out_loss(before, split_text()[1], batch_size=2)  # what casting alone has cost
    assert result.record.kind == "weights"
    assert result.adapter is None


def test_everything(tmp_path: Path) -> None:
    folder = pruned_checkpoint(tmp_path / "pruned", depth=2)
    result = go(folder, tmp_path / "run", "full", quantize="auto")
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert [name for name, tensor in result.model.state_dict().items() if torch.equal(tensor, before[name])] == []
    losses = result.record.held_out
    assert losses.merged < losses.pruned - 0.1
    assert result.record.quantization is None  # nothing is left to quantize
    with pytest.raises(ConfigError, match=r"quantize='nf4'.*target 'full' trains every linear map of the 2 blocks"):
        go(folder, tmp_path / "nf4", "full", quantize="nf4")


def test_every_tensor_keeps_its_dtype() -> None:
    model = tiny_model("llama", 2).to(torch.bfloat16)
    model.model.norm.float()
    found = chosen(model, "last", last_blocks=1)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    state = {name: torch.full(model.get_parameter(name).shape, 0.1) for name in found.names}
    found.merge(model, SETTINGS, state)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == dtypes
    assert torch.equal(model.model.norm.weight, state["model.norm.weight"])
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"].bfloat16())


def test_frozen_weights_take_no_room_and_a_state_is_a_copy() -> None:
    model = tiny_model("llama", 3).to(torch.bfloat16)
    found = chosen(model, "last", last_blocks=1)
    begun = found.begin(model, SETTINGS)
    for name, parameter in begun.named_parameters():
        assert parameter.requires_grad == (name in found.names)
        assert parameter.dtype == (torch.float32 if name in found.names else torch.bfloat16)
    state = found.state(begun)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        begun.lm_head.weight.zero_()
    assert torch.equal(state["lm_head.weight"], kept["lm_head.weight"])
    found.restore(begun, state)
    assert torch.equal(begun.lm_head.weight, kept["lm_head.weight"])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "opt", "gemma"])
def test_measured_where_bfloat16_is_fast(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be slow in bfloat16, and then computes in float32; weights that are trained are so already."""
    monkeypatch.setattr("hf_prune.precision.faster_dtype", lambda _device, dtype: dtype)
    model = tiny_model(model_type, 3).to(torch.bfloat16)
    held_out = split_text()[1]
    before = held_out_loss(model, held_out)
    begun = chosen(model, "last", last_blocks=1).begin(model, SETTINGS)
    assert held_out_loss(begun, held_out) == pytest.approx(before, abs=0.05)


def test_an_adapter_of_what_trains_none_is_refused_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_prune.healing.checkpoint.load", lambda *_, **__: pytest.fail("loaded"))
    folder = pruned_checkpoint(tmp_path / "pruned")
    with pytest.raises(ConfigError, match=r"output='adapter', and target 'seam' trains weights.*Take output 'merged'"):
        go(folder, tmp_path / "run", "seam", Origin((0, 1), 3), output="adapter")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_beside_frozen_weights_in_four_bits(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real bitsandbytes: what is frozen is packed, what is trained and the head are whole."""
    import bitsandbytes as bnb

    from hf_prune.healing import training

    packed: dict[str, Any] = {}
    loop = training._loop

    def look(job: Any, model: Any, *args: Any) -> Any:
        packed.update({n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)})
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        return loop(job, model, *args)

    monkeypatch.setattr(training, "_loop", look)
    folder = pruned_checkpoint(tmp_path / "pruned", model_type, 4)
    result = go(folder, tmp_path / "run", "last", last_blocks=2, quantize="nf4", learning_rate=0.01)
    before = AutoModelForCausalLM.from_pretrained(folder)
    linears = {n for n, m in before.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "lm_head" not in n}
    kept = {name.rpartition(".")[0] for name in of_blocks(before, 2, 3)}
    assert set(packed) == linears - kept
    assert packed
    losses = result.record.held_out
    assert result.record.quantization == "nf4 (double quantized)"
    assert losses.quantized != losses.pruned
    assert losses.adapter_quantized < losses.quantized - 0.1
    trained = set(result.record.target_modules)
    for name, tensor in result.model.named_parameters():
        assert torch.equal(tensor, before.get_parameter(name)) != (name in trained), name


@pytest.mark.parametrize("target", ["seam", pytest.param("full", marks=pytest.mark.slow)])
def test_going_on_ends_with_the_same_tensors(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    folder = pruned_checkpoint(tmp_path / "pruned", depth=4)
    whole = go(folder, tmp_path / "whole", target, GAPS, steps=8)
    step, counted = Trainer.training_step, itertools.count()

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(counted) == 11:  # two micro-batches a step: in the sixth step, behind the checkpoint of the fourth
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            go(folder, tmp_path / "run", target, GAPS, steps=8)
    found = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and found.name == "checkpoint-4"
    again = go(folder, tmp_path / "run", target, GAPS, steps=8)
    one, two = final_state(tmp_path / "whole"), final_state(tmp_path / "run")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert again.record.held_out == whole.record.held_out
