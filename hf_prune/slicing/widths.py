"""How wide each layer becomes: the constant schedule, and schedules that follow redundancy."""

import math
from collections.abc import Sequence

from hf_prune.allocation import allocate, min_max, round_to_total
from hf_prune.errors import ConfigError


def layer_redundancy(cosines: Sequence[float]) -> tuple[float, ...]:
    """Layer Redundancy: LR_l = (c_l - min c) / (max c - min c), in [0, 1], higher for the more redundant layer.

    Args:
        cosines: mean cosine of each layer. Where all are equal, no layer stands out and all have 1.

    Raises:
        ConfigError: there are none, or some are NaN or infinite.
    """
    return min_max(cosines)


def constant_widths(hidden_size: int, layers: int, sparsity: float, *, multiple: int = 8) -> tuple[int, ...]:
    """The same width for all layers (SliceGPT, arXiv:2401.15024): (1 - s) · D, rounded down to a multiple.

    Args:
        hidden_size: D.
        layers: how many.
        sparsity: s, the share of the width that goes, in (0, 1).
        multiple: of which widths are multiples.

    Returns:
        One width a layer.

    Raises:
        ConfigError: a setting is out of its range, or no width is left.
    """
    if not 1 <= multiple <= hidden_size:
        raise ConfigError(
            f"widths cannot be multiples of {multiple}; expected at least 1 and at most the hidden size {hidden_size}"
        )
    if layers < 1:
        raise ConfigError(f"cannot choose widths for {layers} layers; expected at least 1")
    if not 0 < sparsity < 1:
        raise ConfigError(
            f"sparsity {sparsity} is out of range; expected a share of the width above 0 and below 1, such as 0.25"
        )
    # 1 - 0.9 is a hair below 0.1: without rounding, 0.9 of a width of 80 would leave 7 columns instead of 8.
    width = math.floor(round((1 - sparsity) * hidden_size, 6))
    width -= width % multiple
    if width == 0:
        largest = math.floor((1 - multiple / hidden_size) * 1e6) / 1e6
        advice = (
            f"Take a sparsity of at most {largest} or a smaller multiple" if largest else "Take a smaller multiple"
        )
        raise ConfigError(
            f"sparsity {sparsity} leaves no width: less than one multiple of {multiple} of the hidden size "
            f"{hidden_size}. {advice}"
        )
    return (width,) * layers


def dynamic_widths(
    redundancy: Sequence[float], hidden_size: int, sparsity: float, base: float, *, multiple: int = 8
) -> tuple[int, ...]:
    """The more redundant a layer, the narrower (Dynamic Slicing, arXiv:2411.03513), at the constant schedule's mean.

    d_i = D · (1 - FS_i) with FS of `allocate`, rounded to multiples. The sum of the widths is that of
    `constant_widths` with the same sparsity, so that the two differ in nothing but where they cut.

    Args:
        redundancy: LR of each layer, in [0, 1].
        hidden_size: D.
        sparsity: SP, the mean share of the width that goes, in (0, 1).
        base: SB, the share that every layer loses at least, in [0, sparsity]; equal to it, the result is
            `constant_widths`.
        multiple: of which widths are multiples. None is wider than the greatest multiple in D.

    Returns:
        One width a layer.

    Raises:
        ConfigError: a setting is out of its range, or no width is left.
    """
    _check_redundancy(redundancy)
    constant = constant_widths(hidden_size, len(redundancy), sparsity, multiple=multiple)
    if not 0 <= base <= sparsity:
        raise ConfigError(
            f"slice base {base} is out of range; expected at least 0 and at most the sparsity {sparsity}, which is "
            "what layers lose on average"
        )
    # The constant schedule fits, so the sparsity itself is never too much; rounding could say otherwise.
    most = max(1 - multiple / hidden_size, sparsity)
    shares = allocate(redundancy, sparsity, base, high=most)
    return round_to_total(
        [hidden_size * (1 - share) for share in shares],
        sum(constant),
        multiple,
        low=multiple,
        high=hidden_size - hidden_size % multiple,  # a width that is no multiple would spoil the sum
    )


def point_widths(
    widths: Sequence[int], hidden_size: int, *, parallel: bool, slice_head: bool = False
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Width of the residual stream at every point, from the width in which each layer reads it.

    Attention adds in the layer's own width; the MLP (or a parallel block as a whole) adds in the next layer's.

    Args:
        widths: one a layer, each from 1 to `hidden_size`.
        hidden_size: D.
        parallel: whether attention and MLP of a block add at once.
        slice_head: whether the head reads the last layer's width instead of D.

    Returns:
        Width of the embeddings; behind the attention of each layer (empty when parallel); behind each layer.

    Raises:
        ConfigError: there is no width, or one is out of its range.
    """
    if not widths:
        raise ConfigError("there are no widths; expected one a layer")
    for layer, width in enumerate(widths):
        if not 1 <= width <= hidden_size:
            raise ConfigError(f"layer {layer} has width {width}; expected 1 to the hidden size {hidden_size}")
    last = widths[-1] if slice_head else hidden_size
    return widths[0], () if parallel else tuple(widths), (*widths[1:], last)


def _check_redundancy(redundancy: Sequence[float]) -> None:
    if not redundancy:
        raise ConfigError("there is no redundancy to follow; expected a number a layer")
    for layer, score in enumerate(redundancy):
        if not 0 <= score <= 1:
            raise ConfigError(
                f"the redundancy of layer {layer} is {score}; expected 0 to 1. Scale cosines by layer_redundancy first"
            )
