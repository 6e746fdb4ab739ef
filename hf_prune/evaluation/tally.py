"""Means over tokens whose standard error knows that the tokens of a window hang together."""

import math

import torch


class Tally:
    """Float64 counts and sums of a quantity, by window.

    With n_w tokens and sum S_w in window w of W, and N = Σ n_w: the mean is R = Σ S_w / N, and its standard error is
    that of a ratio of sums over windows, sqrt(W / (W - 1) · Σ (S_w - R·n_w)²) / N; for windows of equal length this
    is the sample standard deviation of the window means over sqrt(W). A single window says nothing about the spread
    between windows: there, its tokens take the windows' place.
    """

    def __init__(self, windows: int) -> None:
        self._count = torch.zeros(windows, dtype=torch.float64)
        self._sum = torch.zeros(windows, dtype=torch.float64)
        self._squares = torch.zeros(windows, dtype=torch.float64)

    def add(self, window: torch.Tensor, values: torch.Tensor) -> None:
        """Count values.

        Args:
            window: (n,) int64 on the CPU, window index of each value.
            values: (n,) of any dtype, on any device.
        """
        values = values.to("cpu", torch.float64)
        self._count.index_add_(0, window, torch.ones_like(values))
        self._sum.index_add_(0, window, values)
        self._squares.index_add_(0, window, values.square())

    @property
    def count(self) -> int:
        """Values counted."""
        return int(self._count.sum())

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self._sum.sum())

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count

    def means(self, groups: torch.Tensor, count: int) -> tuple[float | None, ...]:
        """The mean of each of `count` groups of windows; None where nothing was counted.

        Args:
            groups: (windows,) int64, the group that each window belongs to.
            count: groups there are.
        """
        sums, counts = torch.zeros(2, count, dtype=torch.float64)
        sums.index_add_(0, groups, self._sum)
        counts.index_add_(0, groups, self._count)
        return tuple(s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True))

    @property
    def standard_error(self) -> float:
        """Of the mean; 0.0 for a single value."""
        used = int((self._count > 0).sum())
        if used > 1:
            spread = float((self._sum - self.mean * self._count).square().sum())
            return math.sqrt(used / (used - 1) * spread) / self.count
        if self.count < 2:
            return 0.0
        spread = max(0.0, float(self._squares.sum()) - self.total * self.mean)
        return math.sqrt(spread / (self.count - 1) / self.count)
