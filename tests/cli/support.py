"""What end-to-end tests share: a tiny base model, a recipe that takes a second, the command line in this process."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from hf_prune import cli
from hf_prune.cli.app import app
from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.records import Plan
from hf_prune.reload import Level
from hf_prune.reload_streamed import problems
from tests.healing.support import SPEED
from tests.making import base_folder

LENGTH = 12
"""Tokens of every sequence: below 16, where random models' text counts as degenerate."""

HEALING = HealingConfig(
    rank=2, learning_rate=0.01, batch_size=4, steps=3, tokens=10_000, max_length=LENGTH, held_out_samples=3,
    save_steps=1, quantize="none",
)  # fmt: skip
EVALUATION = EvaluationConfig(samples=4, max_length=LENGTH, prompts=("The sea",), new_tokens=3, speed=False)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""The smallest PNG file."""

CALIBRATION = CalibrationConfig(samples=6, max_length=LENGTH, batch_size=3)


def fast(patch: pytest.MonkeyPatch) -> None:
    """Check saved models without a new process for each, draw pictures that nobody sees, measure no machine.

    So healing is repeatable, and what is drawn takes no time: `tests.test_plots` looks at pictures.
    """
    patch.setattr("hf_prune.reload.reload_level", lambda model: "streamed")
    patch.setattr("hf_prune.file_to_file.check_streamed", _checked_here)
    patch.setattr("hf_prune.plotting.drawing.png", lambda figure: PIXEL)
    patch.setattr("hf_prune.healing.job.probe", lambda device, parameters: SPEED)


def _checked_here(
    folder: Path, *, source: Path | None, plan: Plan, origin: Path, level: Level, dtype: Any, trust_remote_code: bool
) -> Level:
    """The check at level "streamed", in this process."""
    assert not list(problems(folder, source, origin, plan, dtype, trust_remote_code))
    return "streamed"


def recipe(**fields: Any) -> PrunerConfig:
    """A recipe that takes about a second with a tiny model; nested settings are given as dicts of changes."""
    parts = {"calibration": CALIBRATION, "healing": HEALING, "evaluation": EVALUATION}
    changed = {name: dataclasses.replace(part, **fields.pop(name, {})) for name, part in parts.items()}
    amount = {} if fields.keys() & {"layers", "sparsity"} else {"drop_layers": 2}
    return PrunerConfig(**amount | fields, **changed)


def recipe_file(folder: Path, **fields: Any) -> str:
    """The same in a file, for `--config`."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(recipe(**fields).save_pretrained(folder))


def planted(folder: Path, useless: tuple[int, ...] = (3, 4), depth: int = 8) -> Path:
    """A base model in which some blocks add nothing to the residual stream."""
    model, _ = base_folder(folder, depth=depth)
    with torch.no_grad():
        for index in useless:
            model.model.layers[index].self_attn.o_proj.weight.zero_()
            model.model.layers[index].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Called:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be JSON and nothing else."""
        return json.loads(self.out)

    def failed(self) -> str:
        """The one line of a command that failed in an expected way, without the warnings before it."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not line.startswith("Warning: ")]
        assert len(lines) == 1 and lines[0].startswith("Error: "), self.err
        return lines[0].removeprefix("Error: ")


def call(*arguments: str | Path) -> Called:
    """`hf-prune ARGUMENTS` in this process: importing torch in a new one takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    argv, logger = sys.argv, logging.getLogger("hf_prune")
    before = logger.handlers, logger.propagate, logger.level
    sys.argv = ["hf-prune", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as done:
        code = done.code
    finally:
        sys.argv = argv
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
    return Called(code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> Called:
    """`call`, and the command has to succeed."""
    called = call(*arguments)
    assert called.code == 0, (called.out, called.err)
    return called


def parses(line: str) -> str:
    """Check that a line such as "hf-prune run ..." fits the options of its command, and return the command's name."""
    program, name, *words = shlex.split(line, comments=True)
    assert program == "hf-prune", line
    group = typer.main.get_command(app)
    command = group.commands.get(name)
    assert command is not None, f"{line}: there is no command {name}"
    try:
        context = command.make_context(name, words, parent=group.make_context("hf-prune", [name]))
        if rest := [*context._protected_args, *context.args]:  # of a command with commands of its own
            below, command, words = command.resolve_command(context, rest)
            command.make_context(below, words, parent=context)
    except typer.main._click.exceptions.UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from error
    return name


def tree(folder: Path) -> dict[str, str]:
    """Path below the folder → sha256 of each file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
