"""`hf-prune sweep`."""

import json
from pathlib import Path

import pytest

from hf_prune import Plan
from hf_prune.sweeping.record import Sweep
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
    """See `fast`; work where relative paths lead to; see also `test_sweep.no_collection`."""
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gc.collect", lambda *args: 0)


def test_sweep_and_prune_by_the_plan_that_it_picks(base: Path, quick: str) -> None:
    words = ("sweep", base, "--config", quick, "--methods", "uidl,simple", "--max-drop", 4, "--target-ppl-ratio", "1")
    told = done(*words, "--output", "out")
    lines = [line.split() for line in told.out.splitlines()]
    assert lines[0] == ["point", "removed", "parameters", "perplexity", "ratio", "KL"]
    assert lines[1][0] == "original" and lines[1][-1] == "1.000"
    assert lines[4][:3] == ["uidl-3", "layers", "3–5"] and lines[4][-2:] == ["1.000", "0.0000"]
    assert [line[0] for line in lines[6:10]] == ["simple-1", "simple-2", "simple-3", "simple-4"]
    assert "uidl (pruned): uidl-3" in told.out and "done: 8" in told.out and "failed" not in told.out
    assert "target: uidl-3 meets a perplexity ratio of 1 with a perplexity ratio of 1" in told.out
    assert "plan: out/plan.json" in told.out and "uidl-1: perplexity" in told.err
    assert {path.name for path in Path("out").iterdir()} >= {"sweep.json", "sweep.csv", "quality.png", "plan.json"}

    done("prune", base, "--plan", "out/plan.json", "--output", "pruned")
    assert Plan.load(Path("pruned/pruning")).dropped == (3, 4, 5)
    again = done(*words, "--output", "out", "--json", "--quiet")
    assert again.json == Sweep.load(Path("out")).to_dict() and "perplexity" not in again.err


def test_plan_of_a_sliced_point_can_be_carried_out(base: Path, quick: str) -> None:
    words = ("--methods", "slicegpt", "--max-drop", 2, "--round-to", 4, "--target-ppl-ratio", 100, "--output", "out")
    done("sweep", base, "--config", quick, *words)
    plan = Plan.load(Path("out/plan.json"))
    assert plan.slicing is not None and plan.slicing.widths == (24,) * 8
    done("prune", base, "--config", quick, "--plan", "out/plan.json", "--output", "pruned")
    pruned = Plan.load(Path("pruned/pruning")).slicing
    assert pruned is not None and pruned.parameters == plan.slicing.parameters


