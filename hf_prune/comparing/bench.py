"""`bench_methods`: any set of methods on one model, each finished once; killed anywhere, the same call goes on."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hf_prune import loading, serial
from hf_prune.comparing.attempt import make_attempt
from hf_prune.comparing.drawing import FILES as PICTURES
from hf_prune.comparing.drawing import draw
from hf_prune.comparing.entries import Amount, Entry, entries, with_seed
from hf_prune.comparing.record import Attempt, Comparison
from hf_prune.comparing.standings import ranked
from hf_prune.comparing.table import CSV_FILE, TABLE_FILE, as_csv, as_markdown
from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.healable import healing_recipe
from hf_prune.records import TextUse
from hf_prune.run_folder import RunFolder, room_for
from hf_prune.sweeping.early import check_folder, claim, find
from hf_prune.sweeping.shared import Shared
from hf_prune.sweeping.sweep import settings_told


@dataclass(frozen=True)
class Begun:
    """A comparison that may begin.

    Attributes:
        source: the base model, pinned; without weights where they were not asked for.
        model_config: its config.
        kwargs: of `loading.load_model`.
        entries: the methods, those among them that will be skipped.
        seeds: the first is that of all methods.
    """

    source: loading.Source
    model_config: PretrainedConfig
    kwargs: dict[str, Any]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]


def begin(
    model_id: str | Path,
    config: PrunerConfig,
    output: Path,
    *,
    amount: Amount,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    best: int | None,
    heal: bool,
    weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> Begun:
    """Check everything that can be checked, and list the methods. Nothing is written.

    Args:
        weights: whether to download the weights; a dry run does without.

    See `bench_methods` for the others.

    Raises:
        PruneError: whatever a comparison refuses before work.
    """
    several = _seeds(config, seeds, best)
    source, model_config, kwargs = find(
        model_id,
        config,
        heal=heal,
        weights=weights,
        revision=revision,
        token=token,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    listed = entries(config, amount, source.ref, model_config.get_text_config(decoder=True), methods, heal=heal)
    check_folder(output, source.ref, "comparison")
    return Begun(source, model_config, kwargs, listed, several)


def bench_methods(
    model_id: str | Path,
    config: PrunerConfig,
    output: str | Path,
    *,
    amount: Amount | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    best: int | None = None,
    heal: bool = False,
    also: Sequence[EvaluationConfig] = (),
    on_attempt: Callable[[Attempt], None] = lambda attempt: None,
    progress: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Compare methods on one model, the same text, the same amount and the same healing.

    Each method chooses anew with each seed: which calibration sequences are drawn, what planner and fit draw, and
    which healing text is drawn, in which order it comes and how the adapters start. The text that models are judged on
    is one for all. All are healed by the recipe of the config's method, on as many tokens. Choosing and surgery are
    timed, and their memory is measured, with the original in memory. A method that this model cannot have is skipped,
    one that fails is recorded, and the rest goes on.

    The folder holds `comparison.json`, `.md`, `.csv`, `.png` and `.svg`, and the state from which the same call, or
    one with other methods, seeds or amounts, goes on: finished attempts are kept for as long as nothing that they
    depend on changes.

    Args:
        model_id: Hub id or folder.
        config: what all share; its method says whose options it holds, and how all are healed.
        output: new or empty folder, or that of an earlier comparison on the same model.
        amount: how much goes; None takes the config's.
        methods: recipe names; None takes all but "auto", which becomes one of the others.
        seeds: None takes that of the config's calibration.
        best: how many methods, the best with the first seed, are tried with the other seeds; None tries all.
        heal: whether each model is healed too, and ranked by what it is then.
        also: further texts to judge models on, as evaluation settings; perplexity alone.
        on_attempt: told each attempt when it is finished, or found finished.
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
    begun = begin(
        model_id,
        config,
        Path(output),
        amount=amount or Amount(),
        methods=methods,
        seeds=seeds,
        best=best,
        heal=heal,
        revision=revision,
        token=token,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    folder = claim(Path(output), begun.source.ref, "comparison")
    with room_for(folder), RunFolder(folder).alone():
        return _compare(begun, config, folder, best, heal, also, on_attempt, token, progress)


def _compare(
    begun: Begun,
    config: PrunerConfig,
    folder: Path,
    best: int | None,
    heal: bool,
    also: Sequence[EvaluationConfig],
    on_attempt: Callable[[Attempt], None],
    token: str | bool | None,
    progress: bool,
) -> Comparison:
    names, first_seed = tuple(entry.method for entry in begun.entries), begun.seeds[0]
    recipe, config = healing_recipe(config), with_seed(config, first_seed)

    def share(seed: int, first: Shared | None) -> Shared:
        shared = Shared(
            begun.source,
            begun.model_config,
            with_seed(config, seed),
            names,
            begun.kwargs,
            folder,
            token,
            progress,
            healing=recipe,
            also=also,
            first=first,
            name="shared" if first is None else f"shared-s{seed}",
        )
        if heal:
            shared.figures()
            shared.original_loss(recipe)
        return shared

    first = share(first_seed, None)
    original, where = first.figures()
    # Texts of all seeds are read now: a missing dataset is told now, not after hours.
    shared = {seed: first if seed == first_seed else share(seed, first) for seed in begun.seeds}
    attempts: list[Attempt] = []

    def attempt(seed: int, among: Sequence[Entry]) -> None:
        for entry in among:
            attempts.append(make_attempt(shared[seed], entry, seed, original, heal))
            on_attempt(attempts[-1])

    attempt(first_seed, begun.entries)
    again = _again(begun.entries, attempts, best, heal)
    for seed in begun.seeds[1:]:
        attempt(seed, again)
    texts: dict[str, TextUse] = {}
    for seed, one in shared.items():
        uses = one.texts(recipe if heal else None)
        texts |= {f"{name}, seed {seed}": use for name, use in uses.items() if name != "evaluation"}
    settings = first.healing_settings(recipe) if heal else None
    found = Comparison(
        model=begun.source.ref,
        config=settings_told(config, heal),
        contenders=tuple(entry.contender for entry in begun.entries),
        seeds=begun.seeds,
        best=best,
        heal=heal,
        healing=None if settings is None else _without_path(serial.to_dict(settings), config),
        texts=texts,
        original=original,
        attempts=tuple(attempts),
        pictures=(),
        environment=where,
    )
    return _write(folder, found)


def _without_path(settings: dict[str, Any], config: PrunerConfig) -> dict[str, Any]:
    return settings | {"dataset": config.without_paths().healing.dataset}


def _again(listed: Sequence[Entry], attempts: Sequence[Attempt], best: int | None, heal: bool) -> list[Entry]:
    """The methods that are tried with the other seeds: all that can be, or the best of them."""
    possible = [entry for entry in listed if entry.impossible is None]
    if best is None:
        return possible
    order = ranked([entry.contender for entry in listed], attempts, "healed" if heal else "pruned")
    chosen = [standing.contender.name for standing in order if standing.done][:best]
    return [entry for entry in possible if entry.method in chosen]


def _seeds(config: PrunerConfig, seeds: Sequence[int] | None, best: int | None) -> tuple[int, ...]:
    if seeds is None:
        if best is not None:
            raise ConfigError(
                f"best={best} tries the best methods with further seeds, and none are given; expected such as 0, 1, 2"
            )
        return (config.calibration.seed,)
    if not seeds:
        raise ConfigError("no seeds; expected at least one, such as 0")
    if twice := sorted({seed for seed in seeds if list(seeds).count(seed) > 1}):
        raise ConfigError(f"seed {twice[0]} is named twice; it would give the same figures twice, and no spread")
    if best is not None and len(seeds) < 2:
        raise ConfigError(f"best={best} tries the best methods with further seeds, and there is one; give several")
    if best is not None and best < 1:
        raise ConfigError(f"best={best}; expected at least 1 method that is tried with all seeds")
    return tuple(seeds)


def _write(folder: Path, found: Comparison) -> Comparison:
    """Record, tables and drawings; the record goes first and comes last, so that what lies beside it is its own."""
    drawn = draw(found)
    found = dataclasses.replace(found, pictures=tuple(picture for picture, _ in drawn))
    for name in (Comparison.FILE, TABLE_FILE, CSV_FILE, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    for picture, content in drawn:
        (folder / picture.file).write_bytes(content)
    serial.write_text(folder / CSV_FILE, as_csv(found))
    serial.write_text(folder / TABLE_FILE, as_markdown(found))
    found.save(folder)
    return found
