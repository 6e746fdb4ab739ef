"""Pairs of the Hub: found by the name of the pruned model, allowed anew for each visitor, opened through the cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_prune.architecture import base_type
from hf_prune.demo import pair as demo
from hf_prune.errors import ConfigError
from hf_prune.output import Finished
from hf_prune.records import ModelRef
from hf_prune.space import asking, disk, settings
from hf_prune.space.asking import Repo
from hf_prune.space.cache import Want, models
from hf_prune.space.ids import hub_id, is_hub_id, shown
from hf_prune.space.opening import load_half
from hf_prune.space.pair import DEMO, Half, Loaded, Pair, Visitor
from hf_prune.space.repo_records import read_records
from hf_prune.space.weighing import Weighed, weigh


def find(name: str, visitor: Visitor) -> Pair:
    """Find a pair, pinned to commits, and refuse what cannot be opened; no weights are downloaded.

    Args:
        name: `DEMO`, or the Hub id of a model that hf-prune has made. A folder of this name is never looked at.
        visitor: who asks, and has to be allowed to read both models.

    Raises:
        ConfigError: no Hub id, not made by hf-prune, of an original that nobody can look up, or too large.
        HubError: no such repo, it is not open to this visitor, or the Hub is out of reach.
        CheckpointError: no safetensors weights, or files that are broken.
        ArchitectureError: it is no causal language model, or needs code from its repo.
    """
    if isinstance(name, str) and name.strip() == DEMO:
        return _demo()
    repo = asking.look(hub_id(name), visitor)
    with disk.in_use(repo.commit):
        records = read_records(repo, visitor)
        pruned = weigh(repo, visitor)
    base, revision = _base(repo, records.plan.model)
    with_base = asking.look(base, visitor, revision)
    with disk.in_use(with_base.commit):
        original = weigh(with_base, visitor)
    _check_plan(records, original, pruned)
    here = settings.current()
    for half in (original.half, pruned.half):
        here.check_size(half.name, half.bytes, f"in {half.dtype}")
    return Pair(repo.name, original.half, pruned.half, records)


def authorise(pair: Pair, visitor: Visitor) -> None:
    """Ask the Hub anew whether a visitor may read both models: what others have opened is not open to everybody.

    Raises:
        HubError: one of them is not, or the Hub is out of reach.
    """
    if pair.name == DEMO:
        return
    for half in (pair.pruned, pair.original):
        asking.may_read(half.name, visitor)


@contextmanager
def opened(pair: Pair, visitor: Visitor, progress: Callable[[str], None] = lambda said: None) -> Iterator[Loaded]:
    """Both models in memory, for as long as the block runs.

    Args:
        pair: from `find`.
        visitor: who asks.
        progress: is told in words what is done; called in this thread.

    Raises:
        HubError: not open to this visitor, or the Hub is out of reach.
        ConfigError: no room in memory or on disk.
        CheckpointError: files that are broken.
        Busy: others held all memory for too long.
    """
    if pair.name == DEMO:
        with models().use(DEMO, pair.original.bytes + pair.pruned.bytes, _load_demo) as demo:
            original, pruned, tokenizer = demo
            yield Loaded(original, pruned, tokenizer, tokenizer)
        return
    authorise(pair, visitor)
    progress("Waiting for room in memory …")
    wants = (
        _want(pair.original, None, visitor, progress),
        _want(pair.pruned, adapter_of(pair.records), visitor, progress),
    )
    with models().use_all(wants) as ((original, tokenizer), (pruned, pruned_tokenizer)):
        yield Loaded(original, pruned, tokenizer, pruned_tokenizer)


def adapter_of(records: Finished) -> Finished | None:
    """The records, where they tell of healing that lies beside the weights as an adapter."""
    return records if records.healing is not None and records.healing.output == "adapter" else None


def _want(half: Half, adapter: Finished | None, visitor: Visitor, progress: Callable[[str], None]) -> Want:
    # The same model of other pairs is the same entry; with and without its adapter it is not the same model.
    key = (half.name, half.commit, half.dtype, adapter is not None)
    return Want(key, half.bytes, lambda: load_half(half, adapter, visitor, progress))


def _demo() -> Pair:
    original, pruned = (Half(size.name, None, size.layers, size.parameters, size.bytes) for size in demo.sizes())
    return Pair(DEMO, original, pruned, demo.records())


def _load_demo() -> Any:
    loaded = demo.load()
    for model in loaded[:2]:
        moved: Any = model.requires_grad_(False)
        moved.to(settings.device())
    return loaded


def _base(repo: Repo, ref: ModelRef) -> tuple[str, str | None]:
    """Hub id and commit of the original: by the records, else by the card, where the records name a local folder."""
    if ref.revision is not None and is_hub_id(ref.id, bare=True):
        return ref.id, ref.revision
    card = repo.base[0] if isinstance(repo.base, list) and len(repo.base) == 1 else repo.base
    for named in (ref.id, card):
        if is_hub_id(named):
            return str(named), None
    raise ConfigError(
        f"the original of '{repo.name}' cannot be looked up: its records call it '{shown(ref.id)}', a folder, "
        "and its card names no base_model on the Hub. Ask its owner to name it in the card"
    )


def _check_plan(records: Finished, original: Weighed, pruned: Weighed) -> None:
    """Both models are those that the records speak of."""
    plan = records.plan
    wanted = (plan.model.model_type, plan.model.num_layers)
    if (original.model_type, original.half.layers) != wanted:
        raise ConfigError(
            f"'{original.half.name}' is {original.model_type} with {original.half.layers} layers; the records of "
            f"'{pruned.half.name}' speak of {shown(wanted[0], 40)} with {wanted[1]}. They belong to another original"
        )
    if base_type(pruned.model_type) != original.model_type or pruned.half.layers != len(plan.kept):
        raise ConfigError(
            f"'{pruned.half.name}' is {pruned.model_type} with {pruned.half.layers} layers; its records say that "
            f"{len(plan.kept)} of {shown(wanted[0], 40)} are left. Ask its owner to push it anew with hf-prune"
        )
