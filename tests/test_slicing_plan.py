"""Plans that slice: how wide for how much, the search, growth that is told, and what is refused before any work."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.config import PrunerConfig
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError
from hf_prune.planners.widths import MOST
from hf_prune.records import Operation, Plan, Scores
from hf_prune.slicing.blank import blank_model
from hf_prune.slicing.costs import Costs
from hf_prune.slicing.export import export_plain
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.plan import make_slicing_plan
from hf_prune.slicing.points import Widths
from hf_prune.slicing.read_costs import costs_of_config, count_parameters
from hf_prune.slicing.widths import dynamic_widths, layer_redundancy, point_widths

from .making import ENVIRONMENT, TEXT, reference
from .tiny import tiny_config, tiny_model

DEPTH, WIDTH = 6, 64
COSINES = (0.61, 0.80, 0.93, 0.97, 0.99, 0.72)
WIDE = {"hidden_size": WIDTH, "head_dim": 16, "intermediate_size": 160}


def costs_like(model_type: str = "llama", **fields: Any) -> Costs:
    return costs_of_config(tiny_config(model_type, DEPTH, **{**WIDE, **fields}), "org/model")


LLAMA, TIED = costs_like(), costs_like(tie_word_embeddings=True)


def measured(cosines: tuple[float, ...] = COSINES) -> Scores:
    """What the measure "redundancy" has found."""
    return Scores(
        reference(len(cosines)), "redundancy", {}, (), (), TEXT, ENVIRONMENT, 1.5, cosines, (0.01,) * len(cosines)
    )


def plan_of(
    costs: Costs = LLAMA,
    *,
    scores: Scores | None = None,
    judge: Callable[[Widths, SliceOptions], tuple[float, float]] | None = None,
    model_type: str = "llama",
    **fields: Any,
) -> Plan:
    config = PrunerConfig(**{"method": "slicegpt", "sparsity": 0.25, **fields})
    model = reference(len(costs.layers), model_type=model_type)
    return make_slicing_plan(config, model, costs, scores, judge=judge, selection=TEXT, calibration=TEXT)


def dynamic(costs: Costs = LLAMA, cosines: tuple[float, ...] = COSINES, **fields: Any) -> Plan:
    return plan_of(costs, scores=measured(cosines), method="dynamic-slicing", **fields)


def built(plan: Plan, model_type: str = "llama", **fields: Any) -> int:
    """Parameters of the model that the plan describes, counted on the model itself."""
    cut = plan.slicing
    decoder = decoder_of(tiny_model(model_type, DEPTH, **{**WIDE, **fields}))
    widths = Widths(cut.embed, cut.attn_out, cut.mlp_out)
    return count_parameters(blank_model(decoder, widths, shortcuts=cut.basis == "per_block", tied=cut.tied))


def by_hand(widths: tuple[int, ...], *, tied: bool = False) -> int:
    """The same of the tiny Llama by arithmetic alone: readers, writers and shortcuts of each addition in turn."""
    embed, attn_out, mlp_out = point_widths(widths, WIDTH, parallel=False)
    found, width = 96 * embed, embed
    for middle, behind in zip(attn_out, mlp_out, strict=True):
        found += (64 + 32 + 32) * width + 64 * middle + width * middle
        found += 2 * 160 * middle + 160 * behind + middle * behind
        width = behind
    return found + (embed if tied else 96) * width


def at_width(width: int, costs: Costs = LLAMA, **fields: Any) -> Plan:
    """Every layer with this width."""
    return plan_of(costs, sparsity=1 - width / WIDTH, planner_kwargs={"multiple": 1}, **fields)


# ---- the same width in all layers


def test_a_share_of_the_width() -> None:
    plan = plan_of()
    cut = plan.slicing
    assert cut.widths == (48,) * DEPTH and (cut.embed, cut.attn_out) == (48, (48,) * DEPTH)
    assert cut.mlp_out == (48, 48, 48, 48, 48, 64), "the head reads the full width"
    assert (cut.hidden_size, cut.requested, cut.requested_of, cut.mean_width) == (64, 0.25, "width", 0.75)
    assert (cut.base, cut.redundancy, cut.search, cut.selection) == (None, None, (), None)
    assert (cut.basis, cut.tied, cut.plain, cut.calibration) == ("per_block", False, False, TEXT)
    assert (plan.method, plan.planner, plan.dropped, plan.kept) == (
        "slicegpt", "constant_width", (), (0, 1, 2, 3, 4, 5),
    )  # fmt: skip
    assert plan.reason == "Every layer keeps 48 of 64 directions."
    options = dataclasses.asdict(SliceOptions(tied=False))
    assert plan.operations == (Operation("slice", tuple(range(DEPTH)), options),)
    assert cut.parameters == built(plan)
    assert cut.shortcut_parameters == 11 * 48 * 48 + 48 * 64
    assert plan.describe().startswith("slice the width of 6 layers from 64 to 48 (25.0% narrower on average, ")
    assert f"{cut.saved:.1%} fewer parameters" in plan.describe() and cut.saved > 0


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("opt", {"ffn_dim": 160, "word_embed_proj_dim": 64}),
        ("phi", {}),
        ("gpt_neox", {}),
        ("qwen2_moe", {}),
    ],
)
def test_counts_of_plans_are_those_of_models(model_type: str, fields: dict[str, Any]) -> None:
    costs = costs_like(model_type, **fields)
    assert costs.original == count_parameters(tiny_model(model_type, DEPTH, **{**WIDE, **fields}))
    for more in ({}, {"surgery_kwargs": {"slice_head": True}}):
        plan = plan_of(costs, model_type=model_type, **more)
        assert plan.slicing.parameters == built(plan, model_type, **fields)
        assert plan.slicing.original_parameters == costs.original
    assert (plan.slicing.attn_out == ()) == costs.parallel == (model_type in ("phi", "gpt_neox"))


def test_the_arithmetic_of_these_tests() -> None:
    for tied, costs in ((False, LLAMA), (True, TIED)):
        for cut in (plan_of(costs).slicing, dynamic(costs, planner_kwargs={"slice_base": 0.1}).slicing):
            assert by_hand(cut.widths, tied=tied) == cut.parameters


def check_nearest(
    asked: dict[str, Any], totals: dict[int, int], costs: Costs, make: Callable[..., Plan], multiple: int
) -> None:
    """Of all mean widths the one that saves nearest to what was asked for, or a refusal that tells what can be had."""
    sparsity = asked["sparsity"]
    saved = {mean: 1 - total / costs.original for mean, total in totals.items()}
    nearest = min(abs(share - sparsity) for share in saved.values())
    good = [mean for mean, share in saved.items() if abs(share - sparsity) <= nearest + 1e-12]
    if sparsity > max(saved.values()) + 1e-9:
        with pytest.raises(
            ConfigError, match="is more than slicing can save: the narrowest schedule in st"
        ) as refused:
            make(costs, **asked)
        assert f"in steps of {multiple} saves {max(saved.values()):.4f}. Heads and inter" in str(refused.value)
    elif all(saved[mean] <= 0 for mean in good):
        with pytest.raises(ConfigError, match="is less than slicing in steps of .*shortcuts cost") as refused:
            make(costs, **asked)
        least = min((share for share in saved.values() if share > 0), default=0.0)
        assert f" {least:.4f} " in str(refused.value)
    else:
        cut = make(costs, **asked).slicing
        assert (cut.requested, cut.requested_of) == (sparsity, "parameters")
        assert cut.parameters in {totals[mean] for mean in good} and cut.saved > 0
        assert sum(cut.widths) in {mean * DEPTH for mean in good}


@given(st.floats(0.005, 0.9), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_a_share_of_the_parameters(sparsity: float, multiple: int, tied: bool) -> None:
    asked = {"sparsity": sparsity, "sparsity_of": "parameters", "planner_kwargs": {"multiple": multiple}}
    totals = {width: by_hand((width,) * DEPTH, tied=tied) for width in range(multiple, WIDTH, multiple)}
    check_nearest(asked, totals, TIED if tied else LLAMA, plan_of, multiple)


def test_more_than_slicing_can_save() -> None:
    """Heads and intermediate sizes stay: the error tells what can be had, and that works."""
    with pytest.raises(ConfigError, match=r"sparsity=0\.97 of the parameters of 'org/model' is more than") as refused:
        plan_of(sparsity=0.97, sparsity_of="parameters")
    reachable = float(str(refused.value).split("saves ")[1].split(". ")[0])
    assert at_width(8).slicing.saved == pytest.approx(reachable, abs=1e-4) and reachable < 0.97
    found = plan_of(sparsity=math.floor(reachable * 1e4 - 1) / 1e4, sparsity_of="parameters").slicing
    assert found.widths == (8,) * DEPTH


def test_no_width_left() -> None:
    with pytest.raises(ConfigError, match=r"sparsity 0\.9 leaves no width.* at most 0\.875 or a smaller multiple"):
        plan_of(sparsity=0.9)
    with pytest.raises(ConfigError, match="widths cannot be multiples of 65.*hidden size 64"):
        plan_of(planner_kwargs={"multiple": 65})


# ---- schedules that follow redundancy


def test_a_schedule_at_its_base_is_constant() -> None:
    plan = dynamic(planner_kwargs={"slice_base": 0.25})
    assert plan.slicing.widths == plan_of().slicing.widths
    assert (plan.slicing.base, plan.slicing.redundancy) == (0.25, layer_redundancy(COSINES))


def test_redundant_layers_are_narrower_at_the_same_mean() -> None:
    plan = dynamic(planner_kwargs={"slice_base": 0.1, "multiple": 2})
    cut, constant = plan.slicing, plan_of(planner_kwargs={"multiple": 2}).slicing
    assert sum(cut.widths) == sum(constant.widths) and cut.mean_width == constant.mean_width
    order = sorted(range(DEPTH), key=COSINES.__getitem__)
    ordered = [cut.widths[layer] for layer in order]
    assert ordered == sorted(ordered, reverse=True) and ordered[0] > ordered[-1]
    assert cut.widths[order[0]] in (56, 58), "the least redundant layer loses the base: 10 % of 64"
    assert (cut.embed, cut.mlp_out) == (cut.widths[0], (*cut.widths[1:], 64)) and cut.attn_out == cut.widths
    assert cut.parameters == built(plan) and cut.search == () and cut.selection is None
    assert plan.reason == (
        f"Every layer loses at least 10.0% of its width, redundant ones up to {1 - min(ordered) / 64:.1%}."
    )
    assert plan.planner == "dynamic_width"


@given(st.floats(0.02, 0.9), st.floats(0, 0.2), st.sampled_from([1, 2, 4]))
def test_a_share_of_the_parameters_by_redundancy(sparsity: float, base: float, multiple: int) -> None:
    planner_kwargs = {"slice_base": base, "multiple": multiple}
    asked = {"sparsity": sparsity, "sparsity_of": "parameters", "planner_kwargs": planner_kwargs}
    totals = {}
    for mean in range(multiple, WIDTH, multiple):
        share = 1 - mean / WIDTH
        widths = dynamic_widths(layer_redundancy(COSINES), WIDTH, share, min(base, share), multiple=multiple)
        totals[mean] = by_hand(widths)
    nearest = min(totals, key=lambda mean: abs(1 - totals[mean] / LLAMA.original - sparsity))
    if base <= 1 - nearest / WIDTH:
        check_nearest(asked, totals, LLAMA, dynamic, multiple)
        return
    with pytest.raises(ConfigError):
        dynamic(**asked)


def test_scores_are_needed() -> None:
    with pytest.raises(ConfigError, match="follows one score a layer; expected those of measure 'redundancy', got no"):
        plan_of(method="dynamic-slicing", planner_kwargs={"slice_base": 0.1})
    angular = dataclasses.replace(measured(), measure="angular", layers=())
    with pytest.raises(ConfigError, match="got those of 'angular'"):
        plan_of(method="dynamic-slicing", scores=angular, planner_kwargs={"slice_base": 0.1})


# ---- the search


class Judge:
    """Answers with losses given beforehand."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.seen, self.options = losses, [], None

    def __call__(self, widths: Widths, options: SliceOptions) -> tuple[float, float]:
        self.seen.append(widths)
        self.options = options
        return self.losses[len(self.seen) - 1], 0.03