def test_missed_target_and_failed_points_exit_with_1(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sweep", base, "--config", quick, "--methods", "uidl", "--max-drop", 2, "--output", "out")
    missed = call(*words, "--target-size", "1KB")
    assert missed.code == 1 and "target: No point meets 1,000 bytes; uidl-2 comes closest" in missed.out
    assert Sweep.load(Path("out")).choice is not None and not Path("out/plan.json").exists()

    def refuse(*args: object, **kwargs: object) -> None:
        from hf_prune.errors import MeasureError

        raise MeasureError("layer 2 gives NaN")

    monkeypatch.setattr("hf_prune.choosing.measure_model", refuse)
    failed = call("sweep", base, "--config", quick, "--methods", "uidl,simple", "--max-drop", 1, "--output", "other")
    assert failed.code == 1 and "failed: 1" in failed.out and "1 of 2 points failed" in failed.err
    assert "Warning: uidl-1 failed: layer 2 gives NaN" in failed.err
    assert [line.split()[:4] for line in failed.out.splitlines()[2:3]] == [["uidl-1", "1", "layer", "failed"]]


def test_interrupted_sweep_says_how_to_go_on(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    words = ("sweep", base, "--config", quick, "--methods", "simple", "--max-drop", "1", "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.sweeping.point._work", interrupt)
        stopped = call(*words)
    assert stopped.code == 130 and "Finished stages are kept; run the same command again to go on." in stopped.err
    assert "done: 1" in done(*words).out


def test_dry_run_lists_points_and_does_nothing(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    source = new_repo_id()
    hub.add_repo(source, base)
    words = ("sweep", source, "--config", quick, "--max-drop", 4, "--step", 2, "--output", "out", "--dry-run")
    told = done(*words, "--heal", "--heal-tokens", 4096)
    assert [line.split()[0] for line in told.out.splitlines()[1:9]] == [
        "uidl-2", "uidl-4", "simple-2", "simple-4", "slicegpt-0.25", "slicegpt-0.5", "dynamic-slicing-0.25",
        "dynamic-slicing-0.5",
    ]  # fmt: skip
    assert "evaluations: 17" in told.out and "healings: 8, 4,096 tokens each" in told.out
    found = done(*words, "--methods", "simple", "--json").json
    fewer = done(*words, "--methods", "uidl", "--min-drop", 3, "--step", 1, "--json").json
    assert list(fewer["listed"]) == ["uidl-3", "uidl-4"]
    assert (found["points"], found["evaluations"]) == (2, 3) and found["listed"] == {
        "simple-2": None,
        "simple-4": None,
    }
    assert not any(r.path.endswith("model.safetensors") for r in hub.requests) and not Path("out").exists()


def test_output_is_named_after_the_model_and_kept(base: Path, quick: str) -> None:
    done("sweep", base, "--config", quick, "--methods", "simple", "--max-drop", 1)
    assert Sweep.load(Path("tiny-base-sweep")).methods == ("simple",)
    points = tree(Path("tiny-base-sweep/points"))
    done("sweep", base, "--config", quick, "--methods", "simple", "--max-drop", 2)
    after = tree(Path("tiny-base-sweep/points"))
    assert {path: after[path] for path in points} == points and len(after) == 2 * len(points)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "udil"), "unknown method 'udil'; expected one of the "),
        (("--methods", " ,"), "--methods ' ,' names none; expected some of: uidl"),
        (("--max-drop", "8"), "max_drop=8: 'tiny-base' has 8 layers; expected 1 to 7"),
        (("--target-ppl-ratio", "1.1", "--target-size", "4GB"), "--target-ppl-ratio and --target-size at once"),
        (("--target-size", "4 gigs"), "size '4 gigs'; expected bytes, or such as 4GB"),
        (("--target-accuracy-drop", "0.02"), "target accuracy-drop=0.02 needs benchmark tasks"),
        (("--methods", "uidl", "--round-to", "4"), "options of slicing are given, but none of the methods slices"),
        (("--methods", "slicegpt", "--slice-base", "0.1"), "--slice-base 0.1 is for methods of different widths"),
        (("--methods", "dynamic-slicing", "--basis", "global"), "basis='global' keeps one width in all layers"),
        (("--output", "full"), "'full', where working state would be kept, is a file or holds something else"),
    ],
)
def test_refused_at_once(base: Path, quick: str, words: tuple[str, ...], message: str) -> None:
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    before = tree(Path("."))
    assert message in call("sweep", base, "--config", quick, *words).failed()
    assert message in call("sweep", base, "--config", quick, *words, "--dry-run").failed()
    assert tree(Path(".")) == before


def test_family_that_cannot_be_sliced_is_swept_without_slicing(tmp_path: Path, quick: str) -> None:
    _, folder = base_folder(tmp_path / "olmo", "olmo2", depth=4)
    found = done("sweep", folder, "--config", quick, "--dry-run", "--json").json
    assert list(found["listed"]) == ["uidl-1", "uidl-2", "simple-1", "simple-2"]
    refused = call("sweep", folder, "--config", quick, "--methods", "slicegpt", "--dry-run").failed()
    assert "'olmo' (model_type 'olmo2') cannot be sliced" in refused


def test_record_names_no_place_of_this_machine(base: Path, quick: str, tmp_path: Path) -> None:
    book = tmp_path / "secret-place" / "book.txt"
    book.parent.mkdir()
    book.write_text("".join(f"{n} and the sea was calm. " for n in range(3000)))
    done("sweep", base, "--config", quick, "--methods", "uidl", "--max-drop", 1, "--dataset", book, "--output", "out")
    for name in ("sweep.json", "sweep.csv", "points/uidl-1/point.json"):
        text = Path("out", name).read_text()
        assert "secret-place" not in text and str(tmp_path) not in text
    assert json.loads(Path("out/sweep.json").read_text())["config"]["calibration"]["dataset"] == "book.txt"
