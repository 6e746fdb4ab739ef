"""What the log of a run says, and what it does not say."""

import pytest

from hf_prune.healing.curve import curve_of, exploded, overfit, training_loss
from hf_prune.records import CurvePoint


def history(held_out, training, every=10, logs=2):
    """A run that is measured at step 0 and each `every` steps, with `logs` logs of one training loss between."""
    found = [{"step": 0, "eval_loss": held_out[0], "num_input_tokens_seen": 0, "total_flos": 0.0}]
    for number, (loss, train) in enumerate(zip(held_out[1:], training, strict=True), 1):
        last = number * every
        found += [{"step": last - every + every * n // logs, "loss": train} for n in range(1, logs + 1)]
        found.append({"step": last, "eval_loss": loss, "num_input_tokens_seen": 100 * last, "total_flos": 5.0 * last})
    return found


def test_the_curve_has_the_untrained_model_first():
    run = history([3.0, 2.5, 2.0], [2.9, 2.4])
    run[-1]["eval_kl"] = 0.5
    assert curve_of(run) == (
        CurvePoint(0, 0, 0.0, 3.0),
        CurvePoint(10, 1000, 50.0, 2.5),
        CurvePoint(20, 2000, 100.0, 2.0, 0.5),
    )
    assert curve_of([]) == ()


def test_the_training_loss_since_the_measurement_before_is_weighted_by_steps():
    run = [
        {"step": 0, "eval_loss": 3.0},
        {"step": 2, "loss": 4.0},
        {"step": 6, "loss": 1.0},
        {"step": 6, "eval_loss": 2.0},
        {"step": 7, "loss": 5.0},
    ]
    assert training_loss(run, 6) == pytest.approx((2 * 4.0 + 4 * 1.0) / 6)
    assert training_loss(run, 7) == 5.0
    assert training_loss(run, 0) is None


def test_over_fitting_is_told_with_step_and_figures():
    run = history([3.0, 2.0, 2.01, 2.5], [2.8, 1.9, 1.5])
    note = overfit(run, 30)
    assert "from 2.0000 at step 10 to 2.5000 at step 30" in note
    assert "from 2.8000 to 1.5000" in note
    assert "healing.patience" in note
    assert overfit(run, 10) is None  # the best weights were taken
    assert overfit(run, 20) is None  # half a per cent is noise


@pytest.mark.parametrize(
    ("held_out", "training"),
    [([3.0, 2.5, 2.2, 2.1], [2.8, 2.4, 2.3]), ([3.0, 2.0, 2.2, 2.5], [2.0, 2.1, 2.4]), ([3.0, 2.0], [2.0])],
    ids=["still falling", "both rise", "one measurement"],
)
def test_no_over_fitting(held_out, training):
    assert overfit(history(held_out, training), 10 * len(training)) is None


def test_over_fitting_from_the_first_measurement_on():
    assert "from 3.0000 at step 0" in overfit(history([3.0, 3.2, 3.5], [2.8, 1.5]), 20)


def test_a_run_that_diverges():
    reason = exploded(history([3.0, 2.9, 5.0, 6.0, 7.0], [3.0, 5.0, 6.0, 8.0]))
    assert "7.0000 nats per token, 3.0000 before training" in reason
    assert "from 3.0000 to 8.0000" in reason


@pytest.mark.parametrize(
    ("held_out", "training"),
    [
        ([3.0, 2.5, 2.2, 2.1, 2.0], [2.8, 2.4, 2.3, 2.2]),
        ([3.0, 3.5, 5.0, 6.0, 7.0], [2.0, 1.0, 0.1, 0.1]),
        ([3.0, 2.9, 2.8, 5.0, 6.0], [3.0, 3.0, 6.0, 7.0]),
        ([3.0, 2.9, 5.0, 2.9, 5.0, 6.0], [2.9, 6.0, 3.0, 6.0, 7.0]),
        ([3.0, 2.9, 3.6, 3.7, 3.8], [1.0, 9.0, 9.0, 9.0]),
        ([3.0, 2.9, 7.0, 6.0, 5.0], [3.0, 9.0, 8.0, 7.0]),
        ([3.0, 5.0, 6.0], [9.0, 9.0]),
    ],
    ids=["falls", "over-fits", "twice", "not in a row", "held-out hardly moves", "recovers", "too early to tell"],
)
def test_runs_that_go_on(held_out, training):
    run = history(held_out, training)
    assert exploded(run) is None
