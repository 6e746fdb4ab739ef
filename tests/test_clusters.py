"""Clusters of layers: found where they are planted, and thinned out as the paper says."""

import dataclasses
import itertools
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import ConfigError
from hf_prune.planners import clusters as planner
from hf_prune.planners.clusters import representation_locality, spectral_clusters, thin_out
from hf_prune.planners.problem import Problem
from hf_prune.records import Scores
from hf_prune.units import Unit

from .making import asked, scores


def record(similar: numpy.ndarray) -> Scores:
    """Scores whose block inputs have these cosines; what leaves the last block is at right angles to all."""
    table = numpy.ones((len(similar) + 1,) * 2)
    table[:-1, :-1] = 1 - similar
    numpy.fill_diagonal(table, 0)
    return dataclasses.replace(scores(table.tolist()), measure="cosine")


def planted(sizes: list[int], within: list[float], across: float = 0.05) -> numpy.ndarray:
    """Cosines of layers in groups, one behind the other."""
    group = numpy.repeat(range(len(sizes)), sizes)
    similar = numpy.where(group[:, None] == group, numpy.array(within)[group][:, None], across)
    numpy.fill_diagonal(similar, 1)
    return similar


def noisy(similar: numpy.ndarray, seed: int = 0, amount: float = 0.02) -> numpy.ndarray:
    noise = numpy.random.default_rng(seed).normal(0, amount, similar.shape)
    similar = similar + (noise + noise.T) / 2
    numpy.fill_diagonal(similar, 1)
    return similar


