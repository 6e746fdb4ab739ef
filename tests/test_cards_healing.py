"""What cards and reports tell of a healing: what was trained against what, and how much of the loss came back."""

import dataclasses
import io
import re

import pytest
from matplotlib.image import imread

from hf_prune import card_healing, card_tables
from hf_prune.cards import generate
from hf_prune.cli.running import _healed
from hf_prune.errors import MeasureError
from hf_prune.pictures import RECOVERY_FILE, pictures
from hf_prune.records import Completion, CurvePoint, Healing, HeldOutLoss
from hf_prune.recovery import recovery, regained
from tests.test_cards import (
    HOSTILE,
    body,
    check_card,
    config,
    evaluation,
    full,
    healing,
    model,
    plan,
    tables_of,
    text_use,
)

# Pruned at 4.1, original at 3.6: half a nat was lost.
CURVE = (
    CurvePoint(0, 0, 0.0, 4.1, 0.8),
    CurvePoint(10, 1_000, 2e12, 3.85, 0.4),
    CurvePoint(20, 2_000, 4e12, 3.7, 0.2),
    CurvePoint(30, 3_000, 6e12, 3.725, 0.24),
)


def healed(**changes) -> Healing:
    """Adapters on unquantized weights, the best ones of step 20 taken."""
    record = healing(
        quantization=None,
        steps=30,
        tokens=3_000,
        held_out=HeldOutLoss(4.1, None, None, 3.7, 3.71, 3.6, 16_384),
        curve=CURVE,
        best_step=20,
    )
    return dataclasses.replace(record, **changes)


def quantized(**changes) -> Healing:
    curve = tuple(dataclasses.replace(p, loss=p.loss + 0.05) for p in CURVE)
    losses = HeldOutLoss(4.1, 4.15, 3.75, 3.7, 3.71, 3.6, 16_384)
    return healed(**{"quantization": "nf4 (double quantized)", "held_out": losses, "curve": curve, **changes})


def weights(**changes) -> Healing:
    names = tuple(f"model.layers.{i}.mlp.{part}.weight" for i in (7, 8) for part in "abcdefgh")
    return healed(**{"kind": "weights", "target_modules": (*names, "lm_head.weight"), **changes})


def section(record: Healing, **changes) -> str:
    found = body(full(healing=record, **changes))
    return found.partition("## Healing\n")[2].partition("\n## ")[0]


# The figures.


def test_shares_of_the_loss_and_of_the_divergence() -> None:
    found = recovery(healed())
    assert [r.loss for r in found] == pytest.approx([0, 0.5, 0.8, 0.75])
    assert [r.kl for r in found] == pytest.approx([0, 0.5, 0.75, 0.7])
    assert [r.point for r in found] == list(CURVE)


def test_a_quantized_start_lies_below_zero() -> None:
    assert [r.loss for r in recovery(quantized())] == pytest.approx([-0.1, 0.4, 0.7, 0.65])


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": (), "best_step": None},
        {"curve": CURVE[:1], "best_step": None},
        {"held_out": HeldOutLoss(4.1, None, None, 3.7, 3.71, None, 9)},
        {"held_out": HeldOutLoss(4.1, None, None, 3.7, 3.71, 4.1, 9)},
        {"held_out": HeldOutLoss(4.1, None, None, 3.7, 3.71, 4.2, 9)},
    ],
    ids=["no curve", "one point", "original unknown", "nothing lost", "pruning helped"],
)
def test_no_curve_without_what_it_rests_on(changes) -> None:
    record = healed(**changes)
    assert recovery(record) == ()
    text = section(record)
    assert "egained" not in text and RECOVERY_FILE not in text
    assert RECOVERY_FILE not in pictures(plan(), None, record, None)


def test_a_divergence_that_was_never_measured_or_never_there() -> None:
    without = tuple(dataclasses.replace(p, kl=None) for p in CURVE)
    assert [r.kl for r in recovery(healed(curve=without))] == [None] * 4
    assert "KL" not in section(healed(curve=without))
    equal = (dataclasses.replace(CURVE[0], kl=0.0), *CURVE[1:])
    assert [r.kl for r in recovery(healed(curve=equal))] == [None] * 4
    gap = (*CURVE[:2], dataclasses.replace(CURVE[2], kl=None), CURVE[3])
    assert [r.kl for r in recovery(healed(curve=gap))] == [0, 0.5, None, pytest.approx(0.7)]
    assert "not measured" in section(healed(curve=gap))


