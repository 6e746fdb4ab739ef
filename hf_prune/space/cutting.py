"""Another cut than the one that was pushed: chosen from the stored scores at once, and written with on request.

The pushed model plays no part: the cut is made on a copy of the original that shares its tensors, so that neither the
original nor any other visitor's model changes, and no weight is copied.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from hf_prune import demo
from hf_prune.amounts import NOT_WEIGHED, allowed_blocks
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.card_warnings import close_choice, too_many
from hf_prune.checkpoint import block_parameters, read_header, weight_files
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import METHODS, Method, get_method
from hf_prune.plan import choose_plan
from hf_prune.records import ModelRef, Plan, Scores, ranges
from hf_prune.registry import measure, planner
from hf_prune.space import comparing, gpu, settings
from hf_prune.space.anatomy import distance_error
from hf_prune.space.frames import Frame, Sampling
from hf_prune.space.ids import shown
from hf_prune.space.pair import DEMO, Half, Loaded, Pair, Visitor
from hf_prune.space.prompts import check_prompt, check_sampling
from hf_prune.space.record_checks import check_scores
from hf_prune.space.wishes import CHOICES
from hf_prune.surgery import apply_plan

RULE = (
    "Estimates, not measurements. Writing: the bytes of all weights before, divided by those that stay, since every "
    "new token reads each weight once. Reading the prompt: the parameters of all layers, divided by those of the "
    "layers that stay, since the arithmetic goes with them. What a machine does besides is left out."
)
"""How speeds are estimated, for people."""


@dataclass(frozen=True)
class Offer:
    """A method that layers could be chosen by.

    Attributes:
        method: what users type.
        title: what it does.
        most: layers that can go.
        why_not: why it can't be had for this pair; None where it can.
    """

    method: str
    title: str
    most: int
    why_not: str | None = None


@dataclass(frozen=True)
class Cut:
    """Which layers would go, and what would be left.

    Attributes:
        plan: the choice, with its reason and its runner-up.
        dropped: layers that go, 0-based.
        kept: layers that stay.
        distance_standard_error: of the plan's distance; None where it has none.
        parameters: left, tied ones once; None where the sizes of single layers are not known.
        bytes: of the weights left.
        prefill: estimated speed-up of reading a prompt, by `RULE`.
        decode: estimated speed-up of writing.
        rule: how both are estimated.
        warnings: what to know first.
    """

    plan: Plan
    dropped: tuple[int, ...]
    kept: tuple[int, ...]
    distance_standard_error: float | None
    parameters: int | None
    bytes: int | None
    prefill: float | None
    decode: float | None
    rule: str
    warnings: tuple[str, ...]


def offers(pair: Pair) -> tuple[Offer, ...]:
    """The methods that can be had from what the records hold, and why those that a visitor knows can't be.

    Others need the model itself to choose: naming each of them with that reason would be a long list.
    """
    found = []
    for method in METHODS.values():
        try:
            _check_offered(method)
            most = _most(method, pair)
            _plan(pair, method, 1)
        except ConfigError as error:
            if method.name in CHOICES and method.cuts == "layers":
                found.append(Offer(method.name, method.title, 0, str(error)))
        else:
            found.append(Offer(method.name, method.title, most))
    return tuple(found)


def plan_cut(pair: Pair, method: str, drop_layers: int) -> Cut:
    """Choose the layers that go, from the stored scores alone.

    Args:
        pair: its original is what would be cut.
        method: one of the offered ones.
        drop_layers: how many layers go.

    Raises:
        ConfigError: the method narrows layers instead, needs scores that are not there, or too many layers would go.
    """
    plan = _plan(pair, get_method(method), drop_layers)
    before, gone = pair.original, set(plan.dropped)
    blocks = layer_parameters(pair)
    parameters = size = prefill = decode = None
    if blocks is not None:
        parameters = before.parameters - sum(blocks[i] for i in gone)
        size = round(before.bytes * parameters / before.parameters)
        prefill = sum(blocks) / sum(blocks[i] for i in plan.kept)
        decode = before.parameters / parameters
    return Cut(
        plan=plan,
        dropped=plan.dropped,
        kept=plan.kept,
        distance_standard_error=distance_error(plan, pair.records.scores),
        parameters=parameters,
        bytes=size,
        prefill=prefill,
        decode=decode,
        rule=RULE,
        warnings=(*too_many(plan), *close_choice(plan)),
    )


def compare_cut(
    pair: Pair, method: str, drop_layers: int, prompt: str, sampling: Sampling, visitor: Visitor
) -> Iterator[Frame]:
    """Cut a copy of the original in memory, and let both write.

    Args:
        pair: its original is cut.
        method: one of the offered ones.
        drop_layers: how many layers go.
        prompt: as typed; untrusted.
        sampling: how tokens are drawn.
        visitor: who asks.

    Raises:
        PruneError: the cut is refused, the prompt or a setting is, or the models cannot be had by this visitor.
    """
    sampling = check_sampling(sampling)  # all that needs no model comes before one is fetched
    check_prompt(prompt, settings.current().prompt_chars)
    yield from _written(pair, plan_cut(pair, method, drop_layers), prompt, sampling, visitor)


def _seconds(pair: Pair, cut: Cut, prompt: str, sampling: Sampling, visitor: Visitor) -> int:
    return gpu.seconds(pair.original.bytes + pair.pruned.bytes, sampling.max_new_tokens)


@gpu.gpu(_seconds)
def _written(pair: Pair, cut: Cut, prompt: str, sampling: Sampling, visitor: Visitor) -> Iterator[Frame]:
    """All that needs the models; on ZeroGPU, in a process with a GPU."""

    def write(loaded: Loaded) -> Iterator[Frame]:
        model = cut_copy(loaded.original, cut.plan)
        both = Loaded(loaded.original, model, loaded.tokenizer, loaded.tokenizer)
        return comparing.frames(both, as_pair(pair, cut), prompt, sampling)

    yield from comparing.opened(pair, visitor, write)


def cut_copy(original: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """A model without the layers that a plan drops; it shares every tensor with the original, which stays whole.

    Raises:
        PruneError: the plan was made for another model, or this one cannot lose layers.
    """
    return apply_plan(decoder_of(structural_copy(original), plan.model.id), plan).model


def as_pair(pair: Pair, cut: Cut) -> Pair:
    """The original and the cut as a pair of their own, which no records of a healing or an evaluation speak of."""
    records = replace(pair.records, plan=cut.plan, healing=None, evaluation=None)
    return Pair(f"{pair.name} without {ranges(cut.dropped)}", pair.original, as_half(pair, cut), records)


def as_half(pair: Pair, cut: Cut) -> Half:
    """The cut as the second half of a pair."""
    layers = "layer" if len(cut.dropped) == 1 else "layers"
    return replace(
        pair.original,
        name=f"{pair.original.name} without {layers} {ranges(cut.dropped)}",
        commit=None,
        layers=len(cut.kept),
        parameters=cut.parameters or 0,
        bytes=cut.bytes or 0,
    )


def layer_parameters(pair: Pair) -> tuple[int, ...] | None:
    """Parameters of each layer of the original: by its files, else shared evenly by what the pushed cut took away.

    Returns:
        One count a layer; None where a sliced or otherwise changed model tells nothing of single layers.
    """
    known = _demo_layers(pair.original.layers) if pair.name == DEMO else pair.original.layer_parameters
    if known is not None:
        return known
    plan, layers = pair.records.plan, pair.original.layers
    saved = pair.original.parameters - pair.pruned.parameters
    if plan.slicing is not None or not plan.dropped or saved <= 0:
        return None
    each = saved // len(plan.dropped)
    return (each,) * layers if each * layers < pair.original.parameters else None


@functools.cache
def _demo_layers(depth: int) -> tuple[int, ...] | None:
    headers = [read_header(path) for path in weight_files(demo.model_folder())]
    counts = {name: math.prod(tensor.shape) for header in headers for name, tensor in header.items()}
    return block_parameters(counts, depth)


def _plan(pair: Pair, method: Method, drop_layers: int) -> Plan:
    """The choice of a method.

    Raises:
        ConfigError: it can't be made.
    """
    _check_offered(method)
    scores = _scores(pair, method)
    config = PrunerConfig(method=method.name, drop_layers=drop_layers)
    return choose_plan(config, _base(pair), NOT_WEIGHED, scores)


def _check_offered(method: Method) -> None:
    """Refuse a method that stored scores say nothing to, whatever they are.

    Raises:
        ConfigError: names what it would need, and others.
    """
    why = None
    if method.cuts != "layers":
        why = "narrows all layers and drops none" if method.cuts == "width" else "drops no layers"
    elif method.unit != "block":
        why = "removes parts of layers, which a cut that is tried here can't"
    elif method.surgery != "drop":
        why = "puts something fitted in the place of layers, for which it needs the model"
    elif planner.get(method.planner).needs == "judge":
        why = "tries cuts on the model, and nothing that is stored tells their outcome"
    if why is not None:
        known = ", ".join(name for name in CHOICES if METHODS[name].cuts == "layers")
        raise ConfigError(f"method '{method.name}' {why}; expected one of: {known}")


def _scores(pair: Pair, method: Method) -> Scores | None:
    """The stored scores where a method chooses by them.

    Raises:
        ConfigError: there are none of its measure, with its options.
    """
    if method.measure is None or planner.get(method.planner).needs == "nothing":
        return None
    scores = pair.records.scores
    if scores is None or scores.measure != method.measure or not _same_options(scores, method):
        stored = "none" if scores is None else f"those of measure '{shown(scores.measure, 40)}'"
        raise ConfigError(
            f"method '{method.name}' chooses by scores of measure '{method.measure}'; this model's records hold "
            f"{stored}. Take a method that needs no scores, such as 'simple'"
        )
    check_scores(scores)
    return scores


def _same_options(scores: Scores, method: Method) -> bool:
    """Whether the options that make the method are those that the scores were measured with."""
    taken = {**measure.get(scores.measure).options(), **scores.options}
    return all(taken.get(name) == value for name, value in method.measure_kwargs.items())


def _base(pair: Pair) -> ModelRef:
    return pair.records.plan.model


def _most(method: Method, pair: Pair) -> int:
    depth = _base(pair).num_layers
    return min(len(allowed_blocks(method, depth, pair.original.name)), depth - 1)
