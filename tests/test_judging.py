"""The judge of cuts against models that are really rebuilt, and what it costs against counted runs of blocks."""

import copy
import math
import random
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import judging, precision
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.architecture.sublayers import has_part, part_module
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.head import Head
from hf_prune.judging import CutJudge
from hf_prune.measure import measure_model
from hf_prune.objective import Left, OutputMeasure
from hf_prune.planners.order import greedy
from hf_prune.planners.problem import Problem
from hf_prune.registry import Entry, measure
from hf_prune.runner import Walker
from hf_prune.samples import Samples, batches
from hf_prune.surgery import prune_layers
from hf_prune.tries import branchings
from hf_prune.units import Cut, Part, Unit, as_cut, layers_of

from .making import TEXT, reference
from .tiny import DEPTH, VOCAB, every_type, tiny_model, tokens

SEQUENCES = [tokens(1, length, length)[0] for length in (7, 12, 4, 12, 9)]
FEW = SEQUENCES[3:]


def exact(model_type: str) -> PreTrainedModel:
    """In float64, which grouped products of experts do not know."""
    model = tiny_model(model_type).double()
    model.set_experts_implementation("eager")
    return model


def rebuilt(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """The same weights without those blocks, as a stock model."""
    copied = structural_copy(model)
    return prune_layers(copied, layers_of(cut)) if cut else copied


def log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].double(), -1)


def stock_scores(
    model: PreTrainedModel, cut: PreTrainedModel, text: Sequence[torch.Tensor] = SEQUENCES
) -> tuple[float, float]:
    """Loss and KL of a cut model, sequence by sequence, without anything of the judge."""
    losses, divergences, count = 0.0, 0.0, 0
    for ids in text:
        whole, ours = (log_probabilities(each, ids)[:-1] for each in (model, cut))
        losses -= ours.gather(1, ids[1:, None]).sum().item()
        divergences += (whole.exp() * (whole - ours)).sum().item()
        count += len(ids) - 1
    return losses / count, divergences / count


def random_cuts(seed: str, count: int) -> list[Cut]:
    draw = random.Random(seed)
    return [as_cut(draw.sample(range(DEPTH), draw.randint(1, DEPTH - 2))) for _ in range(count)]


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """The blocks of a Llama that run, in order; where a stub stands in for a block, its MLP does not run."""
    runs: list[int] = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda _m, _a, i=i: runs.append(i))
        for i, block in enumerate(model.model.layers)
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("model_type", every_type())
def test_scores_are_those_of_the_rebuilt_model(model_type: str) -> None:
    model = exact(model_type)
    keep = random.Random(model_type).randrange(DEPTH)
    cuts = [frozenset(), as_cut(set(range(DEPTH)) - {keep}), *random_cuts(model_type, 2)]
    found = {name: CutJudge(decoder_of(model), FEW, name, batch_size=2).scores(cuts) for name in ("loss", "kl")}
    assert found["kl"][0] == 0.0
    for cut, loss, kl in zip(cuts, found["loss"], found["kl"], strict=True):
        expected = stock_scores(model, rebuilt(model, cut), FEW)
        assert (loss, kl) == pytest.approx(expected, rel=1e-6, abs=1e-6), sorted(cut)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_scores_in_float32(model_type: str) -> None:
    model = tiny_model(model_type)
    cuts = random_cuts(model_type, 3)
    for number, name in enumerate(("loss", "kl")):
        found = CutJudge(decoder_of(model), SEQUENCES, name, batch_size=5).scores([frozenset(), *cuts])
        assert number == 0 or found[0] == 0.0
        expected = [stock_scores(model, rebuilt(model, cut))[number] for cut in cuts]
        assert found[1:] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "falcon", "qwen3_moe", "qwen3_next"])
def test_parts_are_silenced_as_by_hooks(model_type: str) -> None:
    model = exact(model_type)
    decoder = decoder_of(model)
    units = [Unit(2, "attention"), Unit(2, "mlp"), Unit(5, "mlp"), Unit(6)]
    assert all(has_part(decoder.blocks[unit.layer], unit.part) for unit in units)
    cuts = [frozenset(units[:1]), frozenset(units[:2]), frozenset(units[1:3]), frozenset(units)]
    found = CutJudge(decoder, SEQUENCES, "kl", batch_size=2).scores(cuts)
    for cut, kl in zip(cuts, found, strict=True):
        silent = copy.deepcopy(model)
        for unit in cut:
            if unit.part != "block":
                part_module(decoder_of(silent).blocks[unit.layer], unit.part).register_forward_hook(zeroed)
        dropped = prune_layers(silent, layers_of(cut)) if layers_of(cut) else silent
        assert kl == pytest.approx(stock_scores(model, dropped)[1], rel=1e-6, abs=1e-9)


