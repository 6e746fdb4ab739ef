"""Records of healing that cannot be true, or speak of another model than the one beside them."""

import dataclasses
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.healing.adapter import add_adapter
from hf_prune.healing.choice import choose
from hf_prune.healing.origin import Origin
from hf_prune.healing.targets import find_targets
from hf_prune.records import Healing, HeldOutLoss
from hf_prune.serial import to_dict
from hf_prune.soundness_healing import check_healing_record, curve_problems, taken
from hf_prune.verify_checks import Check
from hf_prune.verify_healing import check_healing
from hf_prune.verify_weights import _healed
from tests.healing.support import settings
from tests.test_cards import body, full
from tests.test_cards_healing import CURVE, healed, quantized
from tests.tiny import tiny_model


def changed(index: int, **changes) -> Healing:
    points = list(CURVE)
    points[index] = dataclasses.replace(points[index], **changes)
    return healed(curve=tuple(points))


# The curve.


@pytest.mark.parametrize("record", [healed(), quantized(), healed(curve=(), best_step=None)])
def test_what_can_be_true(record: Healing) -> None:
    check_healing_record(record)
    assert curve_problems(record) == []


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (changed(0, step=1), "begins at step 1, not with the untrained model"),
        (changed(2, step=10), "step 10 of its curve follows step 10"),
        (changed(2, tokens=999), "from 1000 tokens at step 10 to 999 at step 20"),
        (changed(2, flops=1e12), r"from 2e\+12 flops at step 10 to 1e\+12 at step 20"),
        (changed(1, kl=-0.1), "at step 10 is below zero"),
        (changed(1, loss=-0.1), "at step 10 is below zero"),
        (healed(steps=29), "its curve ends at step 30, and the healing at 29"),
        (healed(tokens=2_999), "its curve ends at tokens 3,000, and the healing at 2,999"),
        (healed(best_step=31), "took the weights of step 31 of 30"),
        (healed(best_step=15), "took the weights of step 15, which its curve does not have"),
    ],
)
def test_curves_that_nobody_measured(record: Healing, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_healing_record(record)
    assert len(curve_problems(record)) >= 1
    with pytest.raises(ConfigError, match="contradicts itself"):
        full(healing=record)


def test_figures_that_are_no_numbers() -> None:
    with pytest.raises(MeasureError, match="'flops' of the healing record's curve at step 30 is nan"):
        check_healing_record(changed(3, flops=float("nan")))


def test_rounding_below_zero_passes() -> None:
    check_healing_record(changed(1, kl=-1e-6))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (healed(held_out=HeldOutLoss(4.2, None, None, 3.7, 3.71, 3.6, 9)), "untrained model is 4.1000 on its curve"),
        (
            healed(held_out=HeldOutLoss(4.1, None, None, 3.6, 3.6, 3.6, 9)),
            r"weights taken is 3.7000 .*step 20.*3.6000",
        ),
        (quantized(held_out=HeldOutLoss(4.1, 4.3, 3.75, 3.7, 3.7, 3.6, 9)), "untrained model is 4.1500 .* 4.3000"),
        (quantized(held_out=HeldOutLoss(4.1, 4.15, 3.6, 3.7, 3.7, 3.6, 9)), "weights taken is 3.7500 .* 3.6000"),
        (
            healed(best_step=10, held_out=HeldOutLoss(4.1, None, None, 3.85, 3.85, 3.6, 9)),
            "took step 10 as the best by loss, and its curve is lower at step 20",
        ),
        (
            healed(
                best_step=30, settings={"stop_on": "kl"}, held_out=HeldOutLoss(4.1, None, None, 3.73, 3.73, 3.6, 9)
            ),
            "took step 30 as the best by kl, and its curve is lower at step 20",
        ),
    ],
)
def test_curves_that_the_stations_contradict(record: Healing, reason: str) -> None:
    check_healing_record(record)  # a card of it is written: only a verification looks so closely
    assert len(problems := curve_problems(record)) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(problems[0])
    assert body(full(healing=record))


