"""Bars that can be listened to: drawn in a shell as ever, told to the job that makes them, and to no other."""

import contextlib
import io
import re
import threading
from pathlib import Path

import pytest
import tqdm.auto

from hf_prune import hub_pull, progress
from hf_prune.progress import Step, listening
from tests.hub.fixtures import ALICE
from tests.making import base_folder

# Made where tqdm draws: no other way to see what a shell shows.
SETTINGS = {"desc": "scoring", "unit": "window", "leave": True, "mininterval": 0, "ncols": 120}


def drawn(bar_class: type) -> str:
    out = io.StringIO()
    with bar_class(total=3, file=out, **SETTINGS) as bar:
        bar.update(2)
        bar.set_postfix(loss="0.1", refresh=False)
        bar.update(1)
    for _ in bar_class(range(2), "timing", file=out, mininterval=0, ncols=120):
        pass
    return re.sub(r" *[|][# \d]*[|]|\d\d:\d\d|[\d.?]+ ?(window|it)/s", "", out.getvalue())  # without bars and speeds


def test_a_shell_shows_what_tqdm_shows() -> None:
    shown = drawn(progress.tqdm)
    assert "scoring" in shown and "timing" in shown and "loss=0.1" in shown
    assert shown == drawn(tqdm.auto.tqdm)


def test_a_listener_is_told_and_nothing_is_drawn(capsys) -> None:
    steps: list[Step] = []
    with listening(steps.append):
        with progress.tqdm(total=3, **SETTINGS) as bar:
            bar.update(2)
            bar.update(5 - bar.n)
        assert bar.n == 5
        assert list(progress.tqdm(iter("ab"), "walking", 2)) == ["a", "b"]
    counted = [(step.doing, step.done, step.total, step.unit) for step in steps]
    assert counted == [
        ("scoring", 0, 3, "window"), ("scoring", 2, 3, "window"), ("scoring", 5, 3, "window"),
        ("walking", 0, 2, "it"), ("walking", 1, 2, "it"), ("walking", 2, 2, "it"),
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")


def test_disabled_bars_are_not_told() -> None:
    steps: list[Step] = []
    with listening(steps.append):
        assert list(progress.tqdm(range(3), disable=True)) == [0, 1, 2]
    assert steps == []


def test_after_listening_bars_are_drawn_again() -> None:
    with contextlib.suppress(ZeroDivisionError), listening(lambda step: None):
        raise ZeroDivisionError
    assert "scoring" in drawn(progress.tqdm) and progress.hub_bars() is None


def test_two_threads_hear_only_their_own() -> None:
    heard: dict[str, set[str]] = {"one": set(), "two": set()}
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with listening(lambda step: heard[name].add(step.doing)):
            both.wait()
            for _ in progress.tqdm(range(50), f"work of {name}"):
                pass
            both.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"one": {"work of one"}, "two": {"work of two"}}


def test_what_a_listener_raises_stops_the_work() -> None:
    done = []

    def stop(step: Step) -> None:
        if step.done == 2:
            raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"), listening(stop):
        for item in progress.tqdm(range(10), "work"):
            done.append(item)
    assert done == [0, 1]


def test_downloads_are_told_in_bytes(hub, new_repo_id, tmp_path: Path, capsys) -> None:
    """The Hub client downloads in threads of its own; the bars belong to the job all the same."""
    _, folder = base_folder(tmp_path / "base")
    repo = new_repo_id()
    commit = hub.add_repo(repo, folder)
    steps: list[Step] = []
    with listening(steps.append):
        found = hub_pull.pull(repo, commit, ALICE)
    assert {(step.doing, step.unit) for step in steps} == {("downloading", "B")}
    assert max(step.done for step in steps) >= (found / "model.safetensors").stat().st_size
    assert capsys.readouterr() == ("", "")


def test_a_download_can_be_stopped(hub, new_repo_id, tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "base")
    repo = new_repo_id()
    commit = hub.add_repo(repo, folder)

    def stop(step: Step) -> None:
        if step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        hub_pull.pull(repo, commit, ALICE)
    assert (hub_pull.pull(repo, commit, ALICE) / "model.safetensors").is_file(), "the next one goes on"
