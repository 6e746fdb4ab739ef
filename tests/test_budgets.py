"""Shares of parameters, bytes and FLOPs: never exceeded, never wasted, for every kind of unit and planner."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_prune.amounts import Sizes, check_units
from hf_prune.architecture import FAMILIES, decoder_of
from hf_prune.architecture.sublayers import part_sizes
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.evaluation import flops
from hf_prune.evaluation.flops import flops_per_token, module_flops
from hf_prune.plan import choose_plan
from hf_prune.records import Plan, Scores
from hf_prune.surgery import prune_layers
from hf_prune.units import Cut, Unit, UnitKind, parts_of

from .making import reference, scores
from .tiny import tiny_model

FAST = ("llama", "mixtral", "gpt_oss", "opt", "bloom", "lfm2")
TYPES = [
    t if t in FAST else pytest.param(t, marks=pytest.mark.slow) for family in FAMILIES for t in family.model_types
]
KINDS: tuple[UnitKind, ...] = ("block", "attention", "mlp", "joint")


class Ranked:
    """A judge to whom the damage of a cut is the sum of known damages."""

    objective = "loss"

    def __init__(self, damage: dict[Unit, float]) -> None:
        self.damage, self.allowed = damage, 0.0

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        return [sum(self.damage[unit] for unit in cut) for cut in cuts]

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        return {unit: self.damage[unit] for unit in units}

    def cost(self, forwards: float, share: float = 1.0) -> float:
        return forwards

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        return float(rounds)

    def allow(self, forwards: float, what: str) -> None:
        self.allowed = forwards


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of random sizes, with a random score of each unit."""

    sizes: Sizes
    importances: dict[str, tuple[float, ...]]
    depth: int

    @property
    def scores(self) -> Scores:
        flat = scores([[abs(i - j) / self.depth for j in range(self.depth + 1)] for i in range(self.depth + 1)])
        return dataclasses.replace(flat, importances=self.importances)

    @property
    def judge(self) -> Ranked:
        return Ranked(
            {Unit(i, part): value for part, row in self.importances.items() for i, value in enumerate(row)}  # type: ignore[arg-type]
        )

    def plan(self, **fields: Any) -> Plan:
        """With a measure that says nothing here: scores and judge are the case's."""
        searched = fields.get("planner") == "greedy"
        config = PrunerConfig(**{"method": "sleb", "protect_first": 0, "protect_last": 0, **fields})
        model = reference(self.depth)
        return choose_plan(
            config, model, self.sizes, None if searched else self.scores, self.judge if searched else None
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    depth = draw(st.integers(2, 7))
    row = st.lists(st.integers(0, 30), min_size=depth, max_size=depth)
    attention, mlp = draw(row), draw(row)
    blocks = [a + m + draw(st.integers(1, 5)) for a, m in zip(attention, mlp, strict=True)]
    total = sum(blocks) + draw(st.integers(0, 60))
    figures = {}
    for name, width in (("parameters", 1), ("bytes", 2), ("flops", 3)):
        figures[name] = {
            part: tuple(width * n for n in each)
            for part, each in (("attention", attention), ("mlp", mlp), ("block", blocks))
        }
    each = [figures[name]["block"] for name in ("parameters", "bytes", "flops")]
    parts = {part: {name: row[part] for name, row in figures.items()} for part in ("attention", "mlp")}
    sizes = Sizes(each[0], each[1], total, 2 * total, each[2], 3 * total, parts)  # type: ignore[arg-type]
    numbers = st.lists(st.integers(0, 9).map(float), min_size=depth, max_size=depth).map(tuple)
    return Case(sizes, {part: draw(numbers) for part in ("block", "attention", "mlp")}, depth)


def room_for(case: Case, kind: UnitKind, protected: set[int]) -> list[Unit]:
    """Units that may go."""
    return [
        Unit(i, part)
        for i in range(case.depth)
        for part in parts_of(kind)
        if i not in protected and (part == "block" or case.sizes.parts[part]["parameters"][i])
    ]


@given(
    cases(),
    st.sampled_from(KINDS),
    st.sampled_from(("top_k", "greedy")),
    st.sampled_from(("parameters", "bytes", "flops")),
    st.floats(0.01, 0.99),
    st.sets(st.integers(0, 6), max_size=3),
)
def test_a_budget_is_never_exceeded_never_wasted_and_spares_what_is_protected(
    case: Case, kind: UnitKind, planner: str, of: str, share: float, named: set[int]
) -> None:
    protected = {i for i in named if i < case.depth}
    may_go = room_for(case, kind, protected)
    limit = share * case.sizes.total(of) * (1 + 1e-9)
    most = min(len(may_go), case.depth - 1) if kind == "block" else len(may_go)
    weigh = {unit: case.sizes.weight(unit, of) for unit in room_for(case, kind, set())}
    try:
        plan = case.plan(planner=planner, unit=kind, sparsity=share, sparsity_of=of, protect=tuple(sorted(protected)))
    except ConfigError as error:
        if not may_go:
            assert "none is left" in str(error) or "could go alone" in str(error)
        elif "more than can go" in str(error):
            assert sum(sorted(weigh.values())[: most + 1]) <= limit
        elif "lightest" in str(error):
            raise AssertionError("is for before measuring") from error
        else:
            assert "is less than the" in str(error)
            first = min(may_go, key=lambda u: (case.importances[u.part][u.layer], u))
            assert max(weigh[u] for u in may_go) > limit if planner == "greedy" else weigh[first] > limit
        return
    gone = set(plan.removed)
    assert gone and gone <= set(may_go)
    assert sum(weigh[unit] for unit in gone) <= limit, "exceeded"
    left = [unit for unit in may_go if unit not in gone]
    if len(gone) == most:
        return
    if planner == "greedy":  # passes over what does not fit
        assert all(sum(weigh[u] for u in gone | {unit}) > limit for unit in left), "wasted"
    else:
        following = min(left, key=lambda u: (case.importances[u.part][u.layer], u))
        assert sum(weigh[u] for u in gone | {following}) > limit, "wasted"


@given(cases(), st.sampled_from(KINDS), st.floats(0.01, 0.99))
def test_what_is_refused_before_measuring_would_be_refused_behind_it(case: Case, kind: UnitKind, share: float) -> None:
    fields: dict[str, Any] = {"unit": kind, "sparsity": share, "sparsity_of": "parameters"}
    config = PrunerConfig(method="sleb", protect_first=0, protect_last=0, **fields)
    try:
        check_units(config, reference(case.depth), case.sizes)
    except ConfigError:
        for planner in ("greedy", "top_k"):
            with pytest.raises(ConfigError):
                case.plan(planner=planner, **fields)


@given(cases(), st.integers(1, 14), st.sampled_from(KINDS))
def test_a_number_of_units_goes_as_it_is_or_not_at_all(case: Case, count: int, kind: UnitKind) -> None:
    may_go = room_for(case, kind, set())
    most = min(len(may_go), case.depth - 1) if kind == "block" else len(may_go)
    for amount in ({"drop_layers": count}, {"sparsity": min(0.999, count / (case.depth * len(parts_of(kind))))}):
        try:
            plan = case.plan(planner="top_k", unit=kind, **amount)
        except ConfigError:
            assert count > most or not may_go or "sparsity" in amount
        else:
            assert len(plan.removed) == count or "sparsity" in amount


def joint(attention: Sequence[int], mlp: Sequence[int]) -> Sizes:
    each = tuple(a + m for a, m in zip(attention, mlp, strict=True))
    parts = {"attention": {"parameters": tuple(attention)}, "mlp": {"parameters": tuple(mlp)}}
    return Sizes(each, each, sum(each), sum(each), parts=parts)  # type: ignore[arg-type]


def test_a_search_among_light_and_heavy_units_spends_what_it_was_given() -> None:
    case = Case(joint([10] * 4, [30] * 4), {"attention": (1, 2, 3, 4), "mlp": (9, 9, 9, 9), "block": (0,) * 4}, 4)
    plan = case.plan(planner="greedy", unit="joint", sparsity=0.25, sparsity_of="parameters")
    assert plan.removed == tuple(Unit(i, "attention") for i in range(4)), "not one: as if all were MLPs"
    plan = case.plan(planner="greedy", unit="joint", sparsity=0.35, sparsity_of="parameters")
    assert plan.removed == tuple(Unit(i, "attention") for i in range(4)), "16 are left, and no MLP fits"


def test_a_window_that_protected_blocks_make_impossible_is_passed_over() -> None:
    case = Case(joint([5] * 6, [5] * 6), {"block": (0,) * 6, "attention": (0,) * 6, "mlp": (0,) * 6}, 6)
    fields: dict[str, Any] = {"method": "uidl", "protect": (2,), "sparsity_of": "parameters"}
    assert case.plan(**fields, sparsity=0.6).dropped == (3, 4, 5), "five may go, three of them in a row"
    assert case.plan(**fields, sparsity=0.4).dropped == (0, 1)
    with pytest.raises(ConfigError, match="needs a measure such as 'angular', got none"):
        choose_plan(PrunerConfig(**fields, sparsity=0.4), reference(6), case.sizes, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "attention", "drop_layers": 4}, r"drop_layers=4: 'org/model' has 3 attentions that can go, as"),
        ({"unit": "attention", "sparsity": 0.8}, r"sparsity=0.8 of 5 attentions is 4: 'org/model' has 3 attentions"),
        ({"unit": "attention", "layers": (0, 3)}, r"has no attention of block 3 that could go"),
        (
            {"unit": "joint", "drop_layers": 6, "protect": (1, 4)},
            r"drop_layers=6: .* has 5 attentions and MLPs that can go, as .* and layers 1, 4 are protected by name",
        ),
        (
            {"unit": "mlp", "sparsity": 0.05, "sparsity_of": "parameters"},
            r"sparsity=0.05 of the parameters of 'org/model' is less than the lightest of what may go; .* 0\.1143",
        ),
    ],
)
def test_amounts_that_do_not_suit_the_parts_of_a_model(fields: dict[str, Any], message: str) -> None:
    config = PrunerConfig(method="sleb", protect_first=0, protect_last=0, **fields)
    with pytest.raises(ConfigError, match=message):
        check_units(config, reference(5), joint([10, 10, 10, 0, 0], [8, 8, 8, 8, 8 + 0]))


