"""The table of methods that README shows; `python -m tests.method_list` prints it."""

import sys

from hf_prune.method_table import combined, forwards, goes, needs, source_id
from hf_prune.methods import METHODS


def render() -> str:
    """A row for each recipe, as Markdown."""
    lines = [
        "| method | what goes | measure + planner + surgery | forwards to choose | needs | paper |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS.values():
        name = f"`{method.name}`" + (" (default)" if method.name == "uidl" else "")
        paper = f"[{source_id(method.paper)}]({method.paper})"
        cells = (name, goes(method), combined(method), forwards(method), needs(method), paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
