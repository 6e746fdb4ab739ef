"""From scores and an amount to a plan: budgets, refusals, and what a plan is bound to."""

import dataclasses
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.amounts import Sizes, allowed_blocks, check_amount
from hf_prune.architecture import decoder_of
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.plan import make_plan, scores_digest
from hf_prune.records import Operation, Plan
from hf_prune.surgery import apply_plan

from .making import logits, reference, scores
from .tiny import DEPTH, tiny_model, tokens


def sizes(each: list[int], rest: int = 0, width: int = 2) -> Sizes:
    total = sum(each) + rest
    return Sizes(tuple(each), tuple(width * n for n in each), total, width * total)


def flat(depth: int) -> Any:
    return scores([[abs(i - j) / depth for j in range(depth + 1)] for i in range(depth + 1)])


def plan(depth: int, each: Sizes | None = None, **fields: Any) -> Plan:
    config = PrunerConfig(**fields)
    record = None if config.recipe().measure is None else flat(depth)
    return make_plan(config, reference(depth), each or sizes([10] * depth), record)


def test_simple_of_32() -> None:
    found = plan(32, method="simple", drop_layers=8)
    assert found.dropped == tuple(range(23, 31)) and found.kept == (*range(23), 31)
    assert (found.planner, found.method, found.scores, found.distance) == ("before_last", "simple", None, None)
    assert found.describe() == "drop layers 23–30 (8 of 32, counted from 0)"
    assert plan(32, method="simple", drop_layers=31).kept == (31,)


def test_measured_plan_says_where_it_comes_from() -> None:
    record = flat(8)
    found = make_plan(PrunerConfig(drop_layers=2), reference(8), sizes([1] * 8), record)
    assert found.operations == (Operation("drop", (0, 1)),)
    assert (found.planner, found.distance, found.runner_up, found.gap) == ("window", 0.25, (1, 2), 0.0)
    assert found.scores == scores_digest(record) and len(found.scores) == 64
    assert scores_digest(dataclasses.replace(record, seconds=2.0)) != found.scores
    assert Plan.from_dict(found.to_dict()) == found


def test_named_layers_need_no_scores() -> None:
    for record in (None, flat(8)):
        found = make_plan(PrunerConfig(layers=[6, 1]), reference(8), sizes([1] * 8), record)
        assert found.dropped == (1, 6) and found.planner == "named" and found.scores is None
        assert found.reason == "Layers 1, 6 were named by the user."


def test_protections_hold() -> None:
    for first in range(4):
        for last in range(4 - first):
            found = plan(8, drop_layers=2, protect_first=first, protect_last=last, method="uidl")
            assert min(found.dropped) == first
            deepest = plan(8, drop_layers=2, protect_first=first, protect_last=last, method="simple")
            assert max(deepest.dropped) == 7 - last
    assert allowed_blocks(PrunerConfig(protect_first=2, protect_last=1).recipe(), 8, "m") == (2, 3, 4, 5, 6)


@given(st.integers(2, 40), st.data())
def test_share_of_layers_is_rounded_down(depth: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, depth - 1))
    assert len(plan(depth, sparsity=count / depth).dropped) == count, "an exact share gives that many"
    assert len(plan(depth, sparsity=(count + 0.5) / depth).dropped) == count


@pytest.mark.parametrize(
    ("depth", "share", "count"), [(100, 0.29, 29), (40, 0.575, 23), (32, 0.25, 8), (12, 0.35, 4), (28, 3 / 28, 3)]
)
def test_shares_as_people_write_them(depth: int, share: float, count: int) -> None:
    assert len(plan(depth, sparsity=share).dropped) == count


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.integers(0, 200), st.floats(0.01, 0.99))
def test_budget_of_parameters_is_never_exceeded_and_never_wasted(each: list[int], rest: int, share: float) -> None:
    weights = sizes(each, rest)
    for unit, figures, total in (
        ("parameters", weights.parameters, weights.total_parameters),
        ("bytes", weights.bytes, weights.total_bytes),
    ):
        budget = share * total
        by_count = [sum(figures[len(each) - 1 - n : len(each) - 1]) for n in range(len(each))]  # the simple heuristic
        try:
            found = plan(len(each), weights, method="simple", sparsity=share, sparsity_of=unit)
        except ConfigError as error:
            too_small, too_large = by_count[1] > budget, by_count[-1] + figures[-1] <= budget * (1 + 1e-9)
            assert too_small or too_large, error
            continue
        gone = sum(figures[i] for i in found.dropped)
        assert gone <= budget * (1 + 1e-9)
        assert len(found.dropped) == max(n for n, size in enumerate(by_count) if size <= budget * (1 + 1e-9))


