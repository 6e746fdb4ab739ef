"""What to train against which loss: the embedded model, one cut, healed in several ways on the same text.

`python -m tests.healing_ways run --text TRAIN --judged-on TEXT --blimp FOLDER --output FOLDER` makes it, one way after
the other, going on where it was stopped; `python -m tests.healing_ways show` prints README's table. A way is told
as TARGET/LOSS, such as `seam/kl` or `mlp/next_token=0.5,kl=0.5`.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_prune import Pruner, PrunerConfig, demo, serial
from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig
from hf_prune.figures import ModelEvaluation
from hf_prune.healing.step import parse_losses
from hf_prune.plotting.drawing import canvas, encode
from hf_prune.record_base import Record
from hf_prune.records import Healing
from tests.benchmarks.blimp import PLAIN, write_tasks

FOLDER = Path(__file__).parent.parent / "model_cards" / "healing"

WAYS = (
    "mlp/next_token", "mlp/kl", "all/next_token", "all/kl", "seam/next_token", "seam/kl", "seam/kl=1,seam=0.1",
    "last/next_token", "last/kl", "full/next_token", "full/kl", "full/next_token=0.5,kl=0.5",
)  # fmt: skip
"""As many pairs of what and loss as were compared."""

RATES = {"mlp": 3e-3, "all": 3e-3, "seam": 2e-3, "last": 1e-3, "full": 5e-4}
"""Learning rates: of two or three that were tried on 40,000 to 60,000 tokens, those with the lowest held-out loss."""

_LINES = {"next_token": ":", "kl": "-"}
_PICTURES = {"tokens": "recovery-tokens.png", "flops": "recovery-flops.png"}


@dataclass(frozen=True)
class Way:
    """One way of healing, with one seed.

    Attributes:
        name: TARGET/LOSS.
        seed: of data order and initialisation.
        dropped: layers that went.
        budget: training tokens at most.
        healing: its record.
        pruned: figures before.
        healed: figures after.
    """

    name: str
    seed: int
    dropped: tuple[int, ...]
    budget: int
    healing: Healing
    pruned: ModelEvaluation
    healed: ModelEvaluation

    @property
    def file(self) -> str:
        """Name of its file while the others are made."""
        return f"{self.name.replace('/', '-').replace(',', '-')}-{len(self.dropped)}-{self.budget}-s{self.seed}.json"


@dataclass(frozen=True)
class Ways(Record):
    """All of them, beside the original."""

    FILE: ClassVar[str] = "ways.json"

    original: ModelEvaluation
    ways: tuple[Way, ...]


def recipe(text: Path, judged_on: Path, tasks: Path, limit: int) -> PrunerConfig:
    """What all ways share.

    Args:
        text: to measure, heal and hold out.
        judged_on: another text.
        tasks: folder of BLiMP's task files.
        limit: pairs a paradigm.
    """
    return PrunerConfig(
        method="uidl",
        calibration=CalibrationConfig(dataset=str(text), samples=64, max_length=256, batch_size=32),
        healing=HealingConfig(
            quantize="none", warmup_steps=10, batch_size=8, steps=10_000, max_length=256, held_out_samples=32
        ),
        evaluation=EvaluationConfig(
            dataset=str(judged_on), samples=96, max_length=256, batch_size=16, speed=False, tasks=(PLAIN,),
            task_path=str(tasks), limit=limit,
        ),
    )  # fmt: skip


def run(
    config: PrunerConfig, names: tuple[str, ...], seeds: tuple[int, ...], budget: int, drop: int, output: Path
) -> Ways:
    """Make every way that is not there yet.

    Args:
        config: what all share.
        names: of the ways.
        seeds: each way is made with each.
        budget: training tokens at most.
        drop: layers that go.
        output: folder of records; also holds texts, so that all read the same ones.
    """
    for name in names:
        for seed in seeds:
            target, loss = name.split("/")
            healing = dataclasses.replace(
                config.healing, target=target, loss=loss, learning_rate=RATES[target], tokens=budget, seed=seed
            )
            parse_losses(healing)
            wanted = dataclasses.replace(config, drop_layers=drop, healing=healing)
            found = Way(name, seed, (0,) * drop, budget, *(None,) * 3)  # type: ignore[arg-type]
            if not (output / found.file).is_file():
                _make(wanted, name, seed, budget, output)
    original = serial.from_dict(ModelEvaluation, serial.read_json(output / "original.json"))
    files = sorted(output.glob("*-s*.json"))
    return Ways(original, tuple(serial.from_dict(Way, serial.read_json(file)) for file in files))


def _make(config: PrunerConfig, name: str, seed: int, budget: int, output: Path) -> None:
    run_folder = output / f"run-{config.drop_layers}-{seed}"
    pruner = Pruner.from_pretrained(
        demo.model_folder(), config, dtype="float32", run_folder=run_folder, progress=False
    )
    pruner.prepare_healing()
    original = pruner.evaluate_as("original")
    serial.write_text(output / "original.json", serial.dumps(original))
    pruner.prune()
    pruned = pruner.evaluate_as("pruned")
    healing = pruner.heal()
    healed = pruner.evaluate_as("healed")
    way = Way(name, seed, pruner.plan().dropped, budget, healing, pruned, healed)
    serial.write_text(output / way.file, serial.dumps(way))
    sys.stderr.write(f"{name}: {healing.held_out.pruned:.4f} -> {healing.held_out.merged:.4f}\n")


def render(found: Ways) -> str:
    """A row for each way, the best held-out loss first within each number of layers and tokens, as Markdown."""
    header = [
        "layers gone", "tokens", "trained / loss", "seeds", "parameters trained", "bits per byte", "KL", "BLiMP",
        "held-out loss regained", "TFLOP", "seconds",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    lines.append(["none", "", "(original)", "", "", *_figures([found.original]), "", "", ""])
    groups: dict[tuple[int, int, str], list[Way]] = {}
    for way in found.ways:
        groups.setdefault((len(way.dropped), way.budget, way.name), []).append(way)
    pruned = {}
    for way in found.ways:
        pruned[len(way.dropped)] = way.pruned
    for count, figures in sorted(pruned.items()):
        lines.append([str(count), "0", "(not healed)", "", "", *_figures([figures]), "0 %", "", ""])
    for (count, budget, name), ways in sorted(groups.items(), key=lambda item: (item[0][:2], -_regained(item[1]))):
        flops = sum(way.healing.curve[-1].flops for way in ways) / len(ways) / 1e12
        seconds = sum(way.healing.seconds for way in ways) / len(ways)
        lines.append([
            str(count), f"{budget:,}", f"`{name}`", str(len(ways)), f"{ways[0].healing.trained_parameters:,}",
            *_figures([way.healed for way in ways]), f"{_regained(ways):.0%}", f"{flops:.2f}", f"{seconds:.0f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figures(models: list[ModelEvaluation]) -> list[str]:
    bits = [model.perplexity[0].bits_per_byte for model in models]
    divergences = [model.fidelity.kl for model in models if model.fidelity is not None]
    blimp = [result.value for model in models for result in model.tasks if result.task == PLAIN and result.main]
    return [_mean(bits, "{:.3f}"), _mean(divergences, "{:.3f}"), _mean(blimp, "{:.1%}")]


def _mean(values: list[float], words: str) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
    return words.format(mean) + ("" if spread is None else f" ± {words.format(spread)}")


def _regained(ways: list[Way]) -> float:
    return sum(_share(way.healing, way.healing.held_out.merged) for way in ways) / len(ways)


def _share(healing: Healing, loss: float) -> float:
    assert healing.held_out.original is not None
    return (healing.held_out.pruned - loss) / (healing.held_out.pruned - healing.held_out.original)


def draw(found: Ways, budget: int, drop: int) -> dict[str, bytes]:
    """Recovery curves of all ways with one budget and the first seed: the share of the lost held-out loss regained.

    Args:
        found: the ways.
        budget: training tokens.
        drop: layers that went.

    Returns:
        File names and PNGs: against tokens, and against FLOPs.
    """
    pictures = {}
    for against, file in _PICTURES.items():
        figure = canvas(5)
        axes = figure.subplots()
        for way in found.ways:
            if (way.budget, len(way.dropped), way.seed) != (budget, drop, 0):
                continue
            points = [(getattr(point, against), _share(way.healing, point.loss)) for point in way.healing.curve]
            target, loss = way.name.split("/")
            axes.plot(
                *zip(*points, strict=True), color=f"C{list(RATES).index(target)}", linestyle=_LINES.get(loss, "--"),
                marker="o", markersize=3, label=way.name,
            )  # fmt: skip
        axes.set_xlabel({"tokens": "training tokens", "flops": "floating point operations"}[against])
        axes.set_ylabel("share of the lost held-out loss regained")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        pictures[file] = encode(figure, "png")
    return pictures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="print README's table")
    making = commands.add_parser("run", help="make the ways that are not there yet")
    for name in ("text", "judged-on", "blimp", "output"):
        making.add_argument(f"--{name}", type=Path, required=True)
    making.add_argument("--ways", nargs="+", default=WAYS, metavar="TARGET/LOSS")
    making.add_argument("--seeds", nargs="+", type=int, default=[0])
    making.add_argument("--tokens", type=int, default=150_000)
    making.add_argument("--drop", type=int, default=4)
    making.add_argument("--limit", type=int, default=30, help="pairs of each of BLiMP's paradigms")
    making.add_argument("--keep", action="store_true", help="put record and drawings in model_cards/healing")
    return parser


def main() -> None:
    """See the module's docstring."""
    asked = _parser().parse_args()
    if asked.command == "show":
        sys.stdout.write(render(Ways.load(FOLDER)) + "\n")
        return
    asked.output.mkdir(parents=True, exist_ok=True)
    tasks = asked.output / "tasks"
    write_tasks(asked.blimp, tasks, PLAIN, "")
    config = recipe(asked.text, asked.judged_on, tasks, asked.limit)
    found = run(config, tuple(asked.ways), tuple(asked.seeds), asked.tokens, asked.drop, asked.output)
    sys.stdout.write(render(found) + "\n")
    if asked.keep:
        FOLDER.mkdir(parents=True, exist_ok=True)
        found.save(FOLDER)
        for name, picture in draw(found, asked.tokens, asked.drop).items():
            (FOLDER / name).write_bytes(picture)


if __name__ == "__main__":
    main()