def test_share_of_what_is_shipped() -> None:
    assert regained(healed(), 3.85) == pytest.approx(0.5)
    told = card_healing.outcome(healed())["held-out loss"]
    assert told == "4.1000 → 3.7100 nats per token (78.0% of the loss regained; original 3.6000)"
    adapter = card_healing.outcome(healed(output="adapter"))["held-out loss"]
    assert adapter.startswith("4.1000 → 3.7000 nats per token (80.0% of")
    unknown = healed(held_out=HeldOutLoss(4.1, None, None, 3.7, 3.71, None, 9))
    assert card_healing.outcome(unknown)["held-out loss"] == "4.1000 → 3.7100 nats per token"


def test_report_tells_what_the_models_write() -> None:
    def writing(label: str, *tokens: int):
        return model(label, completions=(Completion("The", "…", tokens),))

    models = (writing("original", 1, 2, 3, 4, 5), writing("pruned", *[7] * 5), model("healed"))
    found = _healed(healed(stopped="3 measurements without a gain"), evaluation(*models))
    assert found == {
        "healing tokens": 3_000,
        "healing seconds": 125,
        "held-out loss": "4.1000 → 3.7100 nats per token (78.0% of the loss regained; original 3.6000)",
        "repeated 4-grams in completions": "original 0.0%, pruned 50.0%",
        "healing stopped": "3 measurements without a gain",
    }
    assert _healed(healed(), None)["repeated 4-grams in completions"] is None


# The card.


def test_table_of_the_recovery() -> None:
    rows = next(rows for rows in tables_of(section(healed())) if rows[0][0] == "step")
    assert rows == [
        ["step", "tokens", "FLOPs", "held-out loss", "loss regained", "KL", "KL regained"],
        ["0", "0", "0", "4.100", "0.0%", "0.8000", "0.0%"],
        ["10", "1,000", "2e+12", "3.850", "50.0%", "0.4000", "50.0%"],
        ["20", "2,000", "4e+12", "3.700", "80.0%", "0.2000", "75.0%"],
        ["30", "3,000", "6e+12", "3.725", "75.0%", "0.2400", "70.0%"],
    ]
    assert "The weights after step 20 were taken" in section(healed())
    assert "quantized" not in section(healed()).partition("| step")[2].partition("Settings:")[0]
    assert "the first row is the quantized pruned model" in section(quantized())


def test_a_long_curve_is_thinned_out_and_keeps_its_ends_and_the_best_point() -> None:
    points = tuple(CurvePoint(i, 100 * i, 1e9 * i, 4.1 - i / 100) for i in range(41))
    record = healed(curve=points, best_step=39, steps=40, tokens=4_000)
    rows = next(rows for rows in tables_of(section(record)) if rows[0][0] == "step")
    assert [int(row[0]) for row in rows[1:]] == [0, 7, 13, 20, 27, 33, 39, 40]
    assert "holds all 41 points" in section(record)


def test_picture_of_the_recovery() -> None:
    picture = pictures(plan(), None, healed(), None)[RECOVERY_FILE]
    assert picture.alt == (
        "Curve: share of the held-out loss lost by pruning that healing has won back, from 0.0% to 75.0% at 3,000 "
        "training tokens; of the divergence from the original 70.0%."
    )
    png = picture.draw()
    assert imread(io.BytesIO(png), format="png").shape[1] == 840 and png == picture.draw()
    assert png != pictures(plan(), None, healed(best_step=10), None)[RECOVERY_FILE].draw()
    assert picture.draw("svg").startswith(b"<svg")
    unpaid = tuple(dataclasses.replace(p, flops=0.0) for p in CURVE)
    assert pictures(plan(), None, healed(curve=unpaid), None)[RECOVERY_FILE].draw() != png
    shown = section(healed(), pictures=True)
    assert shown.count(f"](./{RECOVERY_FILE})") == 1 and "75.0%" in shown
    check_card(full(healing=healed(), pictures=True))


