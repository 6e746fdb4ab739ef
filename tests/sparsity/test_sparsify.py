"""Sparsity on tiny models: norms of inputs, what becomes zero, masks in memory and file to file."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError
from hf_prune.records import Operation, Plan
from hf_prune.runner import Walker
from hf_prune.samples import batches, by_length
from hf_prune.sparsity.maps import LinearMap, linear_maps
from hf_prune.sparsity.masks import packed
from hf_prune.sparsity.norms import InputNorms
from hf_prune.sparsity.scores import wanda
from hf_prune.surgery import apply_plan

from ..making import base_folder, logits
from ..test_streamed_surgery import assert_same, plan_of, tensors_of
from ..tiny import DEPTH, every_type, tiny_model
from .support import METHODS, SEQUENCES, kept_of, sparse

EXPERTS = {
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "gpt_oss", "granitemoe", "deepseek_v3", "afmoe",
}  # fmt: skip


# ---- linear maps, and what enters them


@pytest.mark.parametrize("model_type", every_type())
def test_norms_are_those_of_the_inputs_without_pads(model_type: str) -> None:
    fixed = model_type in EXPERTS | {"gpt_neo"}
    decoder = decoder_of(tiny_model(model_type, depth=DEPTH if fixed else 2))
    if model_type in EXPERTS:
        with pytest.raises(ArchitectureError, match=r"block \d of '.*' holds its experts in one tensor \(mlp|\(block"):
            linear_maps(decoder)
        return
    maps = linear_maps(decoder)
    assert {each.layer for each in maps} == set(range(decoder.num_layers))
    total = sum(p.numel() for b in decoder.blocks for n, p in b.named_parameters() if p.ndim == 2 and "A_log" not in n)
    assert sum(each.weight.numel() for each in maps) == total
    norms = InputNorms(maps)
    Walker(decoder).walk(batches(by_length(SEQUENCES), 3), [norms])
    # The same without a batch, a pad or a walker.
    sums = {each: torch.zeros(each.matrix.shape[1], dtype=torch.float64) for each in maps}

    def add(each: LinearMap, states: torch.Tensor) -> None:
        sums[each] += states.reshape(-1, states.shape[-1]).double().square().sum(0)

    hooks = [each.module.register_forward_pre_hook(lambda _m, given, each=each: add(each, given[0])) for each in maps]
    for ids in SEQUENCES:
        logits(decoder.model, ids[None])
    for hook in hooks:
        hook.remove()
    for each in maps:
        if "dt_proj" in each.name:  # Mamba uses its weight without calling it
            with pytest.raises(MeasureError, match=r"no inputs of mixer\.dt_proj\.weight of block . were seen"):
                norms.of(each)
            continue
        assert torch.allclose(norms.of(each), sums[each].sqrt(), rtol=2e-5, atol=1e-8), str(each)


def test_norms_do_not_depend_on_batches() -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    maps, found = linear_maps(decoder), []
    for size in (1, 5):
        norms = InputNorms(maps)
        Walker(decoder).walk(batches(by_length(SEQUENCES), size), [norms])
        found.append(norms.result()["norms"])
        assert {int(each[-1]) for each in norms.sums()} == {sum(map(len, SEQUENCES))}
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


def test_maps_that_nothing_enters_are_refused() -> None:
    maps = linear_maps(decoder_of(tiny_model("llama", depth=2)))
    with pytest.raises(MeasureError, match=r"no inputs of self_attn\.q_proj\.weight of block 0 were seen"):
        InputNorms(maps).of(maps[0])
    norms = InputNorms(maps)
    norms.sums()[0][:] = float("nan")
    with pytest.raises(MeasureError, match=r"inputs of self_attn\.q_proj\.weight of block 0 are NaN"):
        norms.of(maps[0])


# ---- which weights become zero


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "falcon"])
def test_wanda_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model(model_type, depth=3))
    sparse("wanda", decoder, tmp_path, inputs="dense")
    masks, maps = kept_of(decoder, tmp_path), linear_maps(decoder)
    norms = InputNorms(maps)
    Walker(decoder).walk(batches(by_length(SEQUENCES), 2), [norms])
    for each in maps:
        scores = wanda(each.matrix, norms.of(each))
        gone = torch.zeros_like(scores, dtype=torch.bool)
        half = scores.shape[1] // 2
        gone.scatter_(1, torch.sort(scores, dim=-1, stable=True)[1][:, :half], True)  # as the released code does
        assert torch.equal(masks[each.layer, each.name], ~gone), str(each)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi"])
def test_wanda_behind_pruned_blocks(model_type: str, tmp_path: Path) -> None:
    """Brute force: prune block after block for good, each time with a fresh pass through the whole model."""
    decoder = decoder_of(tiny_model(model_type, depth=3))
    before = {name: tensor.clone() for name, tensor in decoder.model.state_dict().items()}
    sparse("wanda", decoder, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.model.state_dict().items())
    masks = kept_of(decoder, tmp_path)
    dense = sparse("wanda", decoder, tmp_path, inputs="dense")
    assert dense.fitted and any(not torch.equal(m, masks[k]) for k, m in kept_of(decoder, tmp_path).items())
    maps = linear_maps(decoder)
    for layer in range(3):
        norms = InputNorms(maps)
        Walker(decoder).walk(batches(by_length(SEQUENCES), 2), [norms])
        for each in maps:
            if each.layer == layer:
                scores = wanda(each.matrix, norms.of(each))
                half = scores.shape[1] // 2
                keep = torch.ones_like(scores, dtype=torch.bool)
                keep.scatter_(1, torch.sort(scores, dim=-1, stable=True)[1][:, :half], False)
                assert torch.equal(masks[layer, each.name], keep), str(each)
        with torch.no_grad():
            for each in maps:
                if each.layer == layer:
                    each.weight.masked_fill_(~each.as_matrix(masks[layer, each.name]), 0)


def test_one_input_that_is_loud_saves_its_weights(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    with torch.no_grad():
        for block in decoder.blocks:
            block.input_layernorm.weight[5] = 1e4
            block.self_attn.q_proj.weight[:, 5] = 1e-2  # the smallest of each row, by magnitude
    name = "self_attn.q_proj.weight"
    sparse("wanda", decoder, tmp_path, 0.9)
    assert all(kept_of(decoder, tmp_path)[layer, name][:, 5].all() for layer in range(2))
    sparse("magnitude-sparsity", decoder, tmp_path, 0.9)
    assert not any(kept_of(decoder, tmp_path)[layer, name][:, 5].any() for layer in range(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
def test_share_is_met(method: str, sparsity: float, tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("lfm2", depth=4, full_attn_idxs=[1]))  # layers of different weight
    plan = sparse(method, decoder, tmp_path, sparsity)
    masks = kept_of(decoder, tmp_path)
    total = sum(keep.numel() for keep in masks.values())
    gone = sum(int((~keep).sum()) for keep in masks.values())
    assert sparsity * total - len(masks) <= gone <= sparsity * total + 1e-6
    told = f"Of {total:,} weights of the linear maps of 4 blocks, {gone:,} are zero ({gone / total:.2%}"
    assert plan.fits[0].startswith(told)
    of_layers = [
        sum(int((~keep).sum()) for (at, _), keep in masks.items() if at == layer)
        / sum(keep.numel() for (at, _), keep in masks.items() if at == layer)
        for layer in range(4)
    ]
    assert plan.fits[0].endswith("in %: " + ", ".join(f"{100 * share:.1f}" for share in of_layers) + ".")
    if method in ("owl", "lamp"):
        assert max(of_layers) - min(of_layers) > 0.01
    else:
        assert max(of_layers) - min(of_layers) < 0.01


def test_global_threshold_and_what_it_empties(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    with torch.no_grad():
        decoder.blocks[1].mlp.up_proj.weight.mul_(1e-4)
    plan = sparse("magnitude-sparsity", decoder, tmp_path, allocation="global")
    masks = kept_of(decoder, tmp_path)
    kept = torch.cat([each.matrix[masks[each.layer, each.name]].abs() for each in linear_maps(decoder)])
    gone = torch.cat([each.matrix[~masks[each.layer, each.name]].abs() for each in linear_maps(decoder)])
    assert gone.max() <= kept.min() and len(gone) == len(kept)
    assert plan.fits[1] == "1 linear maps keep no weight at all, such as mlp.up_proj.weight of block 1."
    # LAMP knows no scale of a map: nothing is emptied.
    plan = sparse("lamp", decoder, tmp_path, 0.95)
    assert len(plan.fits) == 1 and all(keep.any() for keep in kept_of(decoder, tmp_path).values())


@pytest.mark.parametrize("method", ["wanda", "magnitude-sparsity"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_pattern_holds(method: str, pattern: str, model_type: str, tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model(model_type, depth=2))
    plan = sparse(method, decoder, tmp_path, pattern=pattern)
    apply_plan(decoder, plan)
    size = int(pattern[-1])
    for each in linear_maps(decoder):
        groups = (each.matrix != 0).reshape(-1, size).sum(1)
        assert (groups == size // 2).all(), str(each)


def test_pattern_needs_widths_that_it_divides(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2, intermediate_size=46))
    with pytest.raises(ConfigError, match=r"pattern='2:4': mlp\.down_proj\.weight of block 0 of '.*' has 46 inputs"):
        sparse("wanda", decoder, tmp_path, pattern="2:4")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    with torch.no_grad():
        decoder.blocks[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(MeasureError, match=r"mlp\.up_proj\.weight of block 1 of '.*' holds NaN"):
        sparse("magnitude-sparsity", decoder, tmp_path)


# ---- the surgery


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "bloom", "mamba"])
def test_masks_in_memory_and_file_to_file(model_type: str, tmp_path: Path) -> None:
    model, _ = base_folder(tmp_path / "base", model_type, depth=3)
    decoder = decoder_of(model)
    plan = sparse("wanda" if model_type != "mamba" else "lamp", decoder, tmp_path)
    fitted = dataclasses.replace(plan, model=plan_of(model_type=model_type, depth=3).model)
    folder = assert_same(tmp_path / "base", fitted, tmp_path)
    masks, cut, base = kept_of(decoder, tmp_path), tensors_of(folder), tensors_of(tmp_path / "base")
    changed = set()
    for each in linear_maps(decoder):
        name = next(n for n in cut if n.endswith(f".{each.layer}.{each.name}"))
        changed.add(name)
        keep = each.as_matrix(masks[each.layer, each.name])
        assert torch.equal(cut[name].view(torch.int32)[keep], base[name].view(torch.int32)[keep])
        assert (cut[name].view(torch.int32)[~keep] == 0).all() and not keep.all()
    assert all(torch.equal(cut[name], base[name]) for name in cut.keys() - changed)


def test_masks_of_casts_and_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that begin within a byte of the mask, and weights that are cast on the way."""
    from hf_prune.surgery import cut_tensors

    model, _ = base_folder(tmp_path / "base", depth=2, intermediate_size=37)
    sparse("magnitude-sparsity", decoder_of(model), tmp_path, 0.4)
    plan = plan_of(Operation("mask", (0, 1), {"file": str(tmp_path / Plan.FITTED)}), depth=2)
    monkeypatch.setattr(cut_tensors, "_CHUNK", 2 * 13)
    assert_same(tmp_path / "base", plan, tmp_path, dtype=torch.bfloat16)


