"""Jobs that make a model and push it to the visitor's account: all of the work is real, on tiny models.

The Hub is the loopback Hub. What this machine can't have is OAuth of the real Hub: a visitor is what `visitor.visitor`
makes of a sign-in, a name and a token.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from hf_prune.errors import ConfigError, HubError, PruneError
from hf_prune.output import Finished
from hf_prune.progress import listening
from hf_prune.reload import reload_level
from hf_prune.space import costing, effort, making, wishes
from hf_prune.space.jobs import WAITING, Workshop
from hf_prune.space.making import carry_out, estimate
from hf_prune.space.pair import Visitor
from tests.hub.calls import User
from tests.hub.fixtures import ALICE
from tests.making import edit_json
from tests.space.wishing import VISITOR, held, until, wish

pytestmark = pytest.mark.usefixtures("small_jobs")


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    made = Workshop()
    yield made
    assert made.wait(60)


def test_a_whole_job(hub, source: str, unpruned: Path, workshop: Workshop) -> None:
    offer = estimate(wish(source, heal_tokens=1000, private=True), VISITOR)
    begun = workshop.submit(VISITOR, offer)
    assert begun.state in ("waiting", "running") and begun.repo == offer.repo
    seen = set()
    until(lambda: seen.add(workshop.status("alice").doing) or workshop.status("alice").ended)
    status = workshop.status("alice")
    assert (status.state, status.message, status.url) == ("done", "", f"{hub.endpoint}/{offer.repo}")
    assert status.seconds > 0 and status.doing == "" and workshop.status("bob") is None
    log = "\n".join(status.log)
    for said in ("Downloading the model", "Sampling text from the model", "Measuring layers", "Healing", "Pushing to"):
        assert said in log
    assert "Plan: drop layers 3–4 (2 of 8, counted from 0)" in log
    assert seen & {"Sampling text from the model", "Measuring layers", "Healing"}

    files = hub.files(offer.repo)
    card = files["README.md"].decode()
    assert f"base_model: {source}" in card and offer.repo in card and "pruning/evaluation.json" in files
    assert hub.store.get("model", offer.repo).private
    assert AutoModelForCausalLM.from_pretrained(offer.repo, token=ALICE).config.num_hidden_layers == 6
    assert f"--revision {offer.commit}" in card


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simple", "slicegpt", "dynamic-slicing"])
def test_every_method_that_is_offered(hub, source: str, workshop: Workshop, method: str) -> None:
    offer = estimate(wish(source, method=method, layers=None, share=0.25), VISITOR)
    workshop.submit(VISITOR, offer)
    assert workshop.wait(120)
    status = workshop.status("alice")
    assert status.state == "done", status
    assert "pruner_config.json" in hub.files(offer.repo)


def test_the_token_stays_in_memory(hub, source: str, tmp_path: Path, monkeypatch, caplog, capfd) -> None:
    """A canary: the visitor's token is searched for wherever it could be written down while the whole job runs."""
    children = tmp_path / "children"
    children.mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        f"open({str(children)!r} + f'/{{os.getpid()}}', 'w').write(json.dumps([dict(os.environ), sys.orig_argv]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    once = iter([reload_level])  # a child for real, for one of the two that are saved
    monkeypatch.setattr("hf_prune.reload.reload_level", lambda model: next(once, lambda _model: "streamed")(model))
    caplog.set_level(logging.DEBUG)
    offer = estimate(wish(source, heal_tokens=1000), VISITOR)
    folder = tmp_path / "work"
    folder.mkdir()
    found, looked = [], set()

    def search(place: Path) -> None:
        for path in place.rglob("*"):
            if path.is_file():
                looked.add(path.name)
                if ALICE.encode() in path.read_bytes():
                    found.append(path)

    stages = set()

    def told(step) -> None:
        if step.doing not in stages:
            stages.add(step.doing)
            search(folder)

    with listening(told):
        pushed = carry_out(offer, Visitor(ALICE, "alice"), folder, lambda: search(folder))
    search(children)
    assert {"calibration_tokens.safetensors", "pruner_config.json", "scores.json"} <= looked
    assert not found and len(list(children.iterdir())) >= 1, "no child was seen"
    assert all(ALICE.encode() not in content for content in hub.files(offer.repo).values())
    assert ALICE not in caplog.text and ALICE not in "".join(capfd.readouterr()) and ALICE not in repr((offer, pushed))
    assert ALICE not in os.environ.values()
    assert json.loads(next(children.iterdir()).read_text())[0]["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_a_job_keeps_no_token_once_it_has_ended(source: str, workshop: Workshop) -> None:
    workshop.submit(VISITOR, estimate(wish(source), VISITOR))
    assert workshop.wait(120) and workshop.status("alice").state == "done"
    job = workshop._jobs["alice"]
    assert job.visitor is None and not job.hidden
    assert ALICE not in "".join(map(repr, (job, vars(job), workshop.status("alice"))))


def test_what_is_said_is_cleaned(source: str, workshop: Workshop, monkeypatch) -> None:
    """What a repo or an error says is one line of visible text, without token and folders."""

    def fail(offer, visitor, folder, pushing) -> None:
        logging.getLogger("hf_prune.any").warning("<b>\x1b[31m‮%s\n%s %s", "two", ALICE, folder / "x")
        raise HubError(f"refused {ALICE} in {folder}/y")

    monkeypatch.setattr(making, "carry_out", fail)  # no other way to have a secret in a message: nothing lets one out
    workshop.submit(VISITOR, estimate(wish(source), VISITOR))
    assert workshop.wait(60)
    status = workshop.status("alice")
    assert status.state == "failed" and status.message == "refused <token> in …/y"
    assert [line[6:] for line in status.log] == ["Warning: <b> [31m two <token> …/x"]


def test_logs_of_others_stay_out(source: str, workshop: Workshop) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.001):
            logging.getLogger("hf_prune.other").warning("something else")

    thread = threading.Thread(target=chatter)
    level = logging.getLogger("hf_prune").level
    workshop.submit(VISITOR, estimate(wish(source), VISITOR))
    thread.start()
    assert workshop.wait(120)
    stop.set()
    thread.join()
    assert workshop.status("alice").state == "done" and "something else" not in str(workshop.status("alice").log)
    package = logging.getLogger("hf_prune")
    assert package.level == level and not any(type(handler).__name__ == "_Log" for handler in package.handlers)


