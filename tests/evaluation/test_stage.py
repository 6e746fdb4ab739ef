"""What a run says of its evaluation while it goes on."""

from hf_prune import Pruner
from tests.cli.support import fast, planted, recipe


def test_a_window_beyond_the_model_is_told_once(tmp_path, monkeypatch, caplog):
    fast(monkeypatch)
    base = planted(tmp_path / "tiny-base")
    settings = recipe(layers=[2], evaluation={"max_length": 500, "samples": 2})
    pruner = Pruner.from_pretrained(base, settings, progress=False)
    pruner.prune()
    with caplog.at_level("INFO", logger="hf_prune"):
        found = pruner.evaluate()
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "max_length" in r.getMessage()]
    assert told == ["evaluation.max_length=500 is above the model's limit; using 64"]
    assert {p.window for m in found.models for p in m.perplexity} == {64}
    kept = [r.getMessage() for r in caplog.records if "are kept" in r.getMessage()]
    total = found.models[0].perplexity[0].tokens
    assert len(kept) == 1 and f"the 64 likeliest tokens at {total} of {total} positions" in kept[0]
    assert found.models[1].fidelity.tokens == total
