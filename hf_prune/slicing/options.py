"""What can be set of slicing, checked before any work; light enough for every command."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_prune import serial
from hf_prune.errors import ConfigError
from hf_prune.stage_configs import check_from_zero, check_positive

SEARCH = "search"
"""Value of `slice_base`: try several, take the one that loses least on text held out from calibration."""


@dataclass(frozen=True)
class SliceOptions:
    """Options of the surgery "slice" (`surgery_kwargs`).

    Attributes:
        basis: "per_block" finds a rotation for each point of the stream (SliceGPT); "global" one for all of them: no
            shortcuts, one width, and in many families a stock model again.
        orientation: "pca" sorts the kept directions by what they carry; "random" mixes them, which suits quantization.
        weighting: "raw" counts tokens as they are; "token" scales each to the same norm first.
        tied: whether head and embeddings of a tied model stay one table; None keeps them so, except where that would
            keep a global basis from becoming a stock model.
        slice_head: whether the last point, which the head reads, is narrowed too.
        seed: of a random orientation.
    """

    basis: Literal["per_block", "global"] = "per_block"
    orientation: Literal["pca", "random"] = "pca"
    weighting: Literal["raw", "token"] = "raw"
    tied: bool | None = None
    slice_head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        serial.settle(self)
        check_from_zero(self, "seed")


@dataclass(frozen=True)
class WidthOptions:
    """Options of the planners of widths (`planner_kwargs`).

    Attributes:
        slice_base: share that every layer loses at least, or "search"; only for dynamic schedules.
        multiple: of which widths are multiples.
    """

    slice_base: float | str = SEARCH
    multiple: int = 8

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_positive(self, "multiple")
        base = self.slice_base
        number = isinstance(base, int | float) and not isinstance(base, bool) and 0 <= base < 1
        if base != SEARCH and not number:
            raise ConfigError(
                f"slice_base={base!r}; expected '{SEARCH}', or a share from 0 to the sparsity (which makes all layers "
                "equal)"
            )


def check_options(
    surgery_kwargs: dict[str, Any], planner_kwargs: dict[str, Any], sparsity: float | None, amount_of: str
) -> None:
    """Refuse options of slicing that mean nothing or contradict each other.

    Raises:
        ConfigError: names the option and its value.
    """
    SliceOptions(**surgery_kwargs)
    widths = WidthOptions(**planner_kwargs)
    base = widths.slice_base
    if sparsity is not None and amount_of == "width" and not isinstance(base, str) and base > sparsity:
        raise ConfigError(
            f"slice_base={base} is above sparsity={sparsity}: every layer would lose more than all on average. "
            f"Expected at most {sparsity}"
        )
