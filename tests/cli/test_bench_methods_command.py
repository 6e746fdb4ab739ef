"""`hf-prune bench-methods`."""

from pathlib import Path

import pytest

from hf_prune.comparing.record import Comparison
from tests.cli.support import call, done, fast, planted, recipe_file, tree
from tests.making import base_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", (3, 4, 5))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    return recipe_file(tmp_path_factory.mktemp("recipe"), drop_layers=None)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """See `fast`; work where relative paths lead to; see also `test_bench_methods.quickly`."""
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gc.collect", lambda *args: 0)


def test_methods_are_compared_and_ranked(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench-methods", base, "--config", quick, "--methods", "simple,uidl,slicegpt", "--drop-layers", 2)
    told = done(*words, "--seeds", "0,1", "--best", 1)
    lines = [line.split("  ") for line in told.out.splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert lines[0] == [
        "method", "removed", "parameters", "perplexity", "KL", "top-1", "choosing, s", "forwards",
    ]  # fmt: skip
    found = Comparison.load(Path("tiny-base-methods"))
    assert [line[0] for line in lines[1:5]] == ["original", "uidl", "simple", "slicegpt"]
    assert lines[2][1] == "blocks 3–4 (2 of 8)" and lines[2][4:6] == ["0.0000 ± 0.0000", "1.0000 ± 0.0000"]
    assert lines[3][1:3] == ["blocks 5–6 (2 of 8)", f"−{found.attempts[0].share_removed:.1%}"]
    assert lines[4][1] == "width 24" and lines[3][-1] == "0.00" and lines[2][-1] == "1.00 ± 0.00"
    assert "✓ Compared methods on tiny-base" in told.out and "done: 4" in told.out and "failed" not in told.out
    assert "table: tiny-base-methods/comparison.md" in told.out and "uidl-2-s1: perplexity" in told.err
    monkeypatch.setattr("hf_prune.comparing.bench.draw", lambda found: [])
    again = done(*words, "--seeds", "0,1", "--best", 1, "--json", "--quiet").json
    assert again["attempts"] == found.to_dict()["attempts"] and again["schema"] == 1


def test_failures_are_told_and_exit_with_1(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        from hf_prune.errors import MeasureError

        raise MeasureError("layer 2 gives NaN")

    monkeypatch.setattr("hf_prune.comparing.bench.draw", lambda found: [])
    monkeypatch.setattr("hf_prune.choosing.measure_model", refuse)
    words = (
        "bench-methods",
        base,
        "--config",
        quick,
        "--methods",
        "uidl,simple",
        "--sparsity",
        0.25,
        "--output",
        "out",
    )
    failed = call(*words)
    assert failed.code == 1 and "failed: 1" in failed.out and "1 of 2 attempts failed" in failed.err
    assert "Warning: uidl-0.25-s0 failed: layer 2 gives NaN" in failed.err
    assert [line.split()[:2] for line in failed.out.splitlines()[3:4]] == [["uidl", "failed"]]


def test_interrupted_comparison_says_how_to_go_on(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_prune.comparing.attempt._work", interrupt)
    words = ("bench-methods", base, "--config", quick, "--methods", "simple", "--drop-layers", "1", "--output", "out")
    stopped = call(*words)
    assert stopped.code == 130 and "Finished stages are kept; run the same command again to go on." in stopped.err


def test_dry_run_lists_methods_and_does_nothing(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    source = new_repo_id()
    hub.add_repo(source, base)
    words = (
        "bench-methods",
        source,
        "--config",
        quick,
        "--methods",
        "uidl,sleb,slicegpt",
        "--output",
        "out",
        "--dry-run",
    )
    told = done(*words, "--drop-layers", 2, "--heal", "--heal-tokens", 4096, "--seeds", "0,1,2", "--best", 2)
    lines = [line.split() for line in told.out.splitlines()]
    assert lines[1][:4] == ["uidl", "2", "blocks", "1"] and lines[1][-1] == "measured"
    assert lines[2][:3] == ["sleb", "2", "blocks"] and float(lines[2][3]) > 4
    assert lines[3][:5] == ["slicegpt", "25.0%", "of", "the", "width"]
    assert "attempts: 7" in told.out and "evaluations: 15" in told.out
    assert "healings: 7, 4,096 tokens each" in told.out and "seeds: 0, 1, 2" in told.out
    found = done(*words, "--drop-layers", 7, "--json").json
    assert found["attempts"] == 1 and found["listed"]["uidl"] == {"forwards": 1.0, "impossible": None}
    assert "at most 6 can go" in found["listed"]["sleb"]["impossible"] and found["skipped"] == 2
    assert not any(r.path.endswith("model.safetensors") for r in hub.requests) and not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "udil"), "unknown method 'udil'; expected one of the "),
        (("--methods", " ,"), "--methods ' ,' names none; expected some of: uidl"),
        (("--methods", "uidl,uidl"), "method 'uidl' is named twice; name each once"),
        (("--drop-layers", "8"), "drop_layers=8: 'tiny-base' has 8 layers; expected 1 to 7"),
        (("--sparsity", "0.25"), "drop_layers=2 and sparsity=0.25 at once; give one amount"),
        (("--sparsity-of", "bytes"), "sparsity_of='bytes' says what a share is of; drop_layers=2 is none"),
        (("--seeds", "0,one"), "--seeds '0,one'; expected whole numbers with commas between, such as 0,1,2"),
        (("--seeds", "1,1"), "seed 1 is named twice"),
        (("--seeds", "1,2", "--seed", "3"), "--seed 3 and --seeds 1,2 at once; give one"),
        (("--best", "3"), "best=3 tries the best methods with further seeds, and none are given"),
        (("--methods", "uidl", "--round-to", "4"), "options of slicing are given, but none of the methods slices"),
        (("--output", "full"), "'full', where working state would be kept, is a file or holds something else"),
    ],
)
def test_refused_at_once(base: Path, quick: str, words: tuple[str, ...], message: str) -> None:
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    before = tree(Path("."))
    words = ("bench-methods", str(base), "--config", quick, "--methods", "uidl,simple", "--drop-layers", "2", *words)
    assert message in call(*words).failed()
    assert message in call(*words, "--dry-run").failed()
    assert tree(Path(".")) == before


@pytest.mark.parametrize("named", ["a,b,c,d", "org/data,,test", ""])
def test_a_further_text_that_names_none_is_refused(base: Path, quick: str, named: str) -> None:
    words = ("bench-methods", base, "--config", quick, "--drop-layers", 2, "--also-on", named)
    assert f"--also-on {named!r}; expected a file, a folder, or DATASET[,CONFIG[,SPLIT]]" in call(*words).failed()


def test_options_of_slicing_go_with_a_number_of_layers(base: Path, quick: str) -> None:
    words = ("--methods", "uidl,slicegpt", "--drop-layers", 2, "--round-to", 4, "--dry-run", "--json")
    assert list(done("bench-methods", base, "--config", quick, *words).json["listed"]) == ["uidl", "slicegpt"]


def test_family_that_cannot_be_sliced(tmp_path: Path, quick: str) -> None:
    _, folder = base_folder(tmp_path / "olmo", "olmo2", depth=4)
    words = (
        "bench-methods",
        folder,
        "--config",
        quick,
        "--methods",
        "slicegpt,simple",
        "--drop-layers",
        1,
        "--dry-run",
    )
    told = done(*words, "--json").json
    assert "cannot be sliced" in told["listed"]["slicegpt"]["impossible"] and told["methods"] == 1