def test_share_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan(8, sizes([10] * 8, 20), sparsity=0.35, sparsity_of="parameters", method="simple")
    assert "sparsity 0.35 of parameters: 4–6 go (3 of 8 layers), which is 0.3000" in caplog.text


def test_warns_above_thirty_percent(caplog: pytest.LogCaptureFixture) -> None:
    plan(10, drop_layers=3)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    plan(10, drop_layers=4)
    assert "4 of 10 layers go, above 30 %" in caplog.text and "generation suffers first" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"how much of 'org/model' shall go\? Give one of drop_layers \(1 to 7\), layers or sparsity"),
        ({"drop_layers": 8}, r"drop_layers=8 leaves 0 of 8 layers in 'org/model'; .*at most 7 can go"),
        ({"drop_layers": 99}, "drop_layers=99 leaves 0 of 8 layers.*at most 7"),
        (
            {"drop_layers": 6, "protect_first": 2, "protect_last": 1},
            "drop_layers=6 leaves 2 of 8.*protects 2 first and 1 last, so at most 5",
        ),
        ({"drop_layers": 8, "method": "simple"}, "protects 0 first and 1 last, so at most 7"),
        ({"layers": [8]}, r"layers=\[8\]: \[8\] out of range; 'org/model' has 8 blocks, counted 0 to 7"),
        ({"layers": [-1, 3]}, r"layers=\[-1, 3\]: \[-1\] out of range"),
        ({"layers": list(range(8))}, "leaves none of the 8 blocks"),
        (
            {"layers": [0, 4, 7], "protect_first": 1, "protect_last": 2},
            r"layers=\[0, 4, 7\]: \[0, 7\] protected; .*1 first and 2 last.*protect_first",
        ),
        ({"layers": [7], "method": "simple"}, r"\[7\] protected"),
        (
            {"protect_first": 8, "drop_layers": 1},
            "protects 8 first and 0 last, but 'org/model' has 8 blocks: none is left",
        ),
        ({"protect_first": 5, "protect_last": 5, "drop_layers": 1}, "none is left"),
        (
            {"sparsity": 0.1},
            r"sparsity=0\.1 of 8 layers in 'org/model' is less than one layer; expected at least 0\.125",
        ),
        ({"sparsity": 0.9, "protect_first": 4}, r"sparsity=0\.9 .*'org/model'.*at most 0\.5.*protects 4 first"),
        (
            {"sparsity": 0.01, "sparsity_of": "parameters"},
            r"sparsity=0\.01 of the parameters of 'org/model' is less than .*at least 0\.1",
        ),
        ({"sparsity": 0.01, "sparsity_of": "bytes"}, r"sparsity=0\.01 of the bytes .*at least 0\.1"),
        ({"sparsity": 0.9, "sparsity_of": "bytes"}, r"sparsity=0\.9 of the bytes of 'org/model'.*at most 0\.7"),
        (
            {"sparsity": 0.7, "sparsity_of": "parameters", "protect_last": 4},
            r"sparsity=0\.7 of the parameters.*at most 0\.4.*protects 0 first and 4 last",
        ),
    ],
)
def test_amounts_that_do_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(8, sizes([10] * 8, 20), **fields)