def runs(sizes: list[int]) -> list[list[int]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [list(range(a, b)) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("sizes", [[6, 6], [3, 9], [4, 5, 7], [2, 3, 4, 7], [12], [1, 7, 8]])
@pytest.mark.parametrize("seed", range(4))
def test_planted_clusters_are_found(sizes: list[int], seed: int) -> None:
    within = numpy.linspace(0.7, 0.9, len(sizes)).tolist()
    similar = noisy(planted(sizes, within), seed)
    assert spectral_clusters(similar, len(sizes)) == runs(sizes)
    order = numpy.random.default_rng(seed).permutation(len(similar))
    mixed = spectral_clusters(similar[numpy.ix_(order, order)], len(sizes))
    assert sorted(sorted(order[group].tolist()) for group in mixed) == runs(sizes)


@pytest.mark.parametrize("seed", range(6))
def test_clusters_are_those_of_scikit_learn(seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    draw = numpy.random.default_rng(seed)
    position = numpy.sort(draw.uniform(0, 3, 24))  # layers drift apart with depth, as in models
    similar = noisy(numpy.exp(-abs(position[:, None] - position)), seed, 0.01)
    for count in (2, 3, 4):
        theirs = cluster.SpectralClustering(
            n_clusters=count, affinity="precomputed", random_state=0, assign_labels="kmeans"
        ).fit_predict((similar + 1) / 2)
        assert spectral_clusters(similar, count) == sorted(
            numpy.flatnonzero(theirs == k).tolist() for k in set(theirs)
        )


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_clusters_part_all_layers(depth: int, count: int, seed: int) -> None:
    draw = numpy.random.default_rng(seed).normal(size=(depth, 3))
    unit = draw / numpy.linalg.norm(draw, axis=1, keepdims=True)
    found = spectral_clusters(unit @ unit.T, min(count, depth))
    assert sorted(i for group in found for i in group) == list(range(depth))
    assert found == spectral_clusters(unit @ unit.T, min(count, depth)), "the same each time"
    assert [group[0] for group in found] == sorted(group[0] for group in found)


def test_layers_that_are_all_alike_part_somehow() -> None:
    found = spectral_clusters(numpy.ones((6, 6)), 4)
    assert sorted(i for group in found for i in group) == list(range(6))


def test_representation_locality() -> None:
    similar = planted([2, 2], [0.8, 0.6], 0.2)
    assert representation_locality(similar) == pytest.approx(-math.log2((0.8 + 0.6 + 4 * 0.2) / 6))
    assert representation_locality(numpy.ones((3, 3))) == 0
    assert representation_locality(-numpy.ones((3, 3))) == math.inf


@pytest.mark.parametrize(
    ("mean", "count"), [(0.49, 2), (0.5, 2), (0.51, 3), (2**-0.701, 3), (2**-0.699, 4), (0.95, 4), (-0.2, 2)]
)
def test_how_local_representations_are_says_how_many_clusters(
    mean: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []
    real = planner.spectral_clusters
    monkeypatch.setattr(planner, "spectral_clusters", lambda s, k: (asked_for.append(k), real(s, k))[1])
    similar = numpy.full((8, 8), mean)
    numpy.fill_diagonal(similar, 1)
    planner.clusters(asked(record(similar), 2, range(1, 7)))
    planner.clusters(asked(record(similar), 2, range(1, 7)), clusters=5)
    assert asked_for == [count, 5]


def by_hand(similar: numpy.ndarray, groups: list[list[int]], allowed: set[int], size: int) -> list[int]:
    """The two stages, step by step, without anything computed before."""
    taken: list[int] = []

    def next_of(group: list[int]) -> int | None:
        left = [i for i in group if i in allowed and i not in taken]
        rest = {i: [similar[i, j] for j in group if j != i] for i in left}
        return min(left, key=lambda i: (-numpy.mean(rest[i]) if rest[i] else math.inf, i), default=None)

    for group in groups:
        if len(taken) < size and (layer := next_of(group)) is not None:
            taken.append(layer)
    while len(taken) < size:
        best, most = None, -math.inf
        for group in groups:
            pairs = [similar[i, j] for i, j in itertools.combinations([i for i in group if i not in taken], 2)]
            mean = numpy.mean(pairs) if pairs else -math.inf
            if next_of(group) is not None and (best is None or mean > most):
                best, most = group, mean
        assert best is not None
        layer = next_of(best)
        assert layer is not None
        taken.append(layer)
    return taken


@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_thinning_out_equals_doing_it_by_hand(depth: int, count: int, seed: int, data: st.DataObject) -> None:
    draw = numpy.random.default_rng(seed)
    similar = draw.uniform(-1, 1, (depth, depth))
    similar = (similar + similar.T) / 2
    label = draw.integers(0, count, depth)
    groups = [g for k in range(count) if (g := numpy.flatnonzero(label == k).tolist())]
    allowed = data.draw(st.sets(st.integers(0, depth - 1), min_size=1))
    size = data.draw(st.integers(1, len(allowed)))
    found = thin_out(similar, groups, allowed, size)
    assert found == by_hand(similar, groups, allowed, size)
    assert len(set(found)) == size and allowed.issuperset(found)
    for smaller in range(1, size):
        assert thin_out(similar, groups, allowed, smaller) == found[:smaller], "a smaller budget stops sooner"


def test_each_cluster_gives_one_first_and_then_the_densest() -> None:
    similar = noisy(planted([4, 5, 7], [0.6, 0.8, 0.95], 0.55), amount=1e-4)
    assert 0.5 < 2 ** -representation_locality(similar) < 2**-0.4
    problem = asked(record(similar), 3, range(1, 15))
    choice = planner.clusters(problem, clusters=3)
    assert [sum(i in group for i in choice.layers) for group in runs([4, 5, 7])] == [1, 1, 1]
    more = planner.clusters(dataclasses.replace(problem, size=6), clusters=3)
    assert set(more.layers) > set(choice.layers)
    assert [sum(i in group for i in more.layers) for group in runs([4, 5, 7])] == [1, 1, 4]
    assert "3 clusters" in choice.reason and "of 0–3" in choice.reason


def test_protected_layers_never_go() -> None:
    similar = noisy(planted([5, 5], [0.9, 0.8], 0.1))
    for size in range(1, 9):
        layers = planner.clusters(asked(record(similar), size, range(1, 9))).layers
        assert len(layers) == size and set(layers) <= set(range(1, 9))
    assert planner.clusters(asked(record(similar), 8, range(1, 9))).layers == tuple(range(1, 9))


def test_seed_of_the_problem_does_not_matter() -> None:
    similar = noisy(planted([5, 6, 5], [0.9, 0.8, 0.7], 0.3), amount=0.1)
    problem = asked(record(similar), 5, range(1, 15))
    found = {planner.clusters(dataclasses.replace(problem, seed=seed)).layers for seed in range(3)}
    assert len(found) == 1


def test_what_leaves_the_last_block_is_no_layer() -> None:
    similar = noisy(planted([4, 4], [0.9, 0.8], 0.1))
    full = record(similar)
    other = [list(row) for row in full.distances]
    for i in range(8):
        other[i][8] = other[8][i] = 0.0
    twisted = dataclasses.replace(full, distances=tuple(map(tuple, other)))
    assert planner.clusters(asked(full, 3, range(8))) == planner.clusters(asked(twisted, 3, range(8)))


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (asked(None, 2, range(8)), {}, "planner 'clusters' chooses by the scores of measure 'cosine'; got none"),
        (asked(scores(numpy.zeros((5, 5)).tolist()), 2, range(4)), {}, "got those of measure 'angular'"),
        (asked(record(numpy.ones((4, 4))), 2, range(4)), {"clusters": 5}, "clusters=5 of the 4 layers of 'org/model'"),
        (asked(record(numpy.ones((4, 4))), 2, range(4)), {"clusters": 0}, "clusters=0 of the 4 layers"),
        (Problem("m", 4, (Unit(1, "mlp"),), 1), {}, "planner 'clusters' chooses among whole blocks"),
    ],
)
def test_what_cannot_be_clustered(problem: Problem, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planner.clusters(problem, **options)