def test_the_folder_goes_whatever_happens(source: str, workshop: Workshop, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    offer = estimate(wish(source), VISITOR)
    workshop.submit(VISITOR, offer)
    until(lambda: list(tmp_path.glob("hf-prune-job-*")) or workshop.status("alice").ended)
    workshop.cancel("alice")
    assert workshop.wait(60)
    assert not list(tmp_path.glob("hf-prune-job-*"))


def test_cancelling_a_running_job(hub, source: str, workshop: Workshop) -> None:
    offer = estimate(wish(source), VISITOR)
    with held():
        workshop.submit(VISITOR, offer)
        until(lambda: workshop.status("alice").state == "running")
        assert workshop.cancel("alice").cancelling
    assert workshop.wait(60)
    status = workshop.status("alice")
    assert (status.state, status.message) == ("cancelled", "Cancelled; nothing was pushed.") and status.url is None
    assert "Measuring layers" not in str(status.log), "it stopped at once, not only before the push"
    assert not hub.exists(offer.repo)
    workshop.submit(VISITOR, offer)
    assert workshop.wait(60) and workshop.status("alice").state == "done", "the next one runs"


def test_a_job_that_is_pushed_is_not_cancelled(hub, source: str, workshop: Workshop) -> None:
    offer = estimate(wish(source), VISITOR)
    cancelled = []
    push = workshop._push

    def pushing(job) -> None:
        push(job)
        cancelled.append(workshop.cancel("alice"))

    workshop._push = pushing
    workshop.submit(VISITOR, offer)
    assert workshop.wait(60)
    assert [(status.state, status.cancelling) for status in cancelled] == [("pushing", False)]
    assert workshop.status("alice").state == "done" and hub.exists(offer.repo)


def test_one_job_each_and_a_full_queue(hub, source: str, workshop: Workshop, monkeypatch) -> None:
    names = [f"user{number}" for number in range(WAITING + 2)]
    tokens = {name: "hf_" + name * 6 for name in names}
    for name in names:
        monkeypatch.setitem(hub._users, tokens[name], User(name))
    offers = {name: estimate(wish(source, repo="mine"), Visitor(tokens[name])) for name in names}
    assert {offer.owner for offer in offers.values()} == set(names)
    with held():
        workshop.submit(Visitor(tokens["user0"]), offers["user0"])
        until(lambda: workshop.status("user0").state == "running")
        for name in names[1:-1]:
            workshop.submit(Visitor(tokens[name]), offers[name])
        assert [workshop.status(name).ahead for name in names[1:-1]] == list(range(1, WAITING + 1))
        with pytest.raises(ConfigError, match="5 jobs are waiting, and more are not taken"):
            workshop.submit(Visitor(tokens[names[-1]]), offers[names[-1]])
        assert workshop.status(names[-1]) is None
        with pytest.raises(ConfigError, match="'user0' has a job already"):
            workshop.submit(Visitor(tokens["user0"]), offers["user0"])
        with pytest.raises(ConfigError, match="'user3' has a job already"):
            workshop.submit(Visitor(tokens["user3"]), offers["user3"])
        with pytest.raises(HubError, match="this plan was made for 'user1', and you are 'user6'"):
            workshop.submit(Visitor(tokens["user6"]), offers["user1"])
        waiting = workshop.cancel("user2")
        assert (waiting.state, waiting.log) == ("cancelled", ()) and workshop.status("user3").ahead == 2
        for name in names[3:-1]:
            workshop.cancel(name)
    assert workshop.wait(120)
    states = {name: workshop.status(name).state for name in names[:-1]}
    assert states == {"user0": "done", "user1": "done", **dict.fromkeys(names[2:-1], "cancelled")}
    assert hub.commits("user0/mine")[0].author == "user0" and hub.commits("user1/mine")[0].author == "user1"
    assert not hub.exists("user2/mine")


def test_the_hub_fails_in_the_middle_of_the_push(hub, source: str, workshop: Workshop, monkeypatch) -> None:
    monkeypatch.setattr("hf_prune.hub_client.WAITS", (0.0,))
    offer = estimate(wish(source), VISITOR)
    hub.faults.fail("POST", f"{offer.repo}/commit", 500, times=100)
    workshop.submit(VISITOR, offer)
    assert workshop.wait(120)
    status = workshop.status("alice")
    assert status.state == "failed" and "the Hub answered 500" in status.message and ALICE not in str(status)
    assert "model.safetensors" not in hub.files(offer.repo)
    hub.faults.reset()
    workshop.submit(VISITOR, offer)
    assert workshop.wait(120) and workshop.status("alice").state == "done", "the same plan works once the Hub does"


def test_access_that_was_taken_back_meanwhile(hub, new_repo_id, unpruned, workshop: Workshop) -> None:
    repo = new_repo_id("bob")
    hub.add_repo(repo, unpruned, private=False)
    offer = estimate(wish(repo, repo="taken-back"), VISITOR)
    hub.store.get("model", repo).private = True
    workshop.submit(VISITOR, offer)
    assert workshop.wait(60)
    status = workshop.status("alice")
    assert status.state == "failed" and "there is no such model on the Hub, or it is private" in status.message


def test_weights_that_are_broken(hub, new_repo_id, unpruned: Path, tmp_path: Path, workshop: Workshop) -> None:
    folder = shutil.copytree(unpruned, tmp_path / "broken")
    edit_json(folder / "config.json", num_hidden_layers=9, layer_types=None)
    hub.add_repo(repo := new_repo_id(), folder)
    workshop.submit(VISITOR, estimate(wish(repo), VISITOR))
    assert workshop.wait(60)
    status = workshop.status("alice")
    assert status.state == "failed" and "9" in status.message and not hub.exists(f"{repo}-pruned")


def test_an_unexpected_failure_is_told_and_the_next_job_runs(source, workshop: Workshop, caplog) -> None:
    offer = estimate(wish(source), VISITOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_prune.run.Pruner.plan", lambda self: 1 / 0)
        workshop.submit(VISITOR, offer)
        assert workshop.wait(60)
    status = workshop.status("alice")
    assert status.state == "failed" and status.message.startswith("ZeroDivisionError: this should not happen")
    assert "ZeroDivisionError" in caplog.text and ALICE not in caplog.text
    workshop.submit(VISITOR, offer)
    assert workshop.wait(60) and workshop.status("alice").state == "done"


def test_speeds_do_not_count_while_a_job_runs(source: str, workshop: Workshop) -> None:
    offer = estimate(wish(source), VISITOR)
    with held():
        workshop.submit(VISITOR, offer)
        until(lambda: workshop.status("alice").state == "running" and costing._jobs.state()[0] == 1)
    assert workshop.wait(60) and costing._jobs.state()[0] == 0


def test_on_zerogpu_a_job_stays_on_the_processor(hub, source: str, workshop: Workshop) -> None:
    """ZeroGPU is what no machine but the Hub's has: here PyTorch says that there is a GPU, and any use of it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "ZERO", True)
        patch.setattr("torch.cuda.is_available", lambda: True)
        workshop.submit(VISITOR, estimate(wish(source), VISITOR))
        assert workshop.wait(120)
        assert workshop.status("alice").state == "done", workshop.status("alice")
        patch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "ZERO", True)
        patch.setattr(wishes, "effort", effort.effort)
        with pytest.raises(ConfigError, match="nothing can be healed on this Space"):
            estimate(wish(source, heal_tokens=1000), VISITOR)


def test_a_finished_folder_says_who_made_it_and_how(source: str, tmp_path: Path) -> None:
    offer = estimate(wish(source), VISITOR)
    stopped = PruneError("not now")

    def stop() -> None:
        raise stopped

    with pytest.raises(PruneError, match="not now"):
        carry_out(offer, Visitor(ALICE, "alice"), tmp_path, stop)
    finished = Finished.load(tmp_path / offer.repo.partition("/")[2])
    assert finished.config.base_model == source and finished.config.base_revision == offer.commit
