"""Taylor estimates and magnitudes of weights."""

import math
from typing import Any

import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.architecture.sublayers import part_modules
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.measure import measure_model
from hf_prune.registry import measure
from hf_prune.samples import Batch, Samples, batches

from ..making import TEXT, reference
from ..tiny import DEPTH, every_type, tiny_model, tokens

SEQUENCES = [tokens(1, 12)[0], tokens(1, 9, seed=1)[0], tokens(1, 5, seed=2)[0]]


def found(name: str, model: Any, sequences: Any = SEQUENCES, batch_size: int = 2, **options: Any) -> dict[str, Any]:
    """What a measure says of each part."""
    given: list[Batch] = list(batches(sequences, batch_size))
    result: dict[str, Any] = measure.get(name).function(**options)(decoder_of(model), given)
    return result


def loss(model: Any) -> torch.Tensor:
    """Mean loss over all predicted tokens of the text."""
    rows = [
        torch.nn.functional.cross_entropy(
            model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="sum"
        )
        for ids in SEQUENCES
    ]
    return torch.stack(rows).sum() / sum(len(ids) - 1 for ids in SEQUENCES)


def zero(block: Any) -> None:
    """Let a Llama block write nothing."""
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()


def test_taylor_is_the_loss_that_weights_one_by_one_take_with_them() -> None:
    model = tiny_model("gpt2", 2, n_embd=8, n_inner=4, n_head=2).double()  # Llama's norms compute in float32
    importances = found("taylor", model)["importances"]
    step, expected = 1e-5, 0.0
    with torch.no_grad():
        for weight in model.transformer.h[1].mlp.parameters():
            flat = weight.view(-1)
            for i, value in enumerate(flat.tolist()):
                ends = []
                for scale in (1 - step, 1 + step):  # d/dε of L with w -> (1 - ε) w
                    flat[i] = scale * value
                    ends.append(float(loss(model)))
                flat[i] = value
                expected += abs(ends[1] - ends[0]) / (2 * step)
    assert importances["mlp"][1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model_type", every_type())
def test_taylor_of_every_family_is_autograd_s(model_type: str) -> None:
    model, reference = tiny_model(model_type), tiny_model(model_type)
    importances = found("taylor", model)["importances"]
    loss(reference).backward()
    decoder = decoder_of(reference)
    for layer, block in enumerate(decoder.blocks):
        for part, values in importances.items():
            modules = [block] if part == "block" else list(part_modules(block, part).values())
            if not modules:
                assert values[layer] is None
                continue
            weights = [w for module in modules for w in module.parameters() if w.grad is not None]
            expected = sum(float((w.detach().double() * w.grad.double()).abs().sum()) for w in weights)
            assert values[layer] == pytest.approx(expected, rel=1e-4)


def test_a_block_that_writes_nothing_has_taylor_zero() -> None:
    model = tiny_model("llama", 4)
    zero(model.model.layers[2])
    importances = found("taylor", model)["importances"]
    assert [layer for layer, value in enumerate(importances["block"]) if value == 0] == [2]
    assert importances["attention"][2] == importances["mlp"][2] == 0


def test_norms_count_to_the_block() -> None:
    importances = found("taylor", tiny_model("llama", 3))["importances"]
    for block, attention, mlp in zip(*(importances[part] for part in ("block", "attention", "mlp")), strict=True):
        assert block > attention + mlp


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("over", ["text", "sequences"])
@pytest.mark.parametrize("at_once", [1, 3, None])
def test_neither_batches_nor_passes_matter(batch_size: int, over: str, at_once: int | None) -> None:
    model = tiny_model("llama", 4)
    expected = found("taylor", model, over=over)
    got = found("taylor", model, batch_size=batch_size, over=over, blocks_at_once=at_once)
    assert got["importances"] == expected["importances"]
    passes = {None: 3.0, 3: 1 + 7 / 4 + 1 + 2 / 4, 1: 4 + (4 + 3 + 2 + 1) / 4 + 4 / 4}
    assert got["forwards"] == pytest.approx(passes[at_once])


def test_signs_cancel_over_the_text_and_not_over_sequences() -> None:
    model = tiny_model("llama", 3).double()
    each = [found("taylor", model, [ids])["importances"]["block"] for ids in SEQUENCES]
    weights = torch.tensor([len(ids) - 1.0 for ids in SEQUENCES]).double()
    mean = (torch.tensor(each) * (weights / weights.sum())[:, None]).sum(0)
    over_sequences = found("taylor", model, over="sequences")["importances"]["block"]
    assert over_sequences == pytest.approx(mean.tolist(), rel=1e-6)
    over_text = found("taylor", model)["importances"]["block"]
    assert all(one < several for one, several in zip(over_text, over_sequences, strict=True))


def test_nothing_of_the_model_changes() -> None:
    model = tiny_model("llama", 3).train()
    model.model.layers[1].eval()
    first, *others = model.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found("taylor", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.model.layers[1].training
    assert not first.requires_grad and all(weight.requires_grad for weight in others)
    assert torch.equal(others[0].grad, torch.ones_like(others[0]))
    assert all(weight.grad is None for weight in others[1:])
    assert all(not weight._post_accumulate_grad_hooks for weight in model.parameters())


def test_only_gradients_of_the_blocks_at_hand_are_ever_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, most = tiny_model("llama", 4), []
    taken = torch.Tensor.backward

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        most.append(sum(weight.requires_grad for weight in model.parameters()))
        taken(self, *args, **kwargs)
        assert all(weight.grad is None for weight in model.parameters())

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    found("taylor", model, blocks_at_once=1)
    assert most == [len(list(model.model.layers[0].parameters()))] * (4 * len(SEQUENCES))


def test_half_precision_is_added_up_in_more() -> None:
    model = tiny_model("llama", 3)
    expected = found("taylor", model)["importances"]["block"]
    half = found("taylor", model.to(torch.bfloat16))["importances"]["block"]
    assert half == pytest.approx(expected, rel=0.1)


def test_gradients_that_are_nan_name_the_layer() -> None:
    model = tiny_model("llama", 3)
    model.model.layers[1].mlp.down_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(MeasureError, match=r"'mlp\.down_proj\.weight' in block 1 .* NaN or infinite"):
        found("taylor", model)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_loss_that_is_nan_is_told() -> None:
    model = tiny_model("llama", 3)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(MeasureError, match="loss of .* on calibration sequence 0 is nan"):
        found("taylor", model)


@pytest.mark.parametrize("name", ["taylor", "magnitude"])
def test_quantized_weights_are_refused_before_any_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 3)
    codes = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    model.model.layers[1].mlp.down_proj.weight = codes
    monkeypatch.setattr(type(model), "forward", lambda *_args, **_kwargs: pytest.fail("ran"))
    with pytest.raises(ConfigError, match="quantized"):
        found(name, model)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("taylor", {"over": "batches"}, "over='batches'"),
        ("taylor", {"blocks_at_once": 0}, "blocks_at_once=0"),
        ("magnitude", {"p": 3}, "p=3"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        measure.get(name).function(**options)


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_norm_of_the_weights(p: int) -> None:
    model = tiny_model("llama", 3)
    for weight in model.model.layers[1].parameters():
        weight.data.mul_(3)
    result = found("magnitude", model, (), p=p)
    for part, values in result["importances"].items():
        for layer, block in enumerate(model.model.layers):
            modules = {"block": block, "attention": block.self_attn, "mlp": block.mlp}
            module = modules[part]
            weights = torch.cat([w.detach().double().reshape(-1) for w in module.parameters()])
            assert values[layer] == pytest.approx(float(torch.linalg.vector_norm(weights, p) ** p), rel=1e-6)
    assert result["forwards"] == 0


def test_magnitude_of_a_block_without_parts_is_none() -> None:
    importances = found("magnitude", tiny_model("mamba", 3), ())["importances"]
    assert set(importances) == {"block"} or None in importances.get("mlp", (None,))


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_more_passes_than_are_allowed_are_refused_before_the_first(at_once: int | None) -> None:
    decoder = decoder_of(tiny_model("llama"))
    given = {"model": reference(DEPTH), "name": "taylor", "options": {"blocks_at_once": at_once}}
    made = measure_model(decoder, Samples(tuple(SEQUENCES), TEXT), **given)
    needed = math.ceil(made.forwards or 0)
    assert needed == {None: 3, 1: 14, 3: 6}[at_once]
    assert measure_model(decoder, Samples(tuple(SEQUENCES), TEXT), max_forwards=needed, **given).importances
    runs: list[int] = []
    decoder.blocks[0].register_forward_hook(lambda *_: runs.append(0))
    with pytest.raises(
        ConfigError, match=f"measure 'taylor' of '.*' takes up to {needed} forwards .* allows {needed - 1}"
    ):
        measure_model(decoder, Samples(tuple(SEQUENCES), TEXT), max_forwards=needed - 1, **given)
    assert not runs