def test_trained_weights_are_not_called_adapters() -> None:
    card = body(full(healing=weights()))
    assert "then healed by training weights themselves. Made with" in card
    text = section(weights())
    assert "adapter" not in text.lower() and "LoRA" not in text
    assert "trained in float32: `model.layers.*.mlp.a.weight (2)`, " in text and text.count("(2)`") == 8
    stations = next(rows for rows in tables_of(text) if rows[0][0] == "station")
    assert stations[1:] == [
        ["original", "3.600"],
        ["pruned", "4.100"],
        ["healed: trained weights, uncast", "3.700"],
        ["healed: trained weights, cast", "3.710"],
    ]
    assert "Casting the weights lost 4.0% of what healing had gained." in text


def test_many_names_are_folded_and_few_are_not() -> None:
    assert card_healing.folded(["a.1.b", "a.2.b"]) == ["a.1.b", "a.2.b"]
    assert card_healing.folded([f"a.{i}.b" for i in range(20)] + ["head"]) == ["a.*.b (20)", "head"]
    strangers = card_healing.folded([f"name{i}" for i in range(500)])
    assert len(strangers) == card_healing.MOST_NAMES + 1 and strangers[-1] == "488 more"


def test_loss_teacher_reuse_and_early_stop() -> None:
    settings = healing().settings | {
        "loss": "next_token=1,kl=0.5", "temperature": 2.0, "top_k": 64, "teacher": "stored", "use_dora": True,
    }  # fmt: skip
    text = section(
        healed(
            settings=settings,
            reused="the frozen prefix of 6 blocks was computed once for both models, 31% of the arithmetic",
            stopped="3 measurements without a gain",
        )
    )
    assert (
        "Trained against `next_token=1,kl=0.5` at temperature 2 over the original's 64 likeliest tokens; the original "
        "was run once, its predictions kept on disk. The frozen prefix of 6 blocks was computed once for both models, "
        "31% of the arithmetic. 3 measurements without a gain. The weights after step 20 were taken" in text
    )
    assert "Last training loss: 3.510 (weighted sum of the terms)." in text
    assert "DoRA adapters (not quantized)" in text
    assert "QDoRA adapters" in section(quantized(settings=settings))


def test_chat_self_distillation_and_packing() -> None:
    def told(answers=None, **changes) -> str:
        record = healed(settings=healing().settings | changes, data=text_use(answers=answers))
        return re.search(r"^Training text: (.*)$", section(record), re.MULTILINE)[1]

    assert "answers" not in told() and "row" not in told()
    assert told("dataset").endswith("; the answers in it alone were learned, not the prompts.")
    assert told("original").endswith("the original model gave answers of its own, which alone were learned.")
    assert told(packing=True).endswith("; short texts shared a row without seeing one another.")


def test_old_records_read_as_before() -> None:
    old = {key: value for key, value in healing().to_dict().items()}
    for name in ("kind", "curve", "best_step", "stopped", "reused"):
        old.pop(name)
    assert str(full(healing=Healing.from_dict(old))) == str(full(healing=healing()))
    text = section(healing())
    assert text.startswith("\nQLoRA adapters (nf4 (double quantized)) on `gate_proj`, `up_proj`, `down_proj`: 123,456")
    assert "Trained against" not in text and "were taken" not in text


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("kind", ["adapters", "weights"])
def test_strangers_texts_stay_texts(value: str, kind: str) -> None:
    settings = {"loss": value, "temperature": value, "top_k": value, "teacher": value, "packing": value}
    record = healed(
        kind=kind, settings=settings, stopped=value, reused=value, target_modules=(value,), quantization=value or None
    )
    check_card(generate(config(), plan(), healing=record, evaluation=evaluation()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["loss", "flops", "kl"])
def test_figures_that_mean_nothing_are_refused(field: str, bad: float) -> None:
    curve = (*CURVE[:-1], dataclasses.replace(CURVE[-1], **{field: bad}))
    with pytest.raises(MeasureError, match="finite"):
        full(healing=healed(curve=curve))


def test_a_share_that_rounds_to_nothing_has_no_minus() -> None:
    assert [card_tables.percent(share) for share in (-0.0004, 0.0, -0.012)] == ["0.0%", "0.0%", "-1.2%"]