@given(
    st.lists(st.sampled_from([k / 8 for k in range(1, 40)]), min_size=MOST, max_size=MOST),
    st.lists(st.floats(-1, 1), min_size=DEPTH, max_size=DEPTH).map(tuple),
    st.sampled_from([0.125, 0.25, 0.5]),
    st.sampled_from(["width", "parameters"]),
)
def test_the_best_schedule_wins_and_constant_is_always_tried(
    losses: list[float], cosines: tuple[float, ...], sparsity: float, of: str
) -> None:
    judge = Judge(losses)
    planner_kwargs = {"multiple": 2}
    asked = {"sparsity": sparsity, "sparsity_of": of, "planner_kwargs": planner_kwargs}
    plan = dynamic(cosines=cosines, judge=judge, **asked)
    cut = plan.slicing
    constant = plan_of(**asked).slicing
    tried = cut.search
    assert 1 <= len(tried) <= MOST and [schedule.loss for schedule in tried] == losses[: len(tried)]
    assert len({schedule.widths for schedule in tried}) == len(tried), "each is another one"
    assert tried[0].widths == constant.widths
    best = min(tried, key=lambda schedule: schedule.loss)
    assert (cut.widths, cut.base) == (best.widths, best.base)
    assert best.loss <= tried[0].loss, "never worse than equal widths"
    assert f"{best.loss:.4f} ± 0.0300 nats per token" in plan.reason and f"Of {len(tried)} schedules" in plan.reason
    assert (f"{tried[0].loss - best.loss:.4f} less than equal widths." in plan.reason) == (best is not tried[0])
    assert ("the one of equal widths loses least" in plan.reason) == (best is tried[0])
    # What was judged is what the plan describes, with the options that it will be sliced by.
    assert [(w.embed, *w.mlp_out[:-1]) for w in judge.seen] == [schedule.widths for schedule in tried]
    assert dataclasses.asdict(judge.options) == plan.operations[0].options and judge.options.tied is False
    assert cut.selection == cut.calibration == TEXT
    if of == "width":
        assert {sum(schedule.widths) for schedule in tried} == {sum(constant.widths)}
    else:
        step = by_hand(constant.widths) - by_hand((constant.widths[0] - 2,) * DEPTH)
        assert all(abs(by_hand(schedule.widths) - (1 - sparsity) * LLAMA.original) <= 2 * step for schedule in tried)


