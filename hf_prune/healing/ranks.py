"""How large adapters are, and by which factor they count, block by block."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.registries import kind_of
from hf_prune.healing.targets import Targets

VARIANTS = ("use_dora", "use_rslora", "last_rank")
"""Settings that mean something for adapters alone, and nothing where they are not set."""


@dataclass(frozen=True)
class Ranks:
    """Rank and scaling of adapters.

    One rank r everywhere, or ranks that grow with depth (PRILoRA, https://arxiv.org/abs/2401.11316): the block at
    position p, between the first block f and the last one l that carry adapters, has

        r_p = round(r + (r_l - r) (p - f) / (l - f)).

    An adapter counts alpha_p / r_p times, and alpha_p grows with r_p, so that this factor is the same in all blocks.
    With rsLoRA (https://arxiv.org/abs/2312.03732) it counts alpha / sqrt(r_p) times: that is the factor which suits
    every rank, and alpha stays as it is.

    Attributes:
        rank: r, in the first block.
        alpha: in the first block.
        last_rank: r_l, in the last block; None for one rank everywhere.
        use_rslora: whether the factor is that of rsLoRA.
    """

    rank: int
    alpha: int
    last_rank: int | None = None
    use_rslora: bool = False

    @classmethod
    def of(cls, config: HealingConfig) -> "Ranks":
        """Those of a resolved config.

        Raises:
            ConfigError: the last rank is below the first one.
        """
        assert config.rank and config.alpha
        return cls._checked(config.rank, config.alpha, config.last_rank, config.use_rslora)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> "Ranks":
        """Those of the settings in a record, which may be anybody's; older ones know one rank alone.

        Raises:
            ConfigError: a setting is missing or no such thing.
        """
        rank, alpha = settings.get("rank"), settings.get("alpha")
        last_rank, use_rslora = settings.get("last_rank"), settings.get("use_rslora", False)
        for name, value in (("rank", rank), ("alpha", alpha), ("last_rank", last_rank)):
            if (value is not None or name != "last_rank") and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r}; expected a whole number of at least 1")
        if type(use_rslora) is not bool:
            raise ConfigError(f"use_rslora={use_rslora!r}; expected true or false")
        assert rank is not None and alpha is not None
        return cls._checked(rank, alpha, last_rank, use_rslora)

    @classmethod
    def _checked(cls, rank: int, alpha: int, last_rank: int | None, use_rslora: bool) -> "Ranks":
        if last_rank is not None and last_rank < rank:
            raise ConfigError(
                f"healing.last_rank={last_rank} is below rank={rank}, from which ranks grow with depth; expected at "
                f"least {rank}, or a lower rank"
            )
        return cls(rank, alpha, last_rank, use_rslora)

    def by_block(self, positions: Collection[int]) -> dict[int, int]:
        """The rank in each block.

        Args:
            positions: of the blocks that carry adapters.

        Raises:
            ConfigError: ranks are to grow, and a single block carries adapters.
        """
        if self.last_rank is None or self.last_rank == self.rank:
            return dict.fromkeys(sorted(positions), self.rank)
        first, last = min(positions), max(positions)
        if first == last:
            raise ConfigError(
                f"healing.last_rank={self.last_rank}: block {first} alone carries adapters, and ranks grow from block "
                "to block; leave last_rank out"
            )
        step = (self.last_rank - self.rank) / (last - first)
        return {position: round(self.rank + step * (position - first)) for position in sorted(positions)}

    def alpha_of(self, rank: int) -> float:
        """alpha of the adapters of one rank."""
        return float(self.alpha) if self.use_rslora else self.alpha * rank / self.rank

    def scaling(self, rank: int) -> float:
        """The factor of the adapters of one rank."""
        return self.alpha_of(rank) / (math.sqrt(rank) if self.use_rslora else rank)

    def patterns(self, targets: Targets) -> tuple[dict[str, int], dict[str, float]]:
        """What differs from block to block as PEFT's `rank_pattern` and `alpha_pattern`: regular expressions of names.

        Args:
            targets: the maps that carry adapters.

        Raises:
            ConfigError: see `by_block`.
        """
        ranks = self.by_block(set(targets.positions.values()))
        other = {
            rf"{re.escape(targets.blocks_path)}\.{position}\..*": rank
            for position, rank in ranks.items()
            if rank != self.rank
        }
        return other, {} if self.use_rslora else {name: self.alpha_of(rank) for name, rank in other.items()}


def check_of_adapters(config: HealingConfig, names: Sequence[str] = VARIANTS) -> None:
    """Refuse settings of adapters where weights are trained themselves.

    Args:
        config: its target is known.
        names: of the settings.

    Raises:
        ConfigError: one of them is set.
    """
    said = [name for name in names if getattr(config, name) not in (None, False)]
    if said and kind_of(str(config.target)) == "weights":
        raise ConfigError(
            f"healing.{said[0]}={getattr(config, said[0])!r} is of adapters, and target '{config.target}' trains "
            "weights themselves. Leave it out, or take target 'mlp' or 'all', or names of linear maps"
        )
