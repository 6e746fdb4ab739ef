"""Claimed against measured: where a figure stops passing, by hand-counted distances."""

import dataclasses
import math
from typing import Any

import pytest

from hf_prune.records import Completion, Environment, Evaluation, Fidelity, ModelEvaluation, Perplexity, TaskResult
from hf_prune.verify_checks import Check, Verification
from hf_prune.verify_figures import TOLERANCES, Place, check_figures, place_of
from tests.making import ENVIRONMENT, TEXT, reference

HALF = Environment("a GPU", {"torch": "2.13.0"}, "bfloat16", "cuda")
PLACES: dict[Place, Environment] = {
    "same": ENVIRONMENT,
    "single": dataclasses.replace(ENVIRONMENT, hardware="another processor"),
    "half": HALF,
}
LOSS = math.log(20.0)
BITS = math.log2(20.0) * 99 / 200
"""Of 99 tokens in 200 bytes."""
TASK = TaskResult("boolq", "acc", "none", 0.7, 0.01, True, True, 0, 100, None, "2.0")


def model(**changes: Any) -> ModelEvaluation:
    text = {"perplexity": 20.0, "nll": LOSS, "standard_error": 0.03, "bits_per_byte": BITS}
    text |= {name: changes.pop(name) for name in list(changes) if name in text}
    fidelity = {"kl": 0.5, "kl_standard_error": 0.02, "top1_agreement": 0.6, "top5_agreement": 0.7, "kl_top_k": 0.4}
    fidelity |= {name: changes.pop(name) for name in list(changes) if name in fidelity}
    one = Perplexity(name="a book", tokens=99, bytes=200, window=8, stride=4, data=TEXT, **text)
    base = ModelEvaluation(
        label="pruned", layers=6, parameters=1000, bytes=4000, peak_memory=5000, dtype="float32", perplexity=(one,),
        fidelity=Fidelity(tokens=99, top_k=64, top_k_tokens=99, **fidelity),
        completions=(Completion("The sea", "x", (1, 2)),), speed=None, tasks=(TASK,),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def checks(place: Place = "same", sample: bool = False, **changes: Any) -> dict[str, Check]:
    claimed, found = Evaluation((model(),), ENVIRONMENT), Evaluation((model(**changes),), PLACES[place])
    return {check.name: check for check in check_figures(claimed, found, sample=sample)}


@pytest.mark.parametrize(
    ("figure", "name", "claimed", "allowed"),
    [
        # 1e-4, 1e-3, 1e-2 of 20
        ("perplexity", "perplexity", 20.0, {"same": 0.002, "single": 0.02, "half": 0.2}),
        ("bits_per_byte", "bits per byte", BITS, {"same": BITS / 1e4, "single": BITS / 1e3, "half": BITS / 1e2}),
        # 1e-3, 1e-2, 5e-2 of 0.5
        ("kl", "KL from original", 0.5, {"same": 5e-4, "single": 5e-3, "half": 2.5e-2}),
        ("kl_top_k", "KL, likeliest tokens", 0.4, {"same": 4e-4, "single": 4e-3, "half": 2e-2}),
        ("top1_agreement", "same first choice", 0.6, {"same": 1e-3, "single": 5e-3, "half": 2e-2}),
        ("top5_agreement", "shared of first five", 0.7, {"same": 1e-3, "single": 5e-3, "half": 2e-2}),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_how_far_figures_may_be_apart(
    figure: str, name: str, claimed: float, allowed: dict[Place, float], place: Place
) -> None:
    for sign in (1, -1):
        for share, status in ((0.99, "pass"), (1.01, "fail")):
            found = checks(place, **{figure: claimed + sign * share * allowed[place]})
            assert found[f"pruned: {name}"].status == status
            others = [c.name for c in found.values() if c.status == "fail" and c.name != f"pruned: {name}"]
            assert others == []


def test_small_divergences_have_a_floor() -> None:
    assert TOLERANCES["KL"].of(0.0, "half") == 2e-3 and TOLERANCES["KL"].of(0.0, "same") == 1e-5
    assert all(tolerance.why for tolerance in TOLERANCES.values())


@pytest.mark.parametrize(("value", "status"), [(0.7099, "pass"), (0.7101, "fail")])
def test_a_task_may_be_off_by_its_standard_error(value: float, status: str) -> None:
    assert checks(tasks=(dataclasses.replace(TASK, value=value),))["pruned: boolq acc"].status == status


def test_tasks_of_other_questions_and_tasks_that_were_not_run() -> None:
    other = checks(tasks=(dataclasses.replace(TASK, samples=99),))["pruned: boolq acc"]
    assert other.status == "fail" and "99 questions of version 2.0 here, 100 of 2.0 there" in other.reason
    assert checks(tasks=())["pruned: boolq acc"].status == "fail"
    both = Evaluation((model(),), ENVIRONMENT), Evaluation((model(tasks=()),), ENVIRONMENT)
    found = {check.name: check.status for check in check_figures(*both, without_tasks=True)}
    assert found["pruned: boolq acc"] == "skipped"


def test_sizes_are_exact_and_bytes_depend_on_the_dtype() -> None:
    found = checks(layers=5, parameters=1001, bytes=2000)
    assert [found[f"pruned: {n}"].status for n in ("layers", "parameters", "bytes of weights")] == ["fail"] * 3
    assert "pruned: bytes of weights" not in checks(bytes=2000, dtype="bfloat16")


def test_a_sample_within_three_combined_standard_errors() -> None:
    # sqrt(0.03² + 0.04²) = 0.05
    for off, status in ((0.149, "pass"), (0.151, "fail"), (-0.151, "fail")):
        found = checks(sample=True, nll=LOSS + off, standard_error=0.04)
        assert found["pruned: loss, nats per token"].status == status
        assert "pruned: perplexity" not in found and "pruned: same first choice" not in found
    # sqrt(0.02² + 0.02²) · 3 = 0.0849
    assert checks(sample=True, kl=0.584)["pruned: KL from original"].status == "pass"
    assert checks(sample=True, kl=0.586)["pruned: KL from original"].status == "fail"
    task = dataclasses.replace(TASK, value=0.8, standard_error=None, samples=4)
    assert checks(sample=True, tasks=(task,))["pruned: boolq acc"].status == "shown"


def test_places() -> None:
    assert [place_of(ENVIRONMENT, PLACES[place]) for place in PLACES] == list(PLACES)
    newer = dataclasses.replace(ENVIRONMENT, versions={"torch": "2.14.0"})
    assert place_of(ENVIRONMENT, newer) == "single"
    mixed = dataclasses.replace(ENVIRONMENT, dtype="bfloat16, losses computed in float32")
    assert place_of(mixed, mixed) == "same" and place_of(mixed, ENVIRONMENT) == "half"


def test_what_depends_on_the_machine_is_shown() -> None:
    found = checks(peak_memory=9, completions=(Completion("The sea", "y", (1, 3)),))
    for name in ("peak memory, bytes", "greedy completions"):
        assert found[f"pruned: {name}"].status == "shown"
    assert found["pruned: greedy completions"].measured == "0 the same"


def test_a_model_that_was_not_measured() -> None:
    claimed = Evaluation((model(), model(label="healed")), ENVIRONMENT)
    [first, *rest] = check_figures(claimed, Evaluation((model(label="healed"),), ENVIRONMENT))
    assert (first.name, first.status) == ("pruned: all figures", "skipped")
    assert {check.status for check in rest} == {"pass", "shown"}
    [first, *_] = check_figures(claimed, Evaluation((), ENVIRONMENT))
    assert (first.name, first.status) == ("pruned: all figures", "fail")


def held(claimed: ModelEvaluation, sample: bool = False, **changes: Any) -> set[str]:
    """Names of the checks that fail where this is claimed."""
    pair = Evaluation((claimed,), ENVIRONMENT), Evaluation((model(**changes),), ENVIRONMENT)
    return {
        check.name.removeprefix("pruned: ") for check in check_figures(*pair, sample=sample) if check.status == "fail"
    }


def test_figures_that_do_not_follow_from_one_another() -> None:
    assert held(model()) == set()
    for sample in (False, True):
        assert "figures agree" in held(model(nll=0.1), sample)
        assert "figures agree" in held(model(perplexity=18.0), sample)
        assert "figures agree" in held(model(bits_per_byte=1.0), sample)
        assert "figures agree" in held(model(standard_error=-1e6), sample)
        assert "figures agree" in held(model(kl_standard_error=-1.0), sample)
        assert "figures agree" in held(model(perplexity=-5.0), sample)


def test_what_would_excuse_any_figure() -> None:
    generous = dataclasses.replace(TASK, value=0.9, standard_error=1.0)
    assert held(model(tasks=(generous,))) == {"boolq acc", "boolq acc, standard error"}
    assert held(model(standard_error=9.0)) == held(model(standard_error=9.0), True) == {"standard error of the loss"}
    assert held(model(kl_standard_error=9.0)) == {"standard error of the KL"}


def test_claims_of_what_the_recipe_does_not_measure() -> None:
    real = model()
    [text] = real.perplexity
    other = dataclasses.replace(text, name="wikitext")
    assert held(model(perplexity=20.0)) == set()
    assert held(dataclasses.replace(real, perplexity=(text, other))) == {"perplexity, wikitext"}
    assert held(real, fidelity=None) == {"KL from original"}
    assert held(dataclasses.replace(real, dtype="int1", bytes=5)) == {"dtype"}
    wide = dataclasses.replace(text, tokens=9900, bytes=20000)
    assert held(dataclasses.replace(real, perplexity=(wide,))) == {"text and windows"}
    assert real.fidelity is not None
    spread = dataclasses.replace(real.fidelity, tokens=9900)
    assert held(dataclasses.replace(real, fidelity=spread)) == {"compared tokens"}
    better = (Completion("The sea", "brilliant", (1, 2)),)
    assert held(dataclasses.replace(real, completions=better)) == {"greedy completions"}


def test_the_summary() -> None:
    kinds = ("pass", "fail", "pass", "shown")
    found = Verification("m", None, reference(8), tuple(Check("x", kind) for kind in kinds), 1.0)
    assert found.summary() == "2 passed, 1 failed, 1 shown" and not found.passed
    assert dataclasses.replace(found, checks=()).summary() == "0 passed"
