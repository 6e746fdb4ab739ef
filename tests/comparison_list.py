"""The short table of the comparison that README shows; `python -m tests.comparison_list` prints it."""

import sys
from collections.abc import Callable
from pathlib import Path

from hf_prune.comparing.record import Comparison
from hf_prune.comparing.standings import Figure, Mean, Standing, kl, mean_accuracy, perplexity, standings
from hf_prune.planners.choice import in_words
from hf_prune.sweeping.record import Stage

FOLDER = Path(__file__).parent.parent / "model_cards" / "comparison"


def render() -> str:
    """A row for each method, the best healed one first, as Markdown."""
    found = Comparison.load(FOLDER)
    further = len(found.original.perplexity) > 1
    header = ["method", "seeds", "layers gone (first seed)", "perplexity, pruned", "healed", "KL, healed"]
    header += ["perplexity on WikiText-2, healed"] * further + ["BLiMP, healed", "to choose"]
    original = found.original
    first = ["(original)", "", "", "", _number(perplexity(0)(original), 1), ""]
    first += [_number(perplexity(1)(original), 0)] * further + [_share(mean_accuracy(original)), ""]
    lines = [header, ["---"] * len(header), first]
    for standing in standings(found):
        lines.append(_row(standing, further))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(standing: Standing, further: bool) -> list[str]:
    one = standing.done[0]

    def cell(stage: Stage, figure: Figure, digits: int) -> str:
        return _mean(standing.figure(stage, figure), lambda value: _number(value, digits))

    seconds = standing.over_seeds(lambda attempt: None if attempt.choosing is None else attempt.choosing.seconds)
    cells = [f"`{standing.contender.name}`", str(len(standing.done)), in_words(one.removed)]
    cells += [cell("pruned", perplexity(0), 1), cell("healed", perplexity(0), 1), cell("healed", kl, 3)]
    if further:
        cells.append(cell("healed", perplexity(1), 0))
    cells.append(_mean(standing.figure("healed", mean_accuracy), _share))
    return [*cells, "–" if seconds is None else f"{seconds.value:.1f} s"]


def _mean(mean: Mean | None, words: Callable[[float | None], str]) -> str:
    if mean is None:
        return "–"
    return words(mean.value) + ("" if mean.spread is None else f" ± {words(mean.spread)}")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
