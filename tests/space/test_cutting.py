"""Another cut than the pushed one: chosen from stored scores alone, and made without touching the shared original."""

import copy
import dataclasses
import gc
import itertools
import threading
import time
import weakref

import pytest
import torch

from hf_prune import loading
from hf_prune.amounts import Sizes
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import parameter_bytes, structural_copy
from hf_prune.config import PrunerConfig
from hf_prune.demo import model_folder
from hf_prune.errors import ConfigError, HubError, PruneError
from hf_prune.methods import METHODS
from hf_prune.plan import make_plan
from hf_prune.records import Plan
from hf_prune.registry import planner
from hf_prune.space import comparing, cut_page, cutting, pairs
from hf_prune.space.cutting import compare_cut, cut_copy, layer_parameters, offers, plan_cut
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO
from tests.making import logits
from tests.space.conftest import AS_ALICE, AS_BOB, BASE, NOBODY
from tests.space.records import card_pair, deeper, demo_pair, with_records
from tests.tiny import tokens

PROMPT = "The old man looked out at the sea and"


@pytest.fixture(scope="module")
def original():
    """The embedded model; every test must leave it as it was."""
    source = loading.Source(demo_pair().records.plan.model, model_folder(), False)
    model = loading.load_model(source, dtype=torch.float32)
    model.requires_grad_(False)
    return model


# --- the choice


