"""What a verification found: one check a line, claimed against measured."""

import textwrap
from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_prune.record_base import ModelRef, Record

Status = Literal["pass", "fail", "shown", "skipped"]


@dataclass(frozen=True)
class Check:
    """One claim, and what was found.

    Attributes:
        name: what is claimed.
        status: "shown" is for reading and never fails; "skipped" says in `reason` why it could not be checked.
        claimed: by the records.
        measured: here.
        tolerance: how far apart the two may be.
        reason: why it failed, was skipped, or is only shown.
    """

    name: str
    status: Status
    claimed: str = ""
    measured: str = ""
    tolerance: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verification(Record):
    """All checks of one model.

    Attributes:
        model: repo or folder.
        revision: commit of the repo; None for a folder.
        base: the model it was made from.
        checks: in the order in which they were made.
        seconds: they took, downloads included.
    """

    FILE: ClassVar[str] = "verification.json"

    model: str
    revision: str | None
    base: ModelRef
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.count("fail")

    def count(self, status: Status) -> int:
        """Checks of this status."""
        return sum(check.status == status for check in self.checks)

    def summary(self) -> str:
        """Such as "12 passed, 1 failed, 3 shown, 1 skipped"."""
        words = {"pass": "passed", "fail": "failed", "shown": "shown", "skipped": "skipped"}
        counts = {words[status]: self.count(status) for status in ("pass", "fail", "shown", "skipped")}
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count or word == "passed")

    def table(self, width: int = 110) -> str:
        """Checks as aligned text, with reasons on lines of their own; control characters are left out."""
        header = ("check", "claimed", "measured", "tolerance", "result")
        rows = [
            header,
            *((_clean(c.name), _clean(c.claimed), _clean(c.measured), c.tolerance, c.status) for c in self.checks),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = []
        for number, row in enumerate(rows):
            lines.append("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
            reason = _clean(self.checks[number - 1].reason) if number else ""
            if reason:
                lines += textwrap.wrap(reason, width, initial_indent="    ", subsequent_indent="    ")
        return "\n".join(lines)


def outcome(name: str, problems: list[str], measured: str, claimed: str = "", most: int = 3) -> Check:
    """A check that passes where there are no problems, and names the first of them where there are.

    Args:
        name: of the check.
        problems: what is wrong, one clause each.
        measured: what was looked at, such as "74 tensors".
        claimed: by the records.
        most: problems that are named.
    """
    if not problems:
        return Check(name, "pass", claimed, measured)
    further = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return Check(name, "fail", claimed, measured, reason="; ".join(problems[:most]) + further)


def _clean(text: str) -> str:
    """Text on one line, without what a terminal would obey: names and figures come from a repo."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
