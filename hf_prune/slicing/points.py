"""The widths of a sliced residual stream."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Widths:
    """Width of the residual stream at each point.

    Attributes:
        embed: of the embeddings.
        attn_out: behind the attention of each layer; empty for parallel blocks, which add once.
        mlp_out: behind each layer.
    """

    embed: int
    attn_out: tuple[int, ...]
    mlp_out: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `config.slice_dims`."""
        return {"embed": self.embed, "attn_out": list(self.attn_out), "mlp_out": list(self.mlp_out)}