def test_bases_of_the_search_fall() -> None:
    cut = dynamic(judge=Judge([5.0, 4.0, 3.0, 2.0, 1.0]), planner_kwargs={"multiple": 2}).slicing
    bases = [schedule.base for schedule in cut.search]
    assert len(bases) == MOST and bases[0] == 0.25 and bases == sorted(bases, reverse=True) and len(set(bases)) == 5
    assert cut.base == bases[-1] == pytest.approx(0.25 - 0.20)


def test_equal_layers_leave_one_schedule() -> None:
    plan = dynamic(cosines=(0.5,) * DEPTH, judge=Judge([2.0] * MOST))
    assert [schedule.widths for schedule in plan.slicing.search] == [(48,) * DEPTH]
    assert plan.reason.startswith("Of 1 schedules the one of equal widths loses least")


def test_a_search_needs_the_model() -> None:
    with pytest.raises(ConfigError, match="slice_base='search' tries schedules on the model; plan from the model, or"):
        dynamic()


# ---- models that grow


def narrower_until_smaller(costs: Costs, step: int, **fields: Any) -> int | None:
    """The widest equal width, in these steps, with which a model is no larger than its base."""
    totals = ((width, at_width(width, costs, **fields).slicing.parameters) for width in range(64 - step, 0, -step))
    return next((width for width, total in totals if total <= costs.original), None)