def zeroed(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


@pytest.mark.parametrize("model_type", every_type())
def test_head_is_the_models_own(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    left: list[torch.Tensor] = []
    walker, ids = Walker(decoder), SEQUENCES[1]
    head = Head(decoder, walker.tuples)
    walker.walk(batches([ids], 1), cuts=[()], leave=lambda _i, _n, hidden, _m: left.append(hidden[0]))
    with torch.inference_mode():
        expected = model(input_ids=ids[None], use_cache=False).logits[0]
        found = head(left[0], ids)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert all("forward" not in block.__dict__ for block in decoder.blocks)


def test_heads_that_change_their_logits_are_there() -> None:
    """The families whose heads do more than a product: without that, the test above would prove little."""
    assert tiny_model("gemma2").config.final_logit_softcapping
    assert tiny_model("cohere").config.logit_scale != 1
    assert tiny_model("granite").config.embedding_multiplier == 2


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt", "mamba", "bloom", "qwen3_next"])
def test_padded_batches_equal_one_by_one(model_type: str) -> None:
    decoder = decoder_of(tiny_model(model_type))
    cuts = random_cuts(model_type, 3)
    padded, alone = (CutJudge(decoder, SEQUENCES, "kl", batch_size=size).scores(cuts) for size in (5, 1))
    assert padded == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", ["loss", "kl"])
def test_blocks_run_as_often_as_the_tree_says(name: str) -> None:
    model = tiny_model("llama")
    cuts = [as_cut(layers) for layers in ([1, 3], [1, 4], [1, 3, 6], [7], [0, 7], [7])]
    judge = CutJudge(decoder_of(model), SEQUENCES, name, batch_size=2)
    with counted(model) as runs:
        judge.scores(cuts)
    asked = [frozenset(), *cuts] if name == "kl" else cuts
    tree = branchings(asked, DEPTH)
    assert len(runs) == len(judge._text(1.0)) * tree.block_runs()
    assert judge.forwards == tree.block_runs() / DEPTH
    assert tree.block_runs() < sum(DEPTH - len(cut) for cut in asked)


def test_shared_prefixes_are_computed_once() -> None:
    """Each state that enters a block is told by the blocks before it: none comes twice for one batch."""
    model = tiny_model("llama")
    decoder = decoder_of(model)
    cuts = [as_cut(layers) for layers in ([2], [3], [2, 3], [2, 6], [6], [0], [0, 1], [5], [4, 7])]
    entered: list[tuple[int, int]] = []
    judge = CutJudge(decoder, SEQUENCES[:1], "kl")
    for i, block in enumerate(model.model.layers):
        block.input_layernorm.register_forward_pre_hook(
            lambda _m, args, i=i: entered.append((i, hash(args[0].numpy().tobytes())))
        )
    judge.scores(cuts)
    assert len(set(entered)) == len(entered) == branchings([frozenset(), *cuts], DEPTH).block_runs()


def test_duplicates_and_the_whole_cost_nothing_more() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl")
    one = judge.scores([as_cut([3])])
    spent = judge.forwards
    assert judge.scores([as_cut([3]), frozenset(), as_cut([3])]) == [one[0], 0.0, one[0]]
    assert judge.forwards == 2 * spent


def planted(layer: int, value: float) -> PreTrainedModel:
    model = tiny_model("llama")
    model.model.layers[layer].mlp.down_proj.weight.data[3, 2] = value
    return model


@pytest.mark.parametrize("name", ["loss", "kl"])
def test_scores_that_are_not_finite_name_the_cut(name: str) -> None:
    judge = CutJudge(decoder_of(planted(5, math.nan)), SEQUENCES, name)
    with pytest.raises(MeasureError, match=rf"measure '{name}' of '.*' without block 2, block 3 is nan; expected a f"):
        judge.scores([as_cut([2, 3])])
    if name == "loss":
        assert all(map(math.isfinite, judge.scores([as_cut([5]), as_cut([2, 5])])))
        with pytest.raises(MeasureError, match="without nothing is nan"):
            judge.whole()
        with pytest.raises(MeasureError, match="without attention of block 5 is nan"):
            judge.importances(frozenset(), [Unit(5, "attention")])


@pytest.mark.parametrize("compares", [True, False])
def test_logits_in_memory_stay_within_the_bound(compares: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watching:
        def add(self, left: Left) -> None:
            nonlocal most
            alive.extend(weakref.ref(one.logits) for one in (left, left.whole) if one is not None)
            unique = {id(t): t.numel() * t.element_size() for ref in alive if (t := ref()) is not None}
            most = max(most, sum(unique.values()))

        def value(self) -> float:
            return 0.0

    one = max(map(len, SEQUENCES)) * VOCAB * 4
    monkeypatch.setattr(judging, "_LOGITS", 2 * one)
    entry = Entry("watching", "", "", lambda: OutputMeasure(Watching, compares=compares), needs="outputs")
    monkeypatch.setitem(measure._load(), "watching", entry)
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "watching", batch_size=5)
    judge.scores(random_cuts("memory", 3))
    assert 0 < most <= (3 * one if compares else one)  # two rows of the whole model, one of a cut
    assert len(judge._text(1.0)) == (3 if compares else 1)


def test_one_sequence_that_is_longer_than_the_bound_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_LOGITS", 1)
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl", batch_size=5)
    assert [len(batch.input_ids) for batch in judge._text(1.0)] == [1] * len(SEQUENCES)


def test_half_precision_computes_as_fast_as_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").bfloat16()
    wide = copy.deepcopy(model).float()
    cuts = random_cuts("half", 3)
    expected = CutJudge(decoder_of(wide), SEQUENCES, "kl").scores(cuts)
    asked: list[torch.dtype] = []

    def float32(_device: torch.device, dtype: torch.dtype) -> torch.dtype:
        asked.append(dtype)
        return torch.float32

    monkeypatch.setattr(precision, "faster_dtype", float32)
    kept = [parameter.data_ptr() for parameter in model.parameters()]
    assert CutJudge(decoder_of(model), SEQUENCES, "kl", batch_size=5).scores(cuts) == expected
    assert [parameter.data_ptr() for parameter in model.parameters()] == kept
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    many = CutJudge(decoder_of(model), SEQUENCES, "kl", batch_size=1)
    asked.clear()
    many.scores(cuts)
    assert asked.count(torch.bfloat16) == 1, "weights are cast once, not for each batch"


def test_importances_of_outputs_are_leave_one_out() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl")
    removed, units = as_cut([2, 5]), [Unit(0), Unit(3), Unit(7)]
    found = judge.importances(removed, units)
    assert list(found) == units
    assert list(found.values()) == judge.scores([removed | {unit} for unit in units])


def test_measures_that_cannot_be_asked_say_so() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "angular")
    with pytest.raises(ConfigError, match="'angular' tells of single units, not of what a whole cut does; .* kl"):
        judge.scores([as_cut([1])])
    with pytest.raises(ConfigError, match=r"chooses by the importance of each attention; measure 'angular' tells di"):
        judge.importances(frozenset(), [Unit(3, "attention")])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "block") for name in ("angular", "cosine", "cka", "redundancy", "sublayer_cosine", "taylor")),
        *((name, "mlp") for name in ("block_influence", "entropy", "magnitude")),
    ],
)
def test_a_search_by_what_a_measure_does_not_tell_is_refused_before_any_forward(name: str, part: Part) -> None:
    model = tiny_model("llama")
    judge = CutJudge(decoder_of(model), SEQUENCES, name)
    units = tuple(Unit(i, part) for i in range(DEPTH))
    with counted(model) as runs, pytest.raises(ConfigError, match=f"measure '{name}' (tells|looks at the whole)"):
        greedy(Problem("org/model", DEPTH, units, 2, None, judge))
    with counted(model) as again, pytest.raises(ConfigError, match=f"measure '{name}' (tells|looks at the whole)"):
        judge.importances(frozenset(), units)
    assert not runs and not again