def test_a_model_that_is_not_made_of_parts_says_why() -> None:
    sizes = Sizes((1,) * 3, (1,) * 3, 3, 3, parts={}, why={"mlp": "a MambaBlock has no mlp that could go alone"})
    with pytest.raises(ConfigError, match=r"'org/model' has no MLPs that could go alone \(a MambaBlock has no mlp"):
        check_units(PrunerConfig(method="sleb", unit="mlp", drop_layers=1), reference(3), sizes)


@pytest.mark.parametrize("model_type", TYPES)
def test_flops_are_those_of_the_running_model(model_type: str) -> None:
    model = tiny_model(model_type)
    found = module_flops(model, 12)
    assert found[""] == 12 * flops_per_token(model, 12)
    decoder = decoder_of(model)
    blocks = [found[decoder.block_prefix(i)[:-1]] for i in range(decoder.num_layers)]
    parts = part_sizes(decoder, found)
    if model_type != "mamba":
        assert [sum(each) for each in zip(parts["attention"]["flops"], parts["mlp"]["flops"], strict=True)] == blocks
        assert min(parts["attention"]["flops"]) > 0 and min(parts["mlp"]["flops"]) > 0
    prune_layers(model, [1, 6])
    assert found[""] - blocks[1] - blocks[6] == 12 * flops_per_token(model, 12)