def test_growth_is_told_with_figures(caplog: pytest.LogCaptureFixture) -> None:
    costs = costs_like(tie_word_embeddings=True, intermediate_size=48, vocab_size=192)
    even = narrower_until_smaller(costs, 8, surgery_kwargs={"tied": False})
    caplog.clear()
    plan = plan_of(costs, sparsity=0.125, surgery_kwargs={"tied": False})
    cut = plan.slicing
    assert cut.parameters > cut.original_parameters and even == 40
    growth = f"{100 * (cut.parameters / cut.original_parameters - 1):.1f} % more"
    (message,) = [record.getMessage() for record in caplog.records if "LARGER" in record.getMessage()]
    assert message == (
        f"slicing makes 'org/model' LARGER: {cut.parameters:,} parameters instead of {cut.original_parameters:,} "
        f"({growth}), as the table that head and embeddings shared becomes two, the shortcuts take "
        f"{cut.shortcut_parameters:,}; from 37.5% of the width on it gets smaller"
    )
    assert f"{-cut.saved:.1%} MORE parameters" in plan.describe()

    caplog.clear()
    assert at_width(even, costs, surgery_kwargs={"tied": False}).slicing.saved >= 0 and "LARGER" not in caplog.text
    assert at_width(even + 8, costs, surgery_kwargs={"tied": False}).slicing.saved < 0 and "LARGER" in caplog.text