@pytest.mark.parametrize("depth", [3, 6, 7, 12, 13, 28, 36, 80])
def test_the_share_named_in_an_error_is_enough(depth: int) -> None:
    for unit in ("layers", "parameters"):
        with pytest.raises(ConfigError, match="expected at least") as refused:
            plan(depth, sparsity=0.001, sparsity_of=unit)
        share = float(str(refused.value).rpartition(" ")[2])
        assert len(plan(depth, sparsity=share, sparsity_of=unit).dropped) == 1


def test_amount_is_checked_without_any_scores() -> None:
    check_amount(PrunerConfig(drop_layers=7), 8, "m")
    with pytest.raises(ConfigError, match="at most 7 can go"):
        check_amount(PrunerConfig(drop_layers=8), 8, "m")


@pytest.mark.parametrize(
    "other", [reference(9), reference(8, "e" * 64), reference(8, ""), reference(8, model_type="qwen2")]
)
def test_scores_of_another_model_are_refused(other: Any) -> None:
    with pytest.raises(ConfigError, match=r"the scores were measured on 'org/model' .*Measure again"):
        make_plan(PrunerConfig(drop_layers=2), other, sizes([1] * other.num_layers), flat(8))


def test_scores_of_another_model_in_memory_are_refused() -> None:
    record = dataclasses.replace(flat(8), model=reference(8, "", id="one"))
    make_plan(PrunerConfig(drop_layers=2), reference(8, "", id="one"), sizes([1] * 8), record)
    with pytest.raises(ConfigError, match="the scores were measured on 'one'.*'two'"):
        make_plan(PrunerConfig(drop_layers=2), reference(8, "", id="two"), sizes([1] * 8), record)


def test_window_without_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a measure such as 'angular'"):
        make_plan(PrunerConfig(drop_layers=2), reference(8), sizes([1] * 8), None)


def of(layers: tuple[int, ...], *more: tuple[int, ...], kind: str = "drop", **fields: Any) -> Plan:
    model = reference(fields.pop("depth", DEPTH), **fields)
    return Plan(model, "uidl", "named", tuple(Operation(kind, each) for each in (layers, *more)), "So.")


def test_plan_is_carried_out() -> None:
    model, other = tiny_model("llama"), tiny_model("llama")
    cut = apply_plan(decoder_of(model), of((1, 4)))
    assert cut.num_layers == model.config.num_hidden_layers == DEPTH - 2
    assert [block.self_attn.layer_idx for block in cut.blocks] == list(range(DEPTH - 2))
    apply_plan(decoder_of(other), of((4,), (1,)))  # two operations: indices stay those of the original
    assert torch_equal(model, other)
    third = tiny_model("llama")
    apply_plan(decoder_of(third), of((1,), (4,)))
    assert torch_equal(model, third)


def torch_equal(one: Any, two: Any) -> bool:
    return bool((logits(one, tokens()) == logits(two, tokens())).all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            of((1,), depth=9),
            r"the plan was made for 'org/model' \(llama, 9 blocks\).*llama with 8 blocks\. Plan again",
        ),
        (of((1,), model_type="qwen2"), r"\(qwen2, 8 blocks\)"),
        (of((1,), kind="dorp"), "unknown surgery 'dorp'.*Did you mean 'drop'"),
        (of((8,)), r"layers=\[8\]: \[8\] out of range"),
        (of((-1,)), "out of range"),
        (of((1, 2), (2, 3)), r"\[1, 2, 2, 3\]: \[2\] named twice"),
        (of(tuple(range(8))), "leaves none"),
        (
            dataclasses.replace(of((1,)), operations=(Operation("drop", (1,), {"layer": 3}),)),
            "surgery 'drop' has no option 'layer'",
        ),
    ],
)
def test_plan_that_does_not_fit_is_refused_before_the_cut(wrong: Plan, message: str) -> None:
    model = tiny_model("llama")
    before = logits(model, tokens())
    with pytest.raises(ConfigError, match=message):
        apply_plan(decoder_of(model), wrong)
    assert model.config.num_hidden_layers == DEPTH
    assert (logits(model, tokens()) == before).all()