def counted_anew(model: PreTrainedModel) -> dict[str, int]:
    flops._counted.cache_clear()
    return module_flops(model, 9)


def test_flops_do_not_depend_on_dtype_device_or_attention_kernel() -> None:
    model = tiny_model("qwen2")
    expected = counted_anew(model)
    assert counted_anew(model.to(torch.bfloat16)) == expected
    with torch.device("meta"):
        blank = type(model)(model.config)
    assert counted_anew(blank) == expected
    model.config._attn_implementation = "flash_attention_2"
    assert counted_anew(model) == expected


def test_flops_of_the_same_shape_are_counted_once() -> None:
    expected = dict(counted_anew(tiny_model("llama", 2)))
    module_flops(tiny_model("llama", 2), 9).clear()
    assert module_flops(tiny_model("llama", 2, seed=1), 9) == expected and flops._counted.cache_info().misses == 1
    for other in (tiny_model("llama", 3), tiny_model("opt", 2), tiny_model("llama", 2, intermediate_size=64)):
        assert module_flops(other, 9) != expected
    assert module_flops(tiny_model("llama", 2), 8) != expected


def test_text_that_is_longer_costs_attention_more_for_each_token() -> None:
    model = tiny_model("llama")
    short, long = (part_sizes(decoder_of(model), module_flops(model, n)) for n in (8, 32))
    assert long["mlp"]["flops"][0] == 4 * short["mlp"]["flops"][0]
    assert long["attention"]["flops"][0] > 4 * short["attention"]["flops"][0]