def test_tied_models_stay_tied_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    kept, untied = plan_of(TIED).slicing, plan_of(TIED, surgery_kwargs={"tied": False}).slicing
    assert (kept.tied, untied.tied) == (True, False)
    # An own head of the full width, against one map of it to that of the embeddings.
    assert untied.parameters - kept.parameters == 96 * 64 - 64 * 48
    assert "LARGER" not in caplog.text


def test_where_no_width_makes_a_model_smaller(caplog: pytest.LogCaptureFixture) -> None:
    costs = costs_like(tie_word_embeddings=True, vocab_size=40000)
    assert narrower_until_smaller(costs, 8, surgery_kwargs={"tied": False}) is None
    plan_of(costs, surgery_kwargs={"tied": False})
    assert caplog.text.rstrip().endswith("; no width makes it smaller")


def test_break_even_of_a_plain_model_is_a_width_that_it_can_have(caplog: pytest.LogCaptureFixture) -> None:
    """Widths of a plain model are multiples of its heads too: of 24 here."""
    fields = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 48}
    costs = costs_like(tie_word_embeddings=True, vocab_size=1300, **fields)
    totals = {
        width: plan_of(costs, sparsity=1 - width / 96, surgery_kwargs={"basis": "global"}).slicing.parameters
        for width in (72, 48, 24)
    }
    even = next(width for width, total in totals.items() if total <= costs.original)
    assert totals[72] > costs.original
    caplog.clear()
    plan_of(costs, surgery_kwargs={"basis": "global"})
    assert f"from {1 - even / 96:.1%} of the width on it gets smaller" in caplog.text
    assert "becomes two" in caplog.text


# ---- one basis for the whole model


def test_one_basis_in_a_plain_family() -> None:
    fields = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    for tied in (False, True):
        costs = costs_like(tie_word_embeddings=tied, **fields)
        cut = plan_of(costs, surgery_kwargs={"basis": "global"}).slicing
        assert cut.widths == (72,) * DEPTH and set(cut.attn_out) | set(cut.mlp_out) == {72}, "24 = lcm(8, 6 heads)"
        assert (cut.plain, cut.tied, cut.basis, cut.shortcut_parameters) == (True, False, "global", 0)
    assert plan_of(costs, sparsity=0.3, surgery_kwargs={"basis": "global"}).slicing.widths == (48,) * DEPTH
    by_parameters = plan_of(costs, sparsity=0.2, sparsity_of="parameters", surgery_kwargs={"basis": "global"})
    assert by_parameters.slicing.widths[0] % 24 == 0
    kept = plan_of(costs, sparsity=0.3, surgery_kwargs={"basis": "global", "tied": True}).slicing
    assert (kept.plain, kept.tied, kept.widths[0]) == (False, True, 64), "a table with a map is no stock model"


def test_one_basis_in_other_families() -> None:
    costs = costs_like("gpt_neox")
    cut = plan_of(costs, model_type="gpt_neox", surgery_kwargs={"basis": "global"}).slicing
    assert (cut.plain, cut.shortcut_parameters, cut.widths) == (False, 0, (48,) * DEPTH)


def test_the_count_of_a_plain_model() -> None:
    """Its norms have weights again."""
    plan = plan_of(surgery_kwargs={"basis": "global"})
    cut = plan.slicing
    model = tiny_model("llama", DEPTH, **WIDE)
    sliced = blank_model(decoder_of(model), Widths(cut.embed, cut.attn_out, cut.mlp_out), shortcuts=False, tied=False)
    sliced.to_empty(device="cpu")
    assert cut.plain and count_parameters(export_plain(sliced)) == cut.parameters