@pytest.mark.parametrize("method", ["uidl", "simple"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_a_cut_is_the_plan_that_the_project_makes(method, count):
    pair = demo_pair()
    cut = plan_cut(pair, method, count)
    scores = pair.records.scores if METHODS[method].measure else None
    wanted = make_plan(
        PrunerConfig(method=method, drop_layers=count), pair.records.plan.model, Sizes((), (), 0, 0), scores
    )
    assert cut.plan == wanted and cut.dropped == wanted.dropped and cut.kept == wanted.kept
    assert Plan.from_dict(cut.plan.to_dict()) == cut.plan


def test_the_pushed_cut_comes_out_again_with_its_standard_error():
    pair = demo_pair()
    plan = pair.records.plan
    cut = plan_cut(pair, plan.method, len(plan.dropped))
    assert cut.plan == plan
    first, last = plan.dropped[0], plan.dropped[-1]
    assert cut.distance_standard_error == pair.records.scores.standard_errors[first][last + 1]
    assert plan_cut(pair, "simple", 2).distance_standard_error is None


@pytest.mark.parametrize("count", [1, 3, 11])
def test_sizes_are_those_of_the_model_that_comes_of_it(original, count):
    pair = demo_pair()
    cut = plan_cut(pair, "simple", count)
    model = cut_copy(original, cut.plan)
    assert cut.parameters == sum(p.numel() for p in model.parameters())
    assert cut.bytes == parameter_bytes(model)
    assert cut.decode == pytest.approx(parameter_bytes(original) / parameter_bytes(model))
    assert cut.prefill == pytest.approx(12 / (12 - count))
    assert "Estimates, not measurements" in cut.rule


def test_sizes_of_layers_come_from_headers_else_from_what_the_pushed_cut_took():
    pair = card_pair("uidl-healed")
    exact = layer_parameters(demo_pair())
    assert layer_parameters(pair) == exact and len(exact) == 12
    known = dataclasses.replace(pair.original, layer_parameters=(5,) * 12)
    assert layer_parameters(dataclasses.replace(pair, original=known)) == (5,) * 12
    assert layer_parameters(card_pair("sliced")) is None
    unknown = plan_cut(card_pair("sliced"), "simple", 3)
    assert unknown.parameters is unknown.bytes is unknown.prefill is unknown.decode is None
    assert "not known" in cut_page.page(card_pair("sliced"), unknown)
    heading = cut_page.heading(card_pair("sliced"), unknown, "cut")
    assert "9 layers" in heading and "parameters" not in heading
    pair = demo_pair()
    assert "4.33\xa0M parameters" in cut_page.heading(pair, plan_cut(pair, "simple", 3), "cut")


def test_a_cut_of_80_layers_is_chosen_at_once():
    pair = deeper(card_pair("uidl-pruned"), 80)
    plan_cut(pair, "uidl", 1)
    taken = []
    for count in (1, 20, 79):
        start = time.thread_time()  # of this thread alone: machines that run tests have other work
        cut_page.page(pair, plan_cut(pair, "uidl", count))
        taken.append(time.thread_time() - start)
    assert min(taken) < 0.2


def test_many_layers_and_close_choices_are_warned_of():
    pair = demo_pair()
    assert not plan_cut(pair, "simple", 3).warnings
    assert "4 of 12 layers (33%) are gone" in plan_cut(pair, "simple", 4).warnings[0]
    close = card_pair("uidl-pruned")
    assert any("within two standard errors" in text for text in plan_cut(close, "uidl", 3).warnings)


def test_visitors_do_not_fill_the_log(caplog):
    plan_cut(demo_pair(), "simple", 11)
    assert not caplog.records


def test_methods_are_offered_where_the_records_have_what_they_need():
    first = [(o.method, o.most, o.why_not) for o in offers(demo_pair())][:2]
    assert first == [("uidl", 11, None), ("simple", 11, None)]
    for pair in (card_pair("sliced"), with_records(demo_pair(), scores=None)):
        uidl, simple, *others = offers(pair)
        assert not [other for other in others if other.why_not]
        assert (simple.method, simple.why_not) == ("simple", None)
        assert uidl.most == 0 and "chooses by scores of measure 'angular'" in uidl.why_not
        assert "Take a method that needs no scores" in cut_page.not_offered(offers(pair))
        with pytest.raises(ConfigError, match="needs no scores"):
            plan_cut(pair, "uidl", 2)


def test_of_the_many_methods_only_those_are_listed_that_stored_scores_can_tell():
    pair = demo_pair()
    for offer in offers(pair):
        method = METHODS[offer.method]
        assert (method.cuts, method.unit, method.surgery) == ("layers", "block", "drop") and offer.why_not is None
        entry = planner.get(method.planner)
        assert entry.needs == "nothing" or (entry.needs, method.measure) == ("scores", "angular")
        cut = plan_cut(pair, offer.method, 3)
        assert len(cut.dropped) == 3 and "anatomy-lead" in cut_page.page(pair, cut)
    for name, words in (
        ("sleb", "tries cuts on the model"), ("slicegpt", "narrows all layers"),
        ("llm-drop-attention", "removes parts of layers"), ("laco", "puts something fitted in the place"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"method '{name}' {words}.*expected one of: uidl, simple$"):
            plan_cut(pair, name, 2)


def measured(**changes):
    """The demo's pair with importances of its layers in place of distances; layer 4 matters least, then 9."""
    pair = demo_pair()
    values = tuple(0.1 * abs(i - 4) + (0.45 if i not in (4, 9) else 0) for i in range(12))
    importances = {"block": values}
    empty = {"distances": (), "standard_errors": ()}
    scores = dataclasses.replace(
        pair.records.scores, measure="block_influence", options={}, importances=importances, **empty
    )
    return with_records(pair, "e" * 40, scores=dataclasses.replace(scores, **changes))


def test_importances_choose_scattered_layers():
    pair = measured()
    assert "shortgpt" in [offer.method for offer in offers(pair) if offer.why_not is None]
    assert "shortgpt" not in [offer.method for offer in offers(demo_pair())]
    cut = plan_cut(pair, "shortgpt", 2)
    assert cut.dropped == (3, 4) or cut.dropped == (4, 9)
    page = cut_page.page(pair, cut)
    assert "block_influence of the layer 0.000" in page and cut.distance_standard_error is None


def test_options_that_make_another_method_are_looked_at(monkeypatch):
    other = dataclasses.replace(METHODS["shortgpt"], measure_kwargs={"angular": True})
    monkeypatch.setitem(METHODS, "shortgpt", other)
    assert "shortgpt" not in [offer.method for offer in offers(measured())]
    with pytest.raises(ConfigError, match="needs no scores"):
        plan_cut(measured(), "shortgpt", 2)


@pytest.mark.parametrize(
    ("method", "count", "words"),
    [
        ("slicegpt", 3, "narrows all layers and drops none; expected one of: uidl, simple"),
        ("udl", 3, "Did you mean 'uidl'"),
        ("<script>", 3, "unknown method"),
        ("uidl", 0, "drop_layers=0"),
        ("uidl", 12, "leaves 0 of 12"),
        ("simple", 12, "at most 11 can go"),
        ("uidl", 2.5, "drop_layers"),
        ("uidl", True, "drop_layers"),
        ("uidl", "3", "drop_layers"),
    ],
)
def test_what_cannot_be_cut_is_refused(method, count, words):
    with pytest.raises(ConfigError, match=words):
        plan_cut(demo_pair(), method, count)


def test_scores_that_are_not_whole_or_of_another_model_are_refused():
    pair = demo_pair()
    scores = pair.records.scores
    ragged = dataclasses.replace(scores, distances=scores.distances[:-1])
    other = dataclasses.replace(scores, model=dataclasses.replace(scores.model, digest="0" * 64))
    for bad, words in ((ragged, "expected 13 rows"), (other, "is another model")):
        with pytest.raises(ConfigError, match=words):
            plan_cut(with_records(pair, scores=bad), "uidl", 2)


# --- the model that comes of it


def state(model):
    """Everything of a model that a cut could change: numbers of blocks, config, weights and what it answers."""
    decoder = decoder_of(model)
    return (
        [block.self_attn.layer_idx for block in decoder.blocks],
        copy.deepcopy(model.config.to_dict()),
        {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()},
        logits(model, tokens()),
    )


def same(one, other):
    numbers, config, weights, answers = one
    assert numbers == other[0] and config == other[1] and weights.keys() == other[2].keys()
    for name, (place, tensor) in weights.items():
        assert place == other[2][name][0] and torch.equal(tensor, other[2][name][1])
    assert torch.equal(answers, other[3])


def test_a_cut_shares_every_weight_and_leaves_the_original_whole(original):
    before = state(original)
    cut = plan_cut(demo_pair(), "uidl", 4)
    model = cut_copy(original, cut.plan)
    mine, theirs = decoder_of(model), decoder_of(original)
    assert mine.num_layers == 8 and [b.self_attn.layer_idx for b in mine.blocks] == list(range(8))
    assert model.config.num_hidden_layers == 8 and original.config.num_hidden_layers == 12
    places = {p.data_ptr() for p in original.parameters()}
    assert all(p.data_ptr() in places for p in model.parameters())
    for block, layer in zip(mine.blocks, cut.kept, strict=True):
        for (name, one), (_, other) in zip(
            block.named_parameters(), theirs.blocks[layer].named_parameters(), strict=True
        ):
            assert one is other, name
    assert not torch.equal(logits(model, tokens()), before[3])
    same(before, state(original))


def test_a_cut_answers_as_the_same_cut_made_of_a_copy_does(original):
    plan = plan_cut(demo_pair(), "uidl", 3).plan
    alone = decoder_of(copy.deepcopy(original))
    expected = cutting.apply_plan(alone, plan).model
    assert torch.equal(logits(cut_copy(original, plan), tokens()), logits(expected, tokens()))


def test_two_cuts_at_once_do_not_mix(original):
    before = state(original)
    pair = demo_pair()
    cuts = [plan_cut(pair, "uidl", 2), plan_cut(pair, "simple", 5)]
    expected = [logits(cut_copy(original, cut.plan), tokens()) for cut in cuts]
    found, failures = [None, None], []

    def work(which):
        try:
            for _ in range(10):
                found[which] = logits(cut_copy(original, cuts[which].plan), tokens())
                assert torch.equal(found[which], expected[which])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and not torch.equal(*(f[:, :, :5] for f in found))
    same(before, state(original))


def test_a_plan_for_another_model_is_refused_and_changes_nothing(original):
    before = state(original)
    plan = plan_cut(deeper(demo_pair(), 14), "simple", 2).plan
    with pytest.raises(ConfigError, match="14 blocks"):
        cut_copy(original, plan)
    same(before, state(original))


# --- writing with it


def writing(pair, method, count, visitor=NOBODY, **changes):
    sampling = Sampling(**{"max_new_tokens": 12, **changes})
    return compare_cut(pair, method, count, PROMPT, sampling, visitor)


def test_both_write_and_the_cut_is_what_was_asked_for():
    frames = list(writing(demo_pair(), "uidl", 6))
    last = frames[-1]
    assert last.stage == "done" and last.original != last.pruned and last.parting is not None
    assert last.original_cost.layers == 12 and last.pruned_cost.layers == 6
    cut = plan_cut(demo_pair(), "uidl", 6)
    assert (last.pruned_cost.parameters, last.pruned_cost.bytes) == (cut.parameters, cut.bytes)
    assert [stage for stage, _ in itertools.groupby(f.stage for f in frames)][-3:] == ["comparing", "timing", "done"]
    plain = list(comparing.compare(DEMO, PROMPT, Sampling(max_new_tokens=12), NOBODY))[-1]
    assert plain.original == last.original, "the original beside it is the same"
    assert plain.original_cost.layers == 12 and plain.pruned_cost.layers == 8, "figures of the cut are its own"


def test_the_shared_pair_is_unchanged_while_a_cut_writes_and_after_it_left():
    pair = demo_pair()
    with pairs.opened(pair, NOBODY) as loaded:
        before = state(loaded.original), state(loaded.pruned)
        one, other = writing(pair, "uidl", 2), writing(pair, "simple", 7)
        for _ in range(4):
            next(one), next(other)
            same(before[0], state(loaded.original))
        one.close()
        assert list(other)[-1].stage == "done"
        same(before[0], state(loaded.original))
        same(before[1], state(loaded.pruned))


@pytest.mark.parametrize("leaves", [True, False], ids=["the visitor leaves", "to the end"])
def test_the_copy_is_gone_afterwards(monkeypatch, leaves):
    made = []

    def noted(model):
        twin = structural_copy(model)
        made.append(weakref.ref(twin))
        return twin

    monkeypatch.setattr(cutting, "structural_copy", noted)
    frames = writing(demo_pair(), "uidl", 3)
    for frame in frames:
        if leaves and frame.stage == "writing" and frame.pruned:
            break
    frames.close()
    assert len(made) == 1
    until = time.monotonic() + 10
    while made[0]() is not None and time.monotonic() < until:  # a thread may be at its last token
        gc.collect()
        time.sleep(0.05)
    assert made[0]() is None


def test_bad_requests_are_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(pairs, "opened", lambda *_: pytest.fail("a model was opened"))
    for pair, method, count, prompt, sampling in (
        (demo_pair(), "uidl", 12, PROMPT, Sampling()),
        (demo_pair(), "uidl", 3, "x" * 100_000, Sampling()),
        (demo_pair(), "uidl", 3, PROMPT, Sampling(temperature=-1)),
        (card_pair("sliced"), "uidl", 3, PROMPT, Sampling()),
    ):
        with pytest.raises(PruneError):
            list(compare_cut(pair, method, count, prompt, sampling, NOBODY))


@pytest.mark.slow
def test_a_pair_of_the_hub_is_cut_and_every_visitor_is_asked_for(hub, pushed):
    pair = pairs.find(pushed("pruned"), NOBODY)
    assert [offer.method for offer in offers(pair) if offer.why_not is None] == ["uidl", "simple"]
    last = list(compare_cut(pair, "uidl", 2, "abc", Sampling(max_new_tokens=4), NOBODY))[-1]
    assert last.stage == "done" and (last.original_cost.layers, last.pruned_cost.layers) == (6, 4)
    cut = plan_cut(pair, "uidl", 2)
    assert last.pruned_cost.parameters == cut.parameters
    assert "acme/space-base without layers" in cutting.as_half(pair, cut).name
    hub.add_repo(BASE, {}, private=True)
    try:
        with pytest.raises(HubError):
            list(compare_cut(pair, "uidl", 2, "abc", Sampling(max_new_tokens=4), AS_BOB))
        again = list(compare_cut(pair, "uidl", 2, "abc", Sampling(max_new_tokens=4), AS_ALICE))
        assert again[-1].stage == "done"
    finally:
        hub.add_repo(BASE, {}, private=False)  # others of the session use it