@pytest.mark.parametrize(("model_type", "most"), [("llama", 2.25), ("gpt_neox", 3.0)])
def test_runs_that_a_measure_asks_for_are_counted_and_promised(model_type: str, most: float) -> None:
    """Blocks run again without their parts; how often depends on the family, and is known behind the first batch."""
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    units = [Unit(i, part) for i in range(DEPTH) for part in ("attention", "mlp")]
    judge = CutJudge(decoder, SEQUENCES, "sublayer_cosine", batch_size=1)
    runs = 0

    def run(*_: Any) -> None:
        nonlocal runs
        runs += 1

    silent = as_cut([2, 5])
    for block in decoder.blocks:  # each run of a block, and no silenced part, norms what it is given
        block.input_layernorm.register_forward_pre_hook(run)
    promised = judge.cost_of_rounds(units, 2)
    judge.importances(silent, [unit for unit in units if unit.layer not in (2, 5)])
    assert runs == round(judge.forwards * DEPTH * len(SEQUENCES))
    assert 1.5 < judge.forwards <= 0.75 * most and promised == 6
    tight = CutJudge(decoder, SEQUENCES, "sublayer_cosine", limit=2)
    with pytest.raises(ConfigError, match="has come to 3 forwards .* allows 2"):
        tight.importances(frozenset(), units)
    with pytest.raises(ConfigError, match="takes up to 3 forwards .* allows 2"):
        measure_model(decoder, Samples(tuple(FEW), TEXT), model=reference(DEPTH), name=tight.objective, max_forwards=2)