def test_one_basis_and_several_widths() -> None:
    """Told with the recipe, not once the layers are measured."""
    with pytest.raises(ConfigError, match="basis='global' keeps one width in all layers; planner 'dynamic_width'"):
        PrunerConfig(method="dynamic-slicing", sparsity=0.25, surgery_kwargs={"basis": "global"})


@pytest.mark.parametrize(
    ("model_type", "fields"), [("gpt2", {}), ("opt", {}), ("llama", {"tie_word_embeddings": False})]
)
def test_what_cannot_stay_tied(model_type: str, fields: dict[str, Any]) -> None:
    tables = {"gpt2": {"n_embd": 64}, "opt": {"word_embed_proj_dim": 64}}
    costs = costs_like(model_type, **fields, **tables.get(model_type, {}))
    with pytest.raises(ConfigError, match="tied=True: head and embeddings of 'org/model' are no single table, or its"):
        plan_of(costs, model_type=model_type, surgery_kwargs={"tied": True})
    assert plan_of(costs, model_type=model_type).slicing.tied is False


# ---- records


def test_plans_travel(tmp_path: Path) -> None:
    plans = [
        plan_of(),
        plan_of(costs_like("phi"), model_type="phi"),
        plan_of(surgery_kwargs={"basis": "global", "orientation": "random", "seed": 3}),
        dynamic(planner_kwargs={"slice_base": 0.1}),
        dynamic(judge=Judge([3.0, 2.5, 2.75, 2.25, 4.0]), planner_kwargs={"multiple": 2}),
    ]
    assert len(plans[-1].slicing.search) == MOST
    for plan in plans:
        assert Plan.from_dict(plan.to_dict()) == plan
        plan.save(tmp_path)
        assert Plan.load(tmp_path) == plan


def test_scores_are_named_where_they_were_used() -> None:
    config = PrunerConfig(method="dynamic-slicing", sparsity=0.25, planner_kwargs={"slice_base": 0.1})
    plan = make_slicing_plan(config, reference(DEPTH), LLAMA, measured(), scores_digest="ab" * 32)
    assert plan.scores == "ab" * 32
    assert plan.slicing.calibration is plan.slicing.selection is None


# ---- what a recipe refuses, and what a model


