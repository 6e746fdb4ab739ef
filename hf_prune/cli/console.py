"""How commands talk: results to standard output, everything else to standard error."""

import json
import logging
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from hf_prune import serial

# Warnings about what is as it should be: an optional kernel that is not there, a file system with coarse times.
_CHATTER = ("bitsandbytes.backends.cpu.ops", "transformers.trainer_utils")


class Console:
    """Output in the manner of `hf`: a check mark and indented `key: value` lines, or JSON.

    Args:
        quiet: only warnings and errors go to standard error.
        as_json: the result is printed as JSON.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.progress = not quiet and (sys.stderr.isatty() or bool(os.environ.get("HF_PRUNE_PROGRESS")))
        _set_up_logging(logging.WARNING if quiet else logging.INFO)
        if not self.progress:
            _hide_bars()

    def say(self, text: str = "") -> None:
        """A message for people, on standard error."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        """A table or other text result, on standard output; left out in JSON mode."""
        if not self.as_json:
            print(text, flush=True)

    def done(self, message: str, facts: dict[str, Any]) -> None:
        """The result of a command."""
        if self.as_json:
            print(json.dumps(serial.to_dict(facts), indent=2, ensure_ascii=False), flush=True)
            return
        print(f"✓ {message}")
        for key, value in facts.items():
            if value is not None:
                print(f"  {key}: {_plain(value)}")
        sys.stdout.flush()


WIDTH = 120
"""Letters of a line that people can read."""


def rows(lines: Iterable[tuple[str, ...]], header: tuple[str, ...], width: int | None = None) -> str:
    """A plain text table with aligned columns.

    Args:
        lines: cells.
        header: names of the columns.
        width: where lines are broken, in the last column; None breaks none.
    """
    table = [header, *lines]
    if width is not None:
        table = list(_broken(table, width))
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _broken(table: list[tuple[str, ...]], width: int) -> Iterator[tuple[str, ...]]:
    room = width - sum(max(len(row[i]) for row in table) + 2 for i in range(len(table[0]) - 1))
    for *cells, last in table:
        first, *rest = textwrap.wrap(last, room) or [""]
        yield (*cells, first)
        yield from ((*[""] * len(cells), more) for more in rest)


def _hide_bars() -> None:
    """Hide the progress bars of the libraries, whether they are imported already or not: importing takes seconds."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"  # read by huggingface_hub, transformers and datasets when they are imported
    for module, function in (
        ("transformers.utils.logging", "disable_progress_bar"),
        ("huggingface_hub.utils", "disable_progress_bars"),
        ("datasets.utils", "disable_progress_bars"),
    ):
        if module in sys.modules:
            getattr(sys.modules[module], function)()


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _set_up_logging(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logger = logging.getLogger("hf_prune")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)


class _Plain(logging.Formatter):
    """The message alone; warnings say that they are one."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"Warning: {text}" if record.levelno >= logging.WARNING else text
