"""One block trained for several."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.fitting import streamline as module
from hf_prune.fitting.seams import split
from hf_prune.fitting.streamline import streamline
from hf_prune.samples import batches

from ..making import logits
from ..tiny import every_type, tiny_model, tokens
from .support import apart, cut, fitted, silence, states, task_of, texts

TEXT = texts(20)
QUICK = {"epochs": 3, "learning_rate": 2e-3, "final_learning_rate": 1e-3}


def errors(note: str) -> tuple[float, float]:
    found = re.search(r"is ([\d.e+-]+) on held-out text, ([\d.e+-]+) before", note)
    assert found is not None
    return float(found[1]), float(found[2])


def test_the_error_goes_down_and_is_that_behind_the_blocks(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = fitted(model, (3, 4), "streamline", tmp_path, TEXT, **{**QUICK, "epochs": 12})
    after, before = errors(plan.fits[0])
    assert [op.kind for op in plan.operations] == ["replace", "drop"] and plan.operations[0].layers == (2,)
    assert after < 0.95 * before
    made = cut(model, plan)
    total = torch.zeros(2, dtype=torch.float64)
    count = 0
    for ids in split(TEXT, 0.2, "")[1]:
        wanted, plain = states(model, ids[None])[5], states(model, ids[None])[3]
        kept: list[torch.Tensor] = []
        handle = decoder_of(made).blocks[2].register_forward_hook(lambda _m, _a, out: kept.append(out))  # noqa: B023
        logits(made, ids[None])
        handle.remove()
        total += torch.stack([(found - wanted).double().square().sum() for found in (kept[0], plain)])
        count += wanted.numel()
    assert (total / count).tolist() == pytest.approx([after, before], rel=1e-3)


def test_more_training_gets_closer(tmp_path: Path) -> None:
    model = tiny_model("llama")
    found = [
        errors(fitted(model, (3,), "streamline", tmp_path, TEXT, **{**QUICK, "epochs": epochs}).fits[0])
        for epochs in (1, 8)
    ]
    assert found[1][0] < found[0][0] < found[0][1] == found[1][1]


def test_blocks_that_do_nothing_are_dropped_alone(tmp_path: Path) -> None:
    model = tiny_model("llama")
    silence(model, (3, 4))
    plan = fitted(model, (3, 4), "streamline", tmp_path, TEXT, **QUICK)
    assert errors(plan.fits[0]) == (0, 0) and "NOT used" in plan.fits[0] and plan.only_drops
    assert torch.equal(logits(cut(model, plan), tokens()), logits(model, tokens()))


def test_no_other_weight_is_touched(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    plan = fitted(model, (2, 5, 6), "streamline", tmp_path, TEXT, **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    made = cut(model, plan).state_dict()
    changed = set()
    for name, tensor in made.items():
        number = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        origin = name if number is None else name.replace(f".{number}.", f".{plan.kept[number]}.")
        if not torch.equal(tensor, before[origin]):
            changed.add(None if number is None else plan.kept[number])
    assert changed == {1, 4} and plan.operations[0].layers == (1, 4)


def test_pads_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    one = streamline(task_of(model, (3,), TEXT), **QUICK)  # type: ignore[arg-type]
    monkeypatch.setattr("hf_prune.fitting.seams.batches", functools.partial(batches, pad_id=7))
    two = streamline(task_of(model, (3,), TEXT), **QUICK)  # type: ignore[arg-type]
    assert one.tensors and one.notes == two.notes
    assert all(apart(two.tensors[name], tensor) < 1e-4 for name, tensor in one.tensors.items())


def test_half_precision_is_trained_in_float32(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    plan = fitted(model, (3, 4), "streamline", tmp_path, TEXT, **QUICK)
    after, before = errors(plan.fits[0])
    assert after < before
    made = cut(model, plan)
    assert made.dtype == torch.bfloat16 and torch.isfinite(logits(made, tokens())).all()


@pytest.mark.parametrize("model_type", every_type())
def test_every_family(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    plan = fitted(model, (3, 4), "streamline", tmp_path, TEXT[:10], epochs=2)
    after, before = errors(plan.fits[0])
    assert 0 < after < 1.01 * before
    assert plan.only_drops == ("NOT used" in plan.fits[0]) == (after >= before)
    assert torch.isfinite(logits(cut(model, plan), tokens())).all()


def test_the_error_is_that_of_the_rounded_block(tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    # Steps that half precision swallows for the most part.
    small = {"epochs": 6, "learning_rate": 3e-5, "final_learning_rate": 3e-5}
    plan = fitted(model, (3, 4), "streamline", tmp_path, TEXT, **small)
    task = task_of(model, (3, 4), TEXT)
    seen = module._states(task, task.windows()[0], split(TEXT, 0.2, ""))[1]
    found = module._error(copy.deepcopy(decoder_of(cut(model, plan)).blocks[2]).float(), seen)
    assert errors(plan.fits[0])[0] == float(f"{found:.4g}")


def test_refusals() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match=r"layers \[0\] of .* have none before them"):
        streamline(task_of(model, (0, 3), TEXT))
    with pytest.raises(ConfigError, match="there is none"):
        streamline(task_of(model, (3,)))
    for options in ({"epochs": 0}, {"learning_rate": 1e-5}, {"final_learning_rate": 0.0}):
        with pytest.raises(ConfigError, match="expected at least 1, and rates above 0"):
            streamline(task_of(model, (3,), TEXT), **options)  # type: ignore[arg-type]
    decoder_of(model).blocks[3].mlp.down_proj.weight.data.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises(MeasureError, match="in front of block 3 or behind block 3 .* are not finite"):
        streamline(task_of(model, (3,), TEXT))