def test_masks_leave_signs_and_odd_numbers_alone(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    weight = decoder.blocks[1].mlp.down_proj.weight
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[0, 0] = keep[2, 7] = False
    with torch.no_grad():
        weight[0, 1], weight[0, 0] = -0.0, -5.0
    save_file({"0.mlp.down_proj.weight": packed(keep)}, tmp_path / "masks.safetensors")
    before = weight.detach().clone()
    plan = plan_of(Operation("mask", (1,), {"file": str(tmp_path / "masks.safetensors")}), depth=2)
    apply_plan(decoder, plan)
    assert torch.equal(weight.view(torch.int32)[keep], before.view(torch.int32)[keep])
    assert weight[~keep].view(torch.int32).tolist() == [0, 0], "positive zeros"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.mlp.down_proj.weight": torch.zeros(3, dtype=torch.uint8)}, r"is torch\.uint8 \[3\]; a mask of the 1536"),
        ({"0.mlp.down_proj.weight": torch.zeros(192)}, r"is torch\.float32 \[192\]; a mask .* torch\.uint8 \[192\]"),
        (
            {"5.mlp.down_proj.weight": torch.zeros(192, dtype=torch.uint8)},
            "expected the number of one of the 2 blocks",
        ),
        ({"0.mlp.nothing.weight": torch.zeros(192, dtype=torch.uint8)}, "has no weight 'mlp.nothing.weight'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    save_file(tensors, tmp_path / "masks.safetensors")
    plan = plan_of(Operation("mask", (0, 1), {"file": str(tmp_path / "masks.safetensors")}), depth=2)
    before = {name: tensor.clone() for name, tensor in decoder.model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        apply_plan(decoder, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.model.state_dict().items())
