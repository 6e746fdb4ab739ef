"""Prune, heal, prune again: several runs in a row, each on what the one before it healed, told as one."""

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_prune.amounts import layers_to_drop
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.healing import checkpoint
from hf_prune.output import Finished, update_evaluation, write_card
from hf_prune.pruner import Pruner
from hf_prune.records import Evaluation, Healing, ModelRef, Operation, Plan, Scores, TextUse, Trial, ranges
from hf_prune.run_folder import remove
from hf_prune.samples import Samples
from hf_prune.saving import RECORDS, staged
from hf_prune.texts import was_sampled
from hf_prune.units import Unit

logger = logging.getLogger(__name__)

Once = Callable[[str | Path, PrunerConfig, Path, Mapping[str, Samples]], Finished]
"""Prunes and heals one model into a folder, or finds that done: (model, recipe, folder, texts that are there already)
-> its records."""


def check_rounds(config: PrunerConfig, heal: bool) -> None:
    """Refuse what cannot be done in rounds, before any work.

    Args:
        config: the recipe.
        heal: whether to heal.

    Raises:
        ConfigError: names the setting that does not go with rounds.
    """
    if config.rounds == 1:
        return
    asked = f"rounds={config.rounds}"
    recipe = config.recipe()
    if not heal:
        raise ConfigError(f"{asked} heals between cuts, and healing was not asked for; add it (heal=True, --heal)")
    if config.layers is not None:
        raise ConfigError(f"{asked} chooses anew each time; layers={list(config.layers)} are chosen. Give a number")
    if recipe.cuts != "layers" or recipe.unit != "block" or recipe.surgery != "drop":
        raise ConfigError(
            f"{asked} drops whole blocks; method '{recipe.name}' does something else (unit '{recipe.unit}', surgery "
            f"'{recipe.surgery}'). Take another method, or surgery 'drop'"
        )
    if config.healing.output == "adapter":
        raise ConfigError(f"{asked} prunes the healed weights again, and so merges; healing.output='adapter' does not")


def counts_of(config: PrunerConfig, depth: int) -> tuple[int, ...]:
    """Layers that go in each round.

    Args:
        config: the recipe, its amount checked.
        depth: blocks of the model.

    Raises:
        ConfigError: the amount counts no layers, or there are more rounds than layers.
    """
    return shares(layers_to_drop(config, depth), config.rounds)


