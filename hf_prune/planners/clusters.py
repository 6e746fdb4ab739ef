"""Blocks taken from clusters of layers that are alike."""

import math
from collections.abc import Sequence

import numpy

from hf_prune.errors import ConfigError
from hf_prune.planners.choice import Choice, blocks
from hf_prune.planners.problem import Problem
from hf_prune.planners.window import check_blocks
from hf_prune.records import ranges
from hf_prune.registry import planner

# Representation locality from which on there are so many clusters (LoRP section 5.1).
_CLUSTERS = ((1.0, 2), (0.7, 3), (-math.inf, 4))
_STARTS = 32

Similarities = numpy.ndarray
"""(layers, layers) float64 mean cosines between the inputs of blocks, 1 on the diagonal."""


@planner(
    "clusters",
    title="From clusters of layers that are alike, those most like the rest",
    url="https://arxiv.org/abs/2605.27786",
    needs="scores",
    scores=("cosines",),
)
def clusters(problem: Problem, *, clusters: int | None = None) -> Choice:
    """Cluster layers by the cosines of their inputs, and thin the clusters out (LoRP equations 5 to 10).

    Each layer's redundancy is its mean cosine to the rest of its cluster. First each cluster, from the lowest layer
    on, gives its most redundant one that may go; then, one at a time, the cluster whose remaining layers are most
    alike (mean over pairs) gives its next. Protected layers belong to clusters and count as alike, but never go. A
    layer that is a cluster of its own is the most redundant of it, and goes in the first stage, as in the released
    code: protect it where that is not wanted.

    Args:
        problem: what is asked; its scores are pairwise distances by measure 'cosine'.
        clusters: how many; by how local representations are when None.

    Raises:
        ConfigError: there are no such scores, parts of blocks are asked for, or there are fewer layers than clusters.
    """
    check_blocks(problem, "clusters")
    similar = similarities(problem)
    locality = representation_locality(similar)
    count = next(k for bound, k in _CLUSTERS if locality >= bound) if clusters is None else clusters
    if not 1 <= count <= len(similar):
        raise ConfigError(f"clusters={count} of the {len(similar)} layers of '{problem.model}'; expected 1 to as many")
    members = spectral_clusters(similar, count)
    chosen = sorted(thin_out(similar, members, {unit.layer for unit in problem.units}, problem.size))
    told = "; ".join(
        f"{ranges(tuple(m for m in group if m in chosen))} of {ranges(tuple(group))}" for group in members
    )
    return Choice(
        blocks(chosen),
        f"Of {len(members)} clusters of layers (representation locality {locality:.3f}), those most like the rest of "
        f"theirs go: {told}.",
    )


def similarities(problem: Problem) -> Similarities:
    """Mean cosines between what enters the blocks.

    Args:
        problem: what is asked.

    Raises:
        ConfigError: it has no cosines.
    """
    if problem.scores is None or problem.scores.measure != "cosine":
        given = "none" if problem.scores is None else f"those of measure '{problem.scores.measure}'"
        raise ConfigError(
            f"planner 'clusters' chooses by the scores of measure 'cosine'; got {given}. Measure with it"
        )
    return 1 - numpy.array(problem.scores.distances)[: problem.depth, : problem.depth]


def representation_locality(similar: Similarities) -> float:
    """-log2 of the mean cosine of two layers (LoRP equations 5 and 6); infinite where that is not above zero.

    Args:
        similar: see `Similarities`.
    """
    pairs = similar[numpy.triu_indices(len(similar), 1)]
    mean = float(pairs.mean()) if len(pairs) else 1.0
    return -math.log2(mean) if mean > 0 else math.inf


def thin_out(similar: Similarities, members: Sequence[Sequence[int]], allowed: set[int], size: int) -> list[int]:
    """LoRP's two stages.

    Args:
        similar: see `Similarities`.
        members: layers of each cluster.
        allowed: layers that may go.
        size: how many go.

    Returns:
        The layers that go, in the order in which they were taken.
    """

    def redundancy(layer: int, group: Sequence[int]) -> float:
        others = [other for other in group if other != layer]
        return float(similar[layer, others].mean()) if others else -math.inf

    def alike(group: Sequence[int]) -> float:
        left = [layer for layer in group if layer not in taken]
        pairs = similar[numpy.ix_(left, left)][numpy.triu_indices(len(left), 1)]
        return float(pairs.mean()) if len(pairs) else -math.inf

    taken: list[int] = []
    waiting = [
        [layer for _, layer in sorted((-redundancy(layer, group), layer) for layer in group if layer in allowed)]
        for group in members
    ]
    for queue in waiting:
        if queue and len(taken) < size:
            taken.append(queue.pop(0))
    while len(taken) < size:
        best = max((k for k, queue in enumerate(waiting) if queue), key=lambda k: (alike(members[k]), -k))
        taken.append(waiting[best].pop(0))
    return taken


def spectral_clusters(similar: Similarities, count: int) -> list[list[int]]:
    """Spectral clustering of layers with the affinity (S + 1) / 2 (LoRP equation 7).

    Layers are placed by the leading eigenvectors of the affinity that is normalised by its sums (Ng, Jordan and Weiss;
    without the diagonal), each divided by the root of its sum, and k-means parts them: the best of 32 starts that
    spread as k-means++ does, always the same ones. That is what scikit-learn does with 10 starts; for a table of a few
    dozen rows it is not worth a dependency.

    Args:
        similar: see `Similarities`.
        count: of clusters.

    Returns:
        The layers of each cluster, ascending; clusters by their lowest layer. Fewer where points coincide.
    """
    affinity = (similar + 1) / 2
    numpy.fill_diagonal(affinity, 0)
    root = numpy.sqrt(affinity.sum(0).clip(min=numpy.finfo(float).tiny))
    _, vectors = numpy.linalg.eigh(affinity / numpy.outer(root, root))
    labels = _k_means(vectors[:, -count:] / root[:, None], count)
    groups = [numpy.flatnonzero(labels == k).tolist() for k in range(count)]
    return sorted(group for group in groups if group)


def _k_means(points: numpy.ndarray, count: int) -> numpy.ndarray:
    draw = numpy.random.default_rng(0)
    best, least = numpy.zeros(len(points), int), math.inf
    for _ in range(_STARTS):
        centres = points[[draw.integers(len(points))]]
        while len(centres) < count:
            far = _squares(points, centres).min(1)
            likely = far / far.sum() if far.sum() > 0 else numpy.full(len(points), 1 / len(points))
            centres = numpy.vstack([centres, points[draw.choice(len(points), p=likely)]])
        labels = numpy.full(len(points), -1)
        while (found := _squares(points, centres).argmin(1)).tolist() != labels.tolist():
            labels = found
            centres = numpy.stack(
                [points[labels == k].mean(0) if (labels == k).any() else centres[k] for k in range(count)]
            )
        spread = float(_squares(points, centres)[range(len(points)), labels].sum())
        if spread < least * (1 - 1e-9):  # one that is less by rounding alone is the same one
            best, least = labels, spread
    return best


def _squares(points: numpy.ndarray, centres: numpy.ndarray) -> numpy.ndarray:
    """(points, centres) squared distances."""
    return ((points[:, None] - centres) ** 2).sum(-1)
