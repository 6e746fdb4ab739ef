"""`sweep`: many points of one model, each finished once; killed anywhere, the same call goes on."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.config import PrunerConfig
from hf_prune.methods import get_method
from hf_prune.records import ModelEvaluation, Plan
from hf_prune.run_folder import room_for
from hf_prune.sweeping.early import claim, prepare
from hf_prune.sweeping.knee import RULE, find_knee
from hf_prune.sweeping.plots import PICTURES, draw
from hf_prune.sweeping.point import make_point
from hf_prune.sweeping.record import STAGES, Choice, Knee, Stage, Sweep, SweepPoint
from hf_prune.sweeping.shared import Shared
from hf_prune.sweeping.table import CSV_FILE, as_csv
from hf_prune.sweeping.target import Target, choose


def sweep(
    model_id: str | Path,
    config: PrunerConfig,
    output: str | Path,
    *,
    methods: Sequence[str] | None = None,
    min_drop: int | None = None,
    max_drop: int | None = None,
    step: int = 1,
    shares: Sequence[float] | None = None,
    heal: bool = False,
    target: Target | None = None,
    on_point: Callable[[SweepPoint], None] = lambda point: None,
    progress: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> Sweep:
    """Measure a model at many amounts of pruning by several methods, all on the same text.

    A method that drops layers has the points `min_drop`, `min_drop` + `step`, … `max_drop`; one that slices has the
    shares n / L of the width for the same numbers n of L layers. A point that cannot exist is skipped, one that fails
    is recorded, and the sweep goes on. Texts, the original's figures and each method's scores are made once. The bases
    of slicing are found anew at each amount: they follow what the narrower blocks before them send. Nothing is timed:
    a sweep is about quality, and sizes are counted.

    The folder holds `sweep.json`, `sweep.csv`, the drawings, `plan.json` of the point that the target picks, and the
    state from which the same call, or one with other methods or amounts, goes on: finished points are kept for as long
    as nothing that they depend on changes.

    Args:
        model_id: Hub id or folder.
        config: what all points share; its method says whose options it holds, its amount is not looked at.
        output: new or empty folder, or that of an earlier sweep of the same model.
        methods: recipe names; None takes `uidl` and `simple`, and those that slice where the family can be sliced.
        min_drop: fewest layers dropped; None takes `step`.
        max_drop: most layers dropped; None takes half of them.
        step: layers between two points.
        shares: sparsities of methods that slice, in place of n / L.
        heal: whether each point is healed too, all points of a method with as many tokens.
        target: picks a point, whose plan is written.
        on_point: told each point when it is finished, or found finished.
        progress: whether to show bars.
        revision: branch, tag or commit.
        token: of the Hub.
        dtype: as in `Pruner.from_pretrained`.
        device_map: likewise.
        trust_remote_code: likewise.

    Raises:
        PruneError: see its children; whatever can be known early is raised before any work.
    """
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, speed=False))
    begun = prepare(
        model_id,
        config,
        Path(output),
        methods=methods,
        min_drop=min_drop,
        max_drop=max_drop,
        step=step,
        shares=shares,
        heal=heal,
        target=target,
        revision=revision,
        token=token,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    source, wanted = begun.source, begun.wanted
    names = tuple(dict.fromkeys(item.config.method for item in wanted))
    folder = claim(Path(output), source.ref, "sweep")
    with room_for(folder):
        shared = Shared(source, begun.model_config, config, names, begun.kwargs, folder, token, progress)
        original, where = shared.figures()
        if heal:  # a missing dataset is told now, not after hours
            for recipe in dict.fromkeys(get_method(name).healing for name in names):
                shared.original_loss(recipe)
        points = []
        refused: dict[str, str] = {}
        for item in wanted:
            points.append(make_point(shared, item, original, heal, refused))
            on_point(points[-1])
        found = Sweep(
            model=source.ref,
            config=settings_told(config, heal),
            methods=names,
            heal=heal,
            original=original,
            points=tuple(points),
            knee_rule=RULE,
            knees=_knees(points, names, original),
            choice=None,
            pictures=(),
            environment=where,
        )
        return _write(folder, found, target)


def settings_told(config: PrunerConfig, heal: bool) -> dict[str, Any]:
    """What points share, as JSON types without paths: neither amounts nor, where nothing is healed, how to heal."""
    told: dict[str, Any] = serial.to_dict(config.without_paths())
    for name in ("drop_layers", "layers", "sparsity", *(() if heal else ("healing",))):
        del told[name]
    return told


def _knees(points: Sequence[SweepPoint], methods: Sequence[str], original: ModelEvaluation) -> tuple[Knee, ...]:
    found = []
    for method in methods:
        for stage in STAGES:
            curve = [(p, f) for p in points if p.method == method and (f := p.figures(stage)) is not None]
            curve = sorted((e for e in curve if e[0].share_removed > 0), key=lambda e: e[0].share_removed)
            if stage == "healed" and not curve:
                continue
            before = original.perplexity[0].nll
            knee = find_knee([p.share_removed for p, _ in curve], [f.perplexity[0].nll - before for _, f in curve])
            point = None if knee.index is None else curve[knee.index][0]
            share = None if point is None else point.share_removed
            found.append(Knee(method, stage, None if point is None else point.name, share, knee.distance, knee.reason))
    return tuple(found)


def _write(folder: Path, found: Sweep, target: Target | None) -> Sweep:
    """Record, table, drawings and the chosen plan; those of an earlier call go.

    The record goes first and comes last: what lies beside a record is of the same call.
    """
    stage: Stage = found.last_stage
    choice: Choice | None = None
    plan: Plan | None = None
    if target is not None:
        choice = choose(found.points, found.original, target, stage)
        if choice.point is not None:
            plan = Plan.load(folder / "points" / choice.point)
            choice = dataclasses.replace(choice, plan=Plan.FILE)
    found = dataclasses.replace(found, choice=choice)
    drawn = draw(found)
    found = dataclasses.replace(found, pictures=tuple(picture for picture, _ in drawn))
    rows = as_csv(found)
    for name in (Sweep.FILE, CSV_FILE, Plan.FILE, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    if plan is not None:
        plan.save(folder)
    for picture, content in drawn:
        (folder / picture.file).write_bytes(content)
    serial.write_text(folder / CSV_FILE, rows)
    found.save(folder)
    return found