SLICING = {"method": "slicegpt", "sparsity": 0.25}
DYNAMIC = {"method": "dynamic-slicing", "sparsity": 0.25}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {**DYNAMIC, "planner_kwargs": {"slice_base": 0.3}},
            r"slice_base=0\.3 is above sparsity=0\.25: every layer would lose more .* at most 0\.25",
        ),
        *[
            ({**DYNAMIC, "planner_kwargs": {"slice_base": bad}}, "slice_base=.*expected 'search', or a share from 0")
            for bad in (-0.1, 1, 1.2, True, "most", None, float("nan"))
        ],
        ({**SLICING, "planner_kwargs": {"slice_base": 0.1}}, "planner 'constant_width' has no option 'slice_base'"),
        *[
            ({**SLICING, "planner_kwargs": {"multiple": bad}}, "WidthOptions.multiple=.*whole number of at least 1")
            for bad in (0, -8, 2.5, True, "8")
        ],
        ({**SLICING, "planner_kwargs": {"multipel": 4}}, "has no option 'multipel'.*Did you mean 'multiple'"),
        ({"method": "slicegpt", "drop_layers": 2}, "drop_layers=2: method 'slicegpt' narrows all layers and drops no"),
        ({"method": "slicegpt", "layers": [1, 2]}, r"layers=\(1, 2\): method 'slicegpt' narrows all layers"),
        ({**SLICING, "protect_first": 1}, "protect_first=1: method 'slicegpt' narrows all layers"),
        ({**DYNAMIC, "protect_last": 2}, "protect_last=2: method 'dynamic-slicing' narrows all layers"),
        ({**SLICING, "planner": "window"}, "planner 'window' cuts layers, method 'slicegpt' cuts width; choose a pl"),
        ({**SLICING, "surgery": "drop"}, "surgery 'drop' cuts layers, method 'slicegpt' cuts width"),
        ({"planner": "constant_width", "drop_layers": 2}, "planner 'constant_width' cuts width, method 'uidl' cuts"),
        ({"surgery": "slice", "drop_layers": 2}, "surgery 'slice' cuts width, method 'uidl' cuts layers"),
        *[
            ({**SLICING, "sparsity_of": bad}, f"sparsity_of='{bad}': method 'slicegpt' cuts width; expected one of")
            for bad in ("layers", "bytes")
        ],
        ({"sparsity": 0.3, "sparsity_of": "width"}, "sparsity_of='width': method 'uidl' cuts layers; expected one of"),
        *[({**SLICING, "sparsity": bad}, "sparsity=.*above 0 and below 1") for bad in (0, 1, 1.2, -0.1, True)],
        ({**SLICING, "surgery_kwargs": {"basis": "local"}}, "basis='local'; expected one of: 'per_block', 'global'"),
        ({**SLICING, "surgery_kwargs": {"orientation": "up"}}, "orientation='up'; expected one of: 'pca', 'random'"),
        ({**SLICING, "surgery_kwargs": {"weighting": 1}}, "weighting=1"),
        ({**SLICING, "surgery_kwargs": {"tied": "yes"}}, "tied='yes'"),
        ({**SLICING, "surgery_kwargs": {"slice_head": 2}}, "slice_head=2"),
        ({**SLICING, "surgery_kwargs": {"seed": -1}}, "seed=-1; expected a whole number from 0"),
        ({**SLICING, "surgery_kwargs": {"bases": "global"}}, "surgery 'slice' has no option 'bases'.*mean 'basis'"),
        ({**SLICING, "surgery_kwargs": {"widths": [1]}}, "surgery 'slice' has no option 'widths'"),
        ({**SLICING, "measure_kwargs": {"skip_first": True}}, "method 'slicegpt' measures nothing"),
        ({**DYNAMIC, "measure_kwargs": {"skip": True}}, "measure 'redundancy' has no option 'skip'"),
    ],
)
def test_recipes_that_mean_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrunerConfig(**fields)


def test_what_recipes_of_slicing_stand_for() -> None:
    slicegpt, dynamic_slicing = PrunerConfig(**SLICING), PrunerConfig(**DYNAMIC)
    assert slicegpt.amount_of == dynamic_slicing.amount_of == "width"
    assert (slicegpt.searches, dynamic_slicing.searches) == (False, True)
    assert not PrunerConfig(**DYNAMIC, planner_kwargs={"slice_base": 0.25}).searches
    assert slicegpt.calibrates and dynamic_slicing.calibrates
    for config in (slicegpt, dynamic_slicing, PrunerConfig(**SLICING, surgery_kwargs={"basis": "global"})):
        assert PrunerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("model_type", "fields", "error", "message"),
    [
        (
            "gemma2",
            {},
            ArchitectureError,
            "'gemma2'.* cannot be sliced: its norms act on what attention and MLP write",
        ),
        ("mamba", {}, ArchitectureError, "its blocks have no attention and MLP"),
        ("cohere", {}, ArchitectureError, "model_type 'cohere', for which slicing is not done yet; expected one of"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, CheckpointError, "holds quantized weights"),
    ],
)
def test_models_that_cannot_be_sliced(
    model_type: str, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = tiny_config(model_type, DEPTH)
    for key, value in fields.items():
        setattr(config, key, value)
    with pytest.raises(error, match=message):
        costs_of_config(config, "org/model")


def test_a_base_above_what_the_parameters_need_is_named() -> None:
    """10 % of the parameters go long before half of the width: the slice base is what stands in the way."""
    with pytest.raises(ConfigError, match=r"slice_base=0\.5 is above the share of the width that goes, 0\.\d+; lower"):
        dynamic(sparsity=0.1, sparsity_of="parameters", planner_kwargs={"slice_base": 0.5})


def test_widths_are_multiples() -> None:
    for sparsity, multiple in itertools.product((0.1, 0.25, 0.5), (1, 3, 8, 16)):
        widths = plan_of(sparsity=sparsity, planner_kwargs={"multiple": multiple}).slicing.widths
        assert widths[0] % multiple == 0
        assert (1 - sparsity) * WIDTH - multiple < widths[0] <= (1 - sparsity) * WIDTH + 1e-9