def test_last_weights_need_no_point_of_their_own() -> None:
    early = healed(best_step=None, curve=CURVE[:3], held_out=HeldOutLoss(4.1, None, None, 3.0, 3.0, 2.9, 9))
    assert taken(early) is None and curve_problems(early) == []
    assert taken(healed(best_step=None)) == CURVE[3]


def test_the_untrained_model_is_never_the_better_choice() -> None:
    worse = tuple(dataclasses.replace(p, loss=p.loss + 1) for p in CURVE[1:])
    record = healed(curve=(CURVE[0], *worse), held_out=HeldOutLoss(4.1, None, None, 4.7, 4.7, 3.6, 9))
    assert curve_problems(record) == []


# What was trained.


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", 4)


ORIGIN = Origin(kept=(0, 1, 4, 5), depth=6)


def record_of(model: PreTrainedModel, **changes) -> Healing:
    """The record that a healing with these settings would leave, curve and losses aside."""
    config = settings(**changes)
    decoder = decoder_of(model)
    chosen = choose(decoder, config, ORIGIN)
    shapes = dict(model.named_parameters())
    if chosen.kind == "weights":
        count = sum(shapes[name].numel() for name in chosen.names)
    else:
        copy = tiny_model("llama", 4)
        adapted = add_adapter(copy, config, find_targets(decoder_of(copy), config.target))
        count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return healed(kind=chosen.kind, settings=to_dict(config), target_modules=chosen.names, trained_parameters=count)


def check(model: PreTrainedModel, record: Healing) -> Check:
    return check_healing(Path("nowhere"), model, record, ORIGIN)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": "all", "use_dora": True},
        {"target": "all", "last_rank": 8, "use_rslora": True},
        {"target": "q_proj,mlp.up_proj"},
        {"target": "full"},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())) or "mlp",
)
def test_what_was_trained_is_what_the_target_means(model: PreTrainedModel, changes: dict) -> None:
    record = record_of(model, **changes)
    assert check(model, record).status == "pass", check(model, record).reason
    found = check(model, dataclasses.replace(record, trained_parameters=record.trained_parameters + 1))
    assert found.status == "fail" and f"it says {record.trained_parameters + 1:,}" in found.reason
    found = check(model, dataclasses.replace(record, target_modules=record.target_modules[1:]))
    assert "means" in found.reason and "it says" in found.reason


def test_the_other_kind(model: PreTrainedModel) -> None:
    record = record_of(model, target="full")
    found = check(model, dataclasses.replace(record, kind="adapters"))
    assert found.reason == "target='full' trains weights; it says adapters"
    assert "leave none" in check(model, dataclasses.replace(record, output="adapter")).reason


@pytest.mark.parametrize("target", [None, 3, [], "", "everything", "q_proj,", {"a": 1}])
def test_targets_that_mean_nothing(model: PreTrainedModel, target: object) -> None:
    record = record_of(model)
    assert check(model, dataclasses.replace(record, settings=record.settings | {"target": target})).status == "fail"


@pytest.mark.parametrize("setting", [{"rank": 0}, {"rank": "8"}, {"last_rank": 1}, {"use_rslora": "yes"}])
def test_ranks_that_mean_nothing(model: PreTrainedModel, setting: dict) -> None:
    record = record_of(model)
    assert check(model, dataclasses.replace(record, settings=record.settings | setting)).status == "fail"


def test_a_curve_that_cannot_be_fails_the_record(model: PreTrainedModel) -> None:
    record = record_of(model)
    backwards = dataclasses.replace(CURVE[1], tokens=5_000)
    assert (
        "goes from 5000 tokens"
        in check(model, dataclasses.replace(record, curve=(CURVE[0], backwards, *CURVE[2:]))).reason
    )
    apart = dataclasses.replace(record, held_out=HeldOutLoss(5.1, None, None, 3.7, 3.71, 3.6, 9))
    assert "among its stations" in check(model, apart).reason


def test_names_of_tensors_that_were_trained(model: PreTrainedModel) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    record = healed(kind="weights", target_modules=(name,))
    stored = list(model.state_dict())
    pattern = _healed(record, decoder_of(model), "layers", stored)
    assert [found for found in stored if pattern.search(found)] == [name]
