"""What can be set of sparsity, checked before any work; light enough for every command."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_prune import serial
from hf_prune.errors import ConfigError

_SLACK = 1e-9


@dataclass(frozen=True)
class SparsityOptions:
    """Options of the surgery "sparsify" (`surgery_kwargs`).

    Attributes:
        scores: "wanda", "magnitude" or "lamp"; the weights of the lowest scores become zero.
        allocation: "uniform" takes the same share of each map, "owl" less from layers with many outliers, "global"
            sets one threshold for all maps.
        pattern: "unstructured"; or "2:4" and "4:8", where 2 of 4 (4 of 8) neighbours along the input of a map stay.
        multiple: M of OWL: scores above M times the mean of their layer are outliers.
        spread: lambda of OWL: shares of two layers differ by at most twice as much.
        inputs: of Wanda, by what each block is pruned: "pruned", the inputs that the pruned blocks before it send (the
            paper's way), or "dense", those of the whole model, in one pass; None is the former, but the latter under
            one threshold for all maps.
    """

    scores: Literal["wanda", "magnitude", "lamp"] = "wanda"
    allocation: Literal["uniform", "owl", "global"] = "uniform"
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    multiple: float = 5.0
    spread: float = 0.08
    inputs: Literal["dense", "pruned"] | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, or contradict each other."""
        serial.settle(self)
        if not self.multiple > 0:
            raise ConfigError(f"multiple={self.multiple}: expected a number above 0, such as 5")
        if not 0 <= self.spread <= 0.5:
            raise ConfigError(f"spread={self.spread}: expected a share from 0 to 0.5, such as 0.08")
        if self.scores == "lamp" and self.allocation != "global":
            raise ConfigError(
                f"allocation={self.allocation!r}: LAMP scores are made to be compared across layers, and within one "
                "they rank as magnitude does; expected allocation='global'"
            )
        if self.pattern != "unstructured" and self.allocation != "uniform":
            raise ConfigError(
                f"pattern={self.pattern!r} takes the same share of every map; allocation={self.allocation!r} does "
                "not. Take allocation='uniform', or pattern='unstructured'"
            )
        if self.inputs == "pruned" and not self._by_block:
            raise ConfigError(
                "inputs='pruned' prunes block by block, each by the inputs that the ones before it send; "
                f"scores={self.scores!r} with allocation={self.allocation!r} cannot. Leave inputs out"
            )

    @property
    def reads_text(self) -> bool:
        """Whether inputs of the maps are looked at, on calibration text."""
        return self.scores == "wanda" or self.allocation == "owl"

    @property
    def in_order(self) -> bool:
        """Whether the inputs of each block are those that the pruned blocks before it send."""
        return self._by_block and self.inputs != "dense"

    @property
    def _by_block(self) -> bool:
        return self.scores == "wanda" and self.allocation != "global"

    @property
    def group(self) -> tuple[int, int] | None:
        """Of a pattern N:M, how many of how many neighbours stay; None where there is none."""
        if self.pattern == "unstructured":
            return None
        kept, _, size = self.pattern.partition(":")
        return int(kept), int(size)


def check_options(surgery_kwargs: dict[str, Any], sparsity: float | None) -> None:
    """Refuse options that mean nothing, or do not go with the amount.

    Args:
        surgery_kwargs: all of the surgery's, the method's among them.
        sparsity: share of the weights that become zero; None where it is not known yet.

    Raises:
        ConfigError: names the option and its value.
    """
    options = SparsityOptions(**surgery_kwargs)
    if sparsity is None or options.group is None:
        return
    kept, size = options.group
    if abs(sparsity - (1 - kept / size)) > _SLACK:
        raise ConfigError(
            f"sparsity={sparsity}: pattern={options.pattern!r} zeroes {size - kept} of {size} weights; expected "
            f"sparsity={1 - kept / size}, or pattern='unstructured'"
        )
