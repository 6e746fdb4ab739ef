"""What healing cannot do is refused before text is read, and what recipes say fits the model."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_prune.architecture import decoder_of
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.healable import check_healing
from hf_prune.healing.choice import choose, fitted
from hf_prune.healing.origin import Origin
from hf_prune.healing.settings import for_model
from hf_prune.healing.targets import find_targets, sides
from hf_prune.pruner import Pruner
from tests.cli.support import call, done, fast, planted, recipe_file
from tests.evaluation.text import byte_tokenizer
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("text was read")

    monkeypatch.setattr("hf_prune.texts.Texts._get", never)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"micro_batch_size": 5}, "micro_batch_size=5 does not divide batch_size=16; expected one of: 1, 2, 4, 8, 16"),
        ({"micro_batch_size": 5, "method": "slicegpt"}, "does not divide batch_size=12"),
        ({"max_length": 1}, r"healing.max_length=1 .* expected at least 2"),
        ({"prefix": "store"}, "prefix='store', but there is no frozen prefix"),
        ({"prefix": "store", "target": "full"}, "prefix='store', but there is no frozen prefix"),
        ({"prefix": "share", "target": "last"}, "no original model is in memory"),
        ({"prefix": "share", "target": "seam", "loss": "kl", "teacher": "stored"}, "no original model is in memory"),
    ],
)
def test_refused_before_the_model_is_looked_at(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_healing(PrunerConfig(drop_layers=2, healing=HealingConfig(**fields)))


@pytest.mark.parametrize("loss", ["hidden", "kl=1,seam=0.1"])
def test_a_stream_that_will_be_rescaled_is_not_compared(loss: str) -> None:
    rescaling = PrunerConfig(drop_layers=2, surgery="compensate", healing=HealingConfig(loss=loss, target="seam"))
    with pytest.raises(ConfigError, match=r"surgery 'compensate' makes .*Take loss 'kl', or surgery 'drop'"):
        check_healing(rescaling)
    check_healing(dataclasses.replace(rescaling, surgery="drop"))
    check_healing(dataclasses.replace(rescaling, healing=HealingConfig(loss="kl", target="seam")))


@pytest.mark.parametrize("name", ["method", "target", "loss"])
def test_an_empty_name_is_no_default(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=''; expected a name"):
        HealingConfig(**{name: ""})  # type: ignore[arg-type]


def test_a_prefix_may_be_kept_where_the_first_parts_may_fall_silent() -> None:
    check_healing(PrunerConfig(method="blockpruner", drop_layers=2, healing=HealingConfig(prefix="store")))
    check_healing(PrunerConfig(drop_layers=2, healing=HealingConfig(prefix="share", target="seam", loss="kl")))


@pytest.mark.parametrize("words", [("--drop-layers", 2), ("--sparsity", 0.25), ("--layers", "3,4")])
def test_more_last_blocks_than_stay_are_refused_before_text(
    base: Path, tmp_path: Path, words: tuple[object, ...], nothing_is_read: None
) -> None:
    given = ("run", base, *map(str, words), "--heal", "--heal-target", "last", "--output", tmp_path / "out")
    for dry in ((), ("--dry-run",)):
        told = call(*given, "--heal-last-blocks", "7", *dry).failed()
        assert "last_blocks=7" in told and "has 6 blocks left; expected at most 6" in told
    assert done(*given, "--heal-last-blocks", "6", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "last", "last_blocks": 1, "loss": "seam"}, "the lowest block that is trained is 5"),
        ({"target": "seam", "loss": "hidden,kl", "prefix": "share"}, None),
        ({"target": "last", "last_blocks": 6, "prefix": "store"}, "no frozen prefix"),
    ],
)
def test_what_the_plan_tells_is_refused_before_text(
    fields: dict[str, Any], message: str | None, tmp_path: Path, nothing_is_read: None
) -> None:
    config = PrunerConfig(layers=(3, 4), healing=HealingConfig(**fields))
    model = tiny_model("llama", depth=8)
    pruner = Pruner(model, byte_tokenizer(), config, run_folder=tmp_path / "run", progress=False)
    pruner.plan()
    if message is None:
        pruner.check_healing()
    else:
        with pytest.raises(ConfigError, match=message):
            pruner.check_healing()
    assert model.config.num_hidden_layers == 8 == len(model.model.layers), "looking is not cutting"


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("target", ["mlp", "all"])
@pytest.mark.parametrize("recipe", ["uidl", "slicegpt"])
def test_a_recipes_rank_fits_the_narrowest_map(
    family: str, target: str, recipe: str, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = decoder_of(tiny_model(family))
    origin = Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
    asked = HealingConfig(target=target)
    resolved = for_model(asked, recipe, "org/other")
    narrowest = min(min(sides(decoder.model.get_submodule(n))) for n in find_targets(decoder, target).positions)
    with caplog.at_level(logging.INFO, logger="hf_prune"):
        found = fitted(decoder, resolved, asked, origin)
    assert resolved.rank is not None and found.rank == min(resolved.rank, narrowest)
    assert found.alpha == (10 if recipe == "slicegpt" else found.rank)
    choose(decoder, found, origin)
    assert (f"using {narrowest}" in caplog.text) == (narrowest < resolved.rank)
    if narrowest == resolved.rank:
        return
    said = dataclasses.replace(asked, rank=resolved.rank)
    with pytest.raises(ConfigError, match=f"rank={resolved.rank} gives"):
        choose(decoder, fitted(decoder, for_model(said, recipe, "org/other"), said, origin), origin)


def test_a_recipes_last_blocks_fit_the_model() -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    origin, asked = Origin((0, 1), 4), HealingConfig(target="last")
    found = fitted(decoder, for_model(asked, "uidl", "org/other"), asked, origin)
    assert found.last_blocks == 2 and choose(decoder, found, origin).lowest == 0


def test_the_recipes_own_rank_heals_a_narrow_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    quick = recipe_file(tmp_path / "recipe", healing={"rank": None})
    words = ("run", base, "--config", quick, "--heal", "--no-evaluate", "--output", tmp_path / "out")
    assert "rank 64" not in done(*words, "--dry-run").out
    told = done(*words)
    assert "of recipe 'uidl' is above the narrowest map's" in told.err
    again = done(*words)
    assert "by this very command" in again.err
