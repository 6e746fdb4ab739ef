"""Cosines of all pairs of layers: against brute force, and beside the measures that see a part of them."""

import math
from typing import Any

import numpy
import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.measure import measure_model
from hf_prune.measures import states
from hf_prune.measures.cosine import PairwiseCosines, pairwise_cosines
from hf_prune.observing import Place
from hf_prune.planners.window import window
from hf_prune.registry import measure
from hf_prune.samples import Samples

from ..making import TEXT, asked, reference
from ..tiny import DEPTH, tiny_model
from .walking import SEQUENCES, captured, measured, write_nothing


def brute_force(model: Any, tokens: str, skip_first: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean over tokens of 1 - cosine, and its standard error over samples, of all pairs."""
    rows = []
    for ids in SEQUENCES:
        h = captured(model, ids)[:, int(skip_first) :]
        u = (h / h.norm(dim=-1, keepdim=True)).numpy()
        rows.append(1 - numpy.einsum("itd,jtd->ijt", u, u)[..., -1 if tokens == "last" else 0 :])
    means = numpy.array([row.mean(2) for row in rows])
    return numpy.concatenate(rows, 2).mean(2), means.std(0, ddof=1) / math.sqrt(len(rows))


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_table_equals_brute_force(tokens: str, skip_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for model_type, held in (("llama", 2**28), ("gpt2", 1)):  # in one piece, and token by token
        monkeypatch.setattr(states, "CHUNK_BYTES", held)
        model = tiny_model(model_type)
        mean, error = brute_force(model, tokens, skip_first)
        for batch_size, tolerance in ((1, 1e-9), (4, 2e-5)):
            found = measured(model, "cosine", batch_size=batch_size, tokens=tokens, skip_first=skip_first)
            assert found["samples"] == len(SEQUENCES) and mean.max() > 0.1
            numpy.testing.assert_allclose(found["distances"], mean, rtol=0, atol=tolerance)
            numpy.testing.assert_allclose(found["standard_errors"], error, rtol=0, atol=10 * tolerance)
            table = numpy.array(found["distances"])
            assert (table == table.T).all() and (table.diagonal() == 0).all()


def test_neighbours_are_the_block_influence() -> None:
    for which in ("all", "last"):
        found = measured(tiny_model("llama"), "cosine", batch_size=3, tokens=which)
        influence = measured(tiny_model("llama"), "block_influence", batch_size=3, tokens=which)
        for key, other in (("distances", "importances"), ("standard_errors", "importance_errors")):
            beside = [found[key][k][k + 1] for k in range(DEPTH)]
            assert beside == pytest.approx(influence[other]["block"], abs=1e-8)


def test_cosine_and_angle_pick_the_same_window_where_tokens_do_not_vary() -> None:
    ids = [SEQUENCES[1]]  # one sample, one token
    cosine = measured(tiny_model("llama"), "cosine", ids, tokens="last")["distances"]
    angle = measured(tiny_model("llama"), "angular", ids)["distances"]
    numpy.testing.assert_allclose(1 - numpy.cos(math.pi * numpy.array(angle)), cosine, atol=1e-12)
    for size in range(1, DEPTH):
        best = [min(range(DEPTH + 1 - size), key=lambda s, t=t: t[s][s + size]) for t in (cosine, angle)]
        assert best[0] == best[1]


def test_planted_blocks_make_the_window(tmp_path: Any) -> None:
    model = tiny_model("llama")
    for index in (4, 5):
        write_nothing(model.model.layers[index], "attention", "mlp")
    samples = Samples(tuple(SEQUENCES), TEXT)
    record = measure_model(decoder_of(model), samples, model=reference(DEPTH), name="cosine")
    assert record.distances[4][6] == pytest.approx(0, abs=1e-14)
    choice = window(asked(record, 2, range(DEPTH)))
    assert choice.layers == (4, 5)
    assert choice.reason.endswith("4–5 turns the residual stream least: its input and output are "
                                  "0.0000 ± 0.0000 apart (1 - cosine).")  # fmt: skip


def test_last_state_is_before_the_final_norm() -> None:
    model = tiny_model("llama")
    before = measured(model, "cosine")["distances"]
    model.model.norm.weight.data.copy_(torch.randn_like(model.model.norm.weight))
    assert measured(model, "cosine")["distances"] == before


def test_known_cosines() -> None:
    points = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [1, 1], [0, 0], [0, 0]], dtype=torch.float64)[:, None]
    half = math.sqrt(0.5)
    expected = [
        [1, 0, -1, half, 0, 0], [0, 1, 0, half, 0, 0], [-1, 0, 1, -half, 0, 0], [half, half, -half, 1, 0, 0],
        [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1],
    ]  # fmt: skip
    numpy.testing.assert_allclose(pairwise_cosines(points)[0], expected, atol=1e-15)


def test_large_half_precision_states_do_not_overflow() -> None:
    u = torch.full((1, 1, 8), 60000.0, dtype=torch.float16)
    v = u.clone()
    v[0, 0, 0] = -60000.0
    observer = PairwiseCosines()
    observer.see(Place(0, 1, 0), u, v, torch.ones(1, 1, dtype=torch.int64))
    assert observer.result()["distances"][0][1] == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize(("tokens", "held"), [("all", 2 * 50), ("last", 2)])
def test_no_more_is_held_than_is_told(tokens: str, held: int) -> None:
    observer = PairwiseCosines(tokens)
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[:, 50:] = 0
    for batch in range(3):
        for layer in range(6):
            h = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(layer)).bfloat16()
            observer.see(Place(layer, 6, batch), h, h + 1, mask)
            store = observer._store
            assert store.in_memory + store.on_disk == (0 if layer == 5 else (layer + 2) * held * 32 * 2)
    assert sum(t.numel() for t in observer.sums()) == 7 * 7 * 5


def test_pads_never_enter_the_sums() -> None:
    h = torch.randn(3, 2, 6, 16, generator=torch.Generator().manual_seed(0))
    nan = torch.full((2, 3, 16), float("nan"))
    for name in ("cosine", "cka"):
        plain, padded = (measure.get(name).function() for _ in range(2))
        for layer in range(2):
            place, ones = Place(layer, 2, 0), torch.ones(2, 6, dtype=torch.int64)
            plain.see(place, h[layer], h[layer + 1], ones)
            mask = torch.cat([ones, torch.zeros(2, 3, dtype=torch.int64)], 1)
            padded.see(place, torch.cat([h[layer], nan], 1), torch.cat([h[layer + 1], nan], 1), mask)
        assert plain.result() == padded.result()


def test_unknown_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens='first'; expected 'all', or 'last'"):
        measure.get("cosine").function(tokens="first")
