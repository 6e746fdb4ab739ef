"""How the second half of the embedded pair was made: the demo's own run, with the adapter kept apart.

    python -m hf_prune.demo.heal --output hf_prune/demo/gutenberg-llama-12l-healed

Takes some minutes on two processor cores, and no network.
"""

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_prune.cards import generate
from hf_prune.config import PrunerConfig
from hf_prune.demo import config as demo_config
from hf_prune.demo import model_folder
from hf_prune.healing.adapter import CONFIG, WEIGHTS
from hf_prune.output import ADAPTER, Finished, update_evaluation
from hf_prune.pruner import Pruner
from hf_prune.run import run
from hf_prune.saving import check_output, staged

RANK = 32
"""Half of what the demo takes: the file is half as large."""

NOTE = """> [!NOTE]
> This folder holds the adapter and the records alone. The pruned weights are those of the embedded model without the
> layers below: `hf_prune.demo.pair.load()` cuts them out, and merges the adapter."""


def config() -> PrunerConfig:
    """The demo's recipe; the adapter is shipped beside the weights, and smaller."""
    recipe = demo_config()
    return dataclasses.replace(recipe, healing=dataclasses.replace(recipe.healing, rank=RANK, output="adapter"))


def make(folder: Path, recipe: PrunerConfig | None = None, *, progress: bool = True) -> Finished:
    """Prune and heal the embedded model, and keep adapter, recipe, records and card; the weights follow from them.

    The adapter is rounded to float16 before anything is measured, so that the figures are those of what is shipped.

    Args:
        folder: new or empty; appears whole or not at all.
        recipe: `config()` when None.
        progress: whether to show bars.

    Raises:
        OutputError: the folder holds something.
        MissingExtraError: peft or accelerate is not installed.
    """
    check_output(folder)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        run(model_folder(), recipe or config(), made, heal=True, evaluate=False, progress=progress)
        round_adapter(made / ADAPTER)
        pruner = Pruner.from_pruned(made, original=model_folder(), progress=progress)
        update_evaluation(made, pruner.config, pruner.evaluate())
        finished = dataclasses.replace(Finished.load(made), inputs=None)
        with staged(folder) as stage:
            keep(made, finished, stage)
    return finished


def round_adapter(folder: Path) -> None:
    """Round an adapter to float16, in place: it holds 11 bits of each number, where bfloat16 holds 8."""
    state = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def keep(made: Path, finished: Finished, folder: Path) -> None:
    """Write what is shipped of a finished folder."""
    (folder / ADAPTER).mkdir()
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(made / ADAPTER / name, folder / ADAPTER / name)
    finished.save(folder)
    card = generate(
        finished.config,
        finished.plan,
        scores=finished.scores,
        healing=finished.healing,
        evaluation=finished.evaluation,
        base_card=finished.base_card,
        base_files=finished.base_files,
        output="adapter",
        reload_level=finished.reload_level,
    )
    start = "\n## Quick start\n"
    (folder / "README.md").write_text(str(card).replace(start, f"\n{NOTE}\n{start}", 1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m hf_prune.demo.heal", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder")
    make(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main()