def shares(total: int, rounds: int) -> tuple[int, ...]:
    """Layers that go in each round: as even as can be, the larger shares first.

    Args:
        total: layers that go in all.
        rounds: how many rounds.

    Raises:
        ConfigError: there are more rounds than layers.
    """
    if total < rounds:
        raise ConfigError(f"rounds={rounds} for {total} layers; expected at most one round a layer")
    return tuple(total // rounds + (number < total % rounds) for number in range(rounds))


def in_rounds(
    model_id: str | Path,
    config: PrunerConfig,
    output: Path,
    run_folder: Path,
    base: ModelRef,
    *,
    once: Once,
    inputs: str,
    evaluate: bool,
    load_kwargs: dict[str, Any],
    progress: bool,
) -> None:
    """Prune and heal in rounds, and write the last one's model with the records of all.

    Each round measures the model that the round before it has healed (Minitron's and Model-Optimizer's advice for more
    than a third; ShortGPT's and SLEB's authors cut in one go). Text that is sampled comes from the original in all of
    them, so that no round learns from what a pruned model writes; a loss that compares with the original compares with
    the model that the round before has healed, which is the one that this round has cut. A killed call goes on with
    the round that it was in.

    Args:
        model_id: Hub id or folder.
        config: the recipe, with `rounds`.
        output: where the finished folder goes.
        run_folder: where the rounds lie until then.
        base: the model.
        once: see `Once`.
        inputs: digest of everything that the folder is made from.
        evaluate: whether original and result are measured.
        load_kwargs: of `Pruner.from_pretrained`.
        progress: whether to show bars.

    Raises:
        PruneError: as a single run.
    """
    counts = counts_of(config, base.num_layers)
    left, dropped = list(range(base.num_layers)), list[int]()
    current: str | Path = model_id
    found, gone_behind = list[Finished](), list[tuple[int, ...]]()
    texts: Mapping[str, Samples] = {}
    for number, count in enumerate(counts, 1):
        logger.info("round %d of %d: %d of %d layers go", number, len(counts), count, len(left))
        folder = run_folder / f"round-{number}"
        found.append(once(current, _of_round(config, base, left, count), folder, texts))
        texts = texts or _sampled(found[-1], folder)
        gone = [left[i] for i in found[-1].plan.dropped]
        dropped, left, current = sorted(dropped + gone), [i for i in left if i not in gone], folder
        gone_behind.append(tuple(dropped))
    made = run_folder / "made"
    remove(made)
    shutil.copytree(current, made)
    trusted = bool(load_kwargs.get("trust_remote_code", False))
    whole = _as_one(config, base, found, gone_behind, inputs, made, trusted)
    for name in (Scores.FILE, Evaluation.FILE):  # of a model that is not the base
        (made / RECORDS / name).unlink(missing_ok=True)
    whole.save(made)
    if evaluate:
        pruner = Pruner.from_pruned(
            made,
            original=model_id if Path(model_id).is_dir() else None,
            run_folder=run_folder / "evaluation",
            progress=progress,
            **{name: load_kwargs[name] for name in _TAKEN if name in load_kwargs},
        )
        evaluation = pruner.evaluate()
        update_evaluation(made, pruner.config, evaluation, tokens=tuple(pruner.texts.sampled_files()))
    for picture in made.glob("*.png"):
        picture.unlink()
    write_card(made, Finished.load(made))
    with staged(output) as stage:
        shutil.copytree(made, stage, dirs_exist_ok=True)


_TAKEN = ("token", "dtype", "device_map", "trust_remote_code")


def _of_round(config: PrunerConfig, base: ModelRef, left: Sequence[int], count: int) -> PrunerConfig:
    protect = tuple(left.index(i) for i in config.protect if i in left)
    changes: dict[str, Any] = {"drop_layers": count, "sparsity": None, "sparsity_of": None, "rounds": 1}
    name = base.id if "/" in base.id else None
    return dataclasses.replace(
        config, protect=protect, base_model=name, base_revision=None, hf_prune_version=None, **changes
    )


def _sampled(first: Finished, folder: Path) -> dict[str, Samples]:
    """The texts of the first round that were sampled from its model, which is the original."""
    assert first.healing is not None, "a round heals"
    uses = {"calibration": _calibration(first), "held-out": first.healing.held_out_data, "healing": first.healing.data}
    return {
        name: Samples.load(folder / RECORDS / f"{name}_tokens.safetensors", use)
        for name, use in uses.items()
        if use is not None and was_sampled(use)
    }


def _calibration(one: Finished) -> TextUse | None:
    return one.plan.data or (None if one.scores is None else one.scores.data)


def _trials(base: ModelRef, found: Sequence[Finished], gone_behind: Sequence[tuple[int, ...]]) -> tuple[Trial, ...]:
    """What the searches of all rounds decided, in layers of the original."""
    trials = []
    for one, before in zip(found, ((), *gone_behind), strict=False):
        left = [i for i in range(base.num_layers) if i not in before]
        for trial in one.plan.trials:
            removed = sorted((*before, *(left[unit.layer] for unit in trial.removed)))
            trials.append(dataclasses.replace(trial, removed=tuple(map(Unit, removed))))
    return tuple(trials)


def _as_one(
    config: PrunerConfig,
    base: ModelRef,
    found: Sequence[Finished],
    gone_behind: Sequence[tuple[int, ...]],
    inputs: str,
    made: Path,
    trusted: bool,
) -> Finished:
    last, healings = found[-1], [one.healing for one in found if one.healing is not None]
    steps = "; ".join(
        f"{ranges(gone)} gone: {healing.held_out.merged:.4f}"
        for gone, healing in zip(gone_behind, healings, strict=True)
    )
    forwards = [one.plan.forwards for one in found if one.plan.forwards is not None]
    plan = Plan(
        model=base,
        method=config.method,
        planner=config.recipe().planner,
        operations=(Operation("drop", gone_behind[-1]),),
        reason=f"Chosen in {len(found)} rounds, each on the model that the round before had healed. Held-out loss "
        f"behind each, nats per token: {steps}.",
        trials=_trials(base, found, gone_behind),
        forwards=sum(forwards) if forwards else None,
        data=_calibration(found[0]),
    )
    recipe = dataclasses.replace(
        config,
        healing=last.config.healing,
        base_model=base.id,
        base_revision=base.revision,
        hf_prune_version=last.config.hf_prune_version,
    )
    return dataclasses.replace(
        last,
        config=recipe.without_paths(),
        plan=plan,
        scores=None,
        healing=_healing(
            healings, [[i for i in range(base.num_layers) if i not in g] for g in gone_behind], made, trusted
        ),
        evaluation=None,
        base_card=found[0].base_card,
        inputs=inputs,
        fetched=found[0].fetched,
    )


def _healing(each: Sequence[Healing], kept: Sequence[Sequence[int]], made: Path, trusted: bool) -> Healing:
    """The healing of all rounds: what they did adds up, losses and curve are those of the last one.

    What a later round compares with is the model that the one before it has healed: the curve's divergences from that
    are left out, as the record speaks of the original.
    """
    last = each[-1]
    named = sorted({module for one in each for module in one.target_modules})
    trained = last.trained_parameters
    if last.kind == "weights":
        named = sorted({name for one, left in zip(each, kept, strict=True) for name in _moved(one, left, kept[-1])})
        model = checkpoint.blank(made, trust_remote_code=trusted)
        trained = sum(model.get_parameter(name).numel() for name in named)
    note = (
        f"Healed in {len(each)} rounds, one behind each cut, of {last.steps} steps in the last one; losses, curve and "
        "settings are those of the last round, its 'pruned' loss that of a model healed before."
    )
    if last.settings.get("teacher") is not None:
        note += " Later rounds compared with the model that the round before had healed, not with the original."
    return dataclasses.replace(
        last,
        target_modules=tuple(named),
        trained_parameters=trained,
        steps=sum(one.steps for one in each),
        tokens=sum(one.tokens for one in each),
        seconds=sum(one.seconds for one in each),
        held_out=dataclasses.replace(last.held_out, original=each[0].held_out.original),
        warnings=(*dict.fromkeys(w for one in each for w in one.warnings), note),
        curve=tuple(dataclasses.replace(point, kl=None) for point in last.curve),
        stopped=_by_round([one.stopped for one in each]),
        reused=_by_round([one.reused for one in each]),
    )


def _by_round(told: Sequence[str | None]) -> str | None:
    """What each round has to say of itself."""
    return " ".join(f"Round {number}: {text}" for number, text in enumerate(told, 1) if text) or None


def _moved(healing: Healing, left: Sequence[int], kept: Sequence[int]) -> list[str]:
    """The tensors that one round trained, by their names in the last one's model; blocks that went later are left out.

    Args:
        healing: of the round.
        left: blocks of the original that its model had.
        kept: blocks of the original that the last model has.
    """
    found = []
    for name in healing.target_modules:
        block = re.match(r"(\D*\.)(\d+)(\..*)", name)
        if block is None:
            found.append(name)
        elif left[int(block[2])] in kept:
            found.append(f"{block[1]}{kept.index(left[int(block[2])])}{block[3]}")
    return found
