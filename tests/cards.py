"""`make cards`: the embedded model pruned, healed and sliced, and what came of it as cards in `model_cards/`.

Run as `python -m tests.cards`; it measures everything anew, in some minutes on a processor. With `--render`, the cards
and their pictures are made anew from the records that lie there, which takes seconds: that is enough where only the
text of cards has changed.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_prune.config import PrunerConfig

CARDS = Path(__file__).parent.parent / "model_cards"

_KEPT = ("README.md", "pruner_config.json", "*.png", "pruning/*.json")


@dataclass(frozen=True)
class Made:
    """What is made of the embedded model, and the folders of its cards: before healing and, where it is, after it."""

    changes: dict[str, object]
    pruned: str
    healed: str | None = None


MADE = (
    Made({"method": "uidl", "drop_layers": 3}, "uidl-pruned", "uidl-healed"),
    Made({"method": "dynamic-slicing", "drop_layers": None, "sparsity": 0.25}, "sliced"),
)
NAMES = tuple(name for made in MADE for name in (made.pruned, made.healed) if name is not None)


def folders(cards: Path = CARDS) -> Iterator[Path]:
    """The folders of the rendered cards."""
    return (cards / name for name in NAMES)


def recipe(made: Made) -> "PrunerConfig":
    """The demo's recipe with less text, so that all models take minutes."""
    from hf_prune import demo

    config = demo.config()
    return dataclasses.replace(
        config,
        **made.changes,
        calibration=dataclasses.replace(config.calibration, samples=100, max_length=128),
        healing=dataclasses.replace(config.healing, tokens=160 * 1024, max_length=128, held_out_samples=32),
        evaluation=dataclasses.replace(config.evaluation, max_length=256, samples=84),
    )


def measure(cards: Path) -> None:
    """Make every model, keep its card, records and pictures, and forget its weights."""
    from hf_prune import demo
    from hf_prune.pruner import Pruner

    for made in MADE:
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            pruner = Pruner.from_pretrained(
                demo.model_folder(), recipe(made), run_folder=run, progress=False, device_map=None
            )
            pruner.plan()
            if made.healed is not None:
                pruner.prepare_healing()
            pruner.evaluate_as("original")
            pruner.prune()
            pruner.evaluate()
            _keep(pruner.save_pretrained(Path(scratch) / made.pruned), cards / made.pruned)
            if made.healed is not None:
                pruner.heal()
                pruner.evaluate()
                _keep(pruner.save_pretrained(Path(scratch) / made.healed), cards / made.healed)


def _keep(output: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for source in sorted(path for pattern in _KEPT for path in output.glob(pattern)):
        path = target / source.relative_to(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    sys.stdout.write(f"{target} written\n")
    sys.stdout.flush()


def render(cards: Path) -> None:
    """Write every card anew from the records beside it."""
    from hf_prune.output import Finished, write_card

    for folder in folders(cards):
        write_card(folder, Finished.load(folder))


def main() -> None:
    """Measure or render, and check what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.cards", description=__doc__)
    parser.add_argument("--render", action="store_true", help="make the cards anew from their records only")
    parser.add_argument("--output", type=Path, default=CARDS, help="folder that holds the cards' folders")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    (render if given.render else measure)(given.output)
    from hf_prune.card_check import check_card

    found = [f"{folder}: {x.level}: {x.text}" for folder in folders(given.output) for x in check_card(folder)]
    sys.stdout.write("\n".join([*found, f"{len(NAMES)} cards written to {given.output}, {len(found)} findings.\n"]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