def test_parts_that_are_not_there_are_told() -> None:
    samples = Samples(tuple(FEW), TEXT)
    for name in ("loss", "kl", "sublayer_cosine"):
        with pytest.raises(
            ConfigError, match=r"has no attentions.* that could go alone .*MambaBlock.*take unit='block'"
        ):
            measure_model(
                decoder_of(tiny_model("mamba")), samples, model=reference(DEPTH), name=name, unit="attention"
            )


def test_whole() -> None:
    model = tiny_model("llama").double()
    assert CutJudge(decoder_of(model), SEQUENCES, "kl").whole() == 0.0
    assert CutJudge(decoder_of(model), SEQUENCES, "loss").whole() == pytest.approx(stock_scores(model, model)[0])


def test_share_of_the_text_is_its_first_sequences() -> None:
    decoder, cuts = decoder_of(tiny_model("llama").double()), random_cuts("share", 2)
    for share, count in ((0.01, 1), (7 / 44, 1), (7.5 / 44, 2), (19 / 44, 2), (0.5, 3), (0.999, 5), (1.0, 5)):
        judge = CutJudge(decoder, SEQUENCES, "loss")
        few = CutJudge(decoder, SEQUENCES[:count], "loss")
        assert judge.scores(cuts, share) == pytest.approx(few.scores(cuts), rel=1e-12)
        portion = sum(map(len, SEQUENCES[:count])) / 44
        assert judge.forwards == pytest.approx(few.forwards * portion)
        assert judge.cost(3, share) == pytest.approx(3 * portion)
    for share in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"share=.* of the calibration text; expected a number above 0"):
            judge.scores(cuts, share)


def test_comparing_costs_the_whole_model_besides() -> None:
    assert CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl").cost(3) == 4
    assert CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "loss").cost(3) == 3


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("loss", "block"),
        ("kl", "block"),
        ("kl", "attention"),
        ("shapley_near", "block"),
        ("block_influence", "block"),
        ("sublayer_cosine", "attention"),
    ],
)
def test_cost_of_rounds_is_never_less_than_what_they_take(name: str, part: str) -> None:
    decoder, draw = decoder_of(tiny_model("llama")), random.Random(name)
    for _ in range(4):
        units = [Unit(i, part) for i in sorted(draw.sample(range(DEPTH), draw.randint(3, 6)))]  # type: ignore[arg-type]
        rounds = draw.randint(1, len(units) - 1)
        judge = CutJudge(decoder, SEQUENCES[:1], name)
        allowed = judge.cost_of_rounds(units, rounds)
        removed: Cut = frozenset()
        for _ in range(rounds):
            left = [unit for unit in units if unit not in removed]
            judge.importances(removed, left)
            removed |= {draw.choice(left)}
        assert judge.forwards <= allowed + 1e-9
        if name != "shapley_near":  # whose cuts share less or more as they are drawn
            assert allowed <= judge.forwards + 2 * rounds * (1 if part == "block" else 2)


def test_forwards_that_are_not_allowed_are_refused_with_their_number() -> None:
    model = tiny_model("llama")
    judge = CutJudge(decoder_of(model), SEQUENCES, "kl", limit=20)
    judge.allow(20.0, "planner 'x'")
    with counted(model) as runs, pytest.raises(ConfigError) as caught:
        judge.allow(20.4, "planner 'x'")
    assert not runs
    assert (
        "planner 'x' of 'LlamaForCausalLM' takes up to 21 forwards of the calibration text; max_forwards allows 20"
        in (str(caught.value))
    )
    assert "(--max-forwards 21)" in str(caught.value)
    judge.scores([as_cut([0])])
    with pytest.raises(ConfigError, match="takes up to 22 forwards"):
        judge.allow(20.0, "planner 'x'")
    tight = CutJudge(decoder_of(model), SEQUENCES, "kl", limit=2)
    with counted(model) as runs, pytest.raises(ConfigError, match="has come to 3 forwards .* allows 2"):
        tight.scores([as_cut([0]), as_cut([0, 1])])
    assert not runs


def test_measuring_is_refused_before_it_begins() -> None:
    """Each unit left out, and the whole model besides: that it will be too much is told at once."""
    model = tiny_model("llama")
    samples = Samples(tuple(SEQUENCES), TEXT)
    found = measure_model(decoder_of(model), samples, model=reference(DEPTH), name="loss")
    assert found.forwards is not None and 5 < found.forwards < 6
    with counted(model) as runs, pytest.raises(ConfigError, match=r"measure 'loss' of '.*' takes up to 6 forwards"):
        measure_model(decoder_of(model), samples, model=reference(DEPTH), name="loss", max_forwards=5)
    assert len(runs) <= 2 * DEPTH  # the walker's probe alone
    again = measure_model(decoder_of(model), samples, model=reference(DEPTH), name="loss", max_forwards=6)
    assert again.importances == found.importances
