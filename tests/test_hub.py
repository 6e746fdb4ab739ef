"""Pushing to the loopback Hub, through the real client."""

import json

import pytest
from huggingface_hub import HfApi

from hf_prune import hub as stage
from hf_prune import hub_client
from hf_prune.errors import CheckpointError, ConfigError, HubError, OutputError

from .hub.fixtures import ALICE, BOB, READER
from .hub.folders import CARD, COMMON, SHARDED, contents, write


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait hundredths instead of seconds between tries of our own."""
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def folder(tmp_path):
    """A finished model in one file."""
    return write(tmp_path / "model", {**COMMON, "model.safetensors": b"\3" * 5000})


@pytest.fixture
def sharded(tmp_path):
    """A finished model in two shards."""
    return write(tmp_path / "sharded", {**COMMON, **SHARDED})


def commits_by_us(hub, repo, revision="main"):
    return [commit for commit in hub.commits(repo, revision) if commit.title not in ("initial commit", "Add files")]


def test_push_is_one_commit_that_holds_the_folder(hub, new_repo_id, folder):
    repo = new_repo_id()
    result = stage.push_folder(folder, repo, token=ALICE, commit_message="Prune")
    assert hub.files(repo) == contents(folder)
    assert [commit.title for commit in hub.commits(repo)] == ["Prune", "initial commit"]
    assert result.commit == hub.commits(repo)[0].sha and result.url == f"{hub.endpoint}/{repo}"
    assert result.created and not result.private and result.skipped == result.deletions == result.unchanged == ()
    assert set(result.additions) == set(contents(folder)) and result.bytes == sum(map(len, contents(folder).values()))
    agent = hub.asked("POST", "/commit/")[0].headers["user-agent"]
    assert agent.startswith("hf-prune/")


def test_push_again_sends_only_what_changed(hub, new_repo_id, folder):
    repo = new_repo_id()
    first = stage.push_folder(folder, repo, token=ALICE)
    hub.reset()
    again = stage.push_folder(folder, repo, token=ALICE)
    assert again.commit == first.commit and again.additions == () and len(again.unchanged) == 5
    assert not hub.asked("POST", "/commit/") and not hub.asked("POST", "/repos/create")
    write(folder, {"README.md": CARD.encode() + b"more\n"})
    third = stage.push_folder(folder, repo, token=ALICE)
    assert third.additions == ("README.md",) and not third.created and len(commits_by_us(hub, repo)) == 2
    assert hub.files(repo) == contents(folder)


def test_stale_shards_go_in_the_same_commit(hub, new_repo_id, folder, sharded):
    repo = new_repo_id()
    stage.push_folder(sharded, repo, token=ALICE)
    extra = {"adapter_config.json": "{}", "adapter_model.safetensors": b"a", "gguf/model.gguf": b"g"}
    extra |= {"healing.json": "{}", "generation_config.json": "{}", "chat_template.jinja": "old", "notes.md": "mine"}
    hub.add_repo(repo, extra)
    result = stage.push_folder(folder, repo, token=ALICE)
    assert set(result.deletions) == {*SHARDED, *extra} - {"notes.md"}
    assert hub.files(repo) == contents(folder) | {"notes.md": b"mine"}
    assert len(commits_by_us(hub, repo)) == 2
    back = stage.push_folder(sharded, repo, token=ALICE)
    assert back.deletions == ("model.safetensors",) and "model.safetensors" not in hub.files(repo)


def test_tokenizer_on_the_hub_stays_where_the_folder_has_none(hub, new_repo_id, folder):
    repo = new_repo_id()
    hub.add_repo(repo, {"pruner_config.json": "{}", "tokenizer.model": b"t"})
    (folder / "tokenizer.json").unlink()
    assert stage.push_folder(folder, repo, token=ALICE).deletions == ()


def test_model_of_somebody_else_is_not_replaced_unasked(hub, new_repo_id, folder):
    repo = new_repo_id()
    hub.add_repo(repo, {"config.json": "{}", "pytorch_model.bin": b"p"})
    for dry_run in (True, False):
        with pytest.raises(HubError, match=r"hf-prune did not make.*--overwrite"):
            stage.push_folder(folder, repo, token=ALICE, dry_run=dry_run)
    assert len(hub.commits(repo)) == 2 and not hub.asked("POST", "preupload|lfs|create")
    result = stage.push_folder(folder, repo, token=ALICE, overwrite=True)
    assert result.deletions == ("pytorch_model.bin",) and hub.files(repo) == contents(folder)


def test_repo_without_a_model_is_welcome(hub, new_repo_id, folder):
    repo = new_repo_id()
    HfApi(token=ALICE).create_repo(repo, private=True)
    hub.add_repo(repo, {"README.md": "empty so far"}, private=True)
    assert stage.push_folder(folder, repo, token=ALICE).private is True


def test_dry_run_writes_nothing(hub, new_repo_id, folder, sharded):
    repo = new_repo_id()
    plan = stage.push_folder(folder, repo, token=ALICE, dry_run=True, private=True)
    assert plan.created and plan.private and plan.commit is None and not hub.exists(repo)
    assert set(plan.additions) == set(contents(folder)) and plan.bytes > 5000
    stage.push_folder(sharded, repo, token=ALICE)
    before = hub.commits(repo)
    hub.reset()
    plan = stage.push_folder(folder, repo, token=ALICE, dry_run=True, revision="new")
    assert plan.additions == ("model.safetensors",) and set(plan.deletions) == set(SHARDED)
    assert plan.url == f"{hub.endpoint}/{repo}/tree/new"
    assert hub.commits(repo) == before and {request.method for request in hub.requests} == {"GET"}


def test_name_alone_goes_to_the_user(hub, new_repo_id, folder):
    name = new_repo_id().split("/")[1] + "-alone"
    assert stage.push_folder(folder, name, token=ALICE).repo_id == f"alice/{name}"
    assert hub.exists(f"alice/{name}")


def test_push_to_a_branch(hub, new_repo_id, folder, sharded):
    repo = new_repo_id()
    stage.push_folder(sharded, repo, token=ALICE)
    for expected in (1, 0):
        result = stage.push_folder(folder, repo, token=ALICE, revision="smaller")
        assert len(result.additions) == expected
    assert hub.files(repo, "smaller") == contents(folder) and hub.files(repo) == contents(sharded)
    fresh = new_repo_id()
    stage.push_folder(folder, fresh, token=ALICE, revision="dev")
    assert hub.files(fresh, "dev") == contents(folder) and hub.files(fresh) == {}


def test_pull_request(hub, new_repo_id, folder, sharded):
    repo = new_repo_id()
    stage.push_folder(sharded, repo, token=ALICE)
    result = stage.push_folder(folder, repo, token=BOB, create_pr=True)
    assert result.url == f"{hub.endpoint}/{repo}/discussions/1"
    assert hub.files(repo, "refs/pr/1") == contents(folder) and hub.files(repo) == contents(sharded)
    with pytest.raises(ConfigError, match="create_pr"):
        stage.push_folder(folder, repo, token=BOB, create_pr=True, revision="dev")
    with pytest.raises(HubError, match="pull request"):
        stage.push_folder(folder, new_repo_id(), token=ALICE, create_pr=True)


def test_private_weights_are_not_shown(hub, new_repo_id, folder, caplog):
    repo = new_repo_id()
    assert stage.push_folder(folder, repo, token=ALICE, private=True).private
    assert HfApi(token=ALICE).model_info(repo).private
    stage.push_folder(folder, repo, token=ALICE, private=False)
    assert "stays so" in caplog.text
    hub.add_repo(repo, {}, private=False)
    with pytest.raises(HubError, match=r"is public and private=True"):
        stage.push_folder(folder, repo, token=ALICE, private=True)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_hub_that_holds_something_else_is_caught(hub, new_repo_id, folder, path):
    repo = new_repo_id()
    hub.corrupt(rf"^{path}$")
    with pytest.raises(HubError, match=rf"{path} has another hash.*do not use"):
        stage.push_folder(folder, repo, token=ALICE)


def test_file_that_did_not_arrive_is_caught(hub, new_repo_id, folder, monkeypatch):
    real = HfApi.create_commit

    def forgetful(self, repo_id, operations, **kwargs):
        kept = [item for item in operations if item.path_in_repo != "tokenizer.json"]
        return real(self, repo_id, kept, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", forgetful)
    with pytest.raises(HubError, match=r"tokenizer\.json is missing"):
        stage.push_folder(folder, new_repo_id(), token=ALICE)


def test_push_of_somebody_else_meanwhile(hub, new_repo_id, folder, sharded, monkeypatch):
    repo = new_repo_id()
    stage.push_folder(sharded, repo, token=ALICE)
    real = HfApi.create_commit

    def late(self, repo_id, *arguments, **kwargs):
        hub.add_repo(repo, {"config.json": "theirs"})
        return real(self, repo_id, *arguments, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(HubError, match=r"somebody pushed.*nothing was changed"):
        stage.push_folder(folder, repo, token=ALICE)
    assert hub.files(repo) == contents(sharded) | {"config.json": b"theirs"}


@pytest.mark.parametrize("deletes", [False, True])
def test_lost_answer_does_not_commit_twice(hub, new_repo_id, folder, sharded, deletes):
    repo = new_repo_id()
    if deletes:
        stage.push_folder(sharded, repo, token=ALICE)
    hub.fail("POST", "/commit/", 502, done=True)
    result = stage.push_folder(folder, repo, token=ALICE)
    assert hub.files(repo) == contents(folder) and result.commit == hub.commits(repo)[0].sha
    assert len(commits_by_us(hub, repo)) == 1 + deletes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/models/", 503),
        ("GET", "/api/models/", 429),
        ("GET", "/tree/", 500),
        ("POST", "/repos/create", 500),
        ("POST", "/commit/", 503),
        ("POST", "/commit/", 429),
    ],
)
def test_what_passes_by_itself_is_waited_for(hub, new_repo_id, folder, method, path, status, monkeypatch):
    import huggingface_hub.utils._http as http

    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    repo = new_repo_id()
    hub.fail(method, path, status, times=2, headers={"Retry-After": "0"})
    stage.push_folder(folder, repo, token=ALICE)
    assert hub.files(repo) == contents(folder) and len(commits_by_us(hub, repo)) == 1


@pytest.mark.parametrize(
    ("path", "status", "headers", "said"),
    [
        ("/commit/", 401, {}, r"there is no model|hf auth login"),
        ("/commit/", 403, {}, r"403.*may write to this namespace"),
        ("/commit/", 404, {}, r"there is no model"),
        ("/commit/", 409, {}, r"409.*try again"),
        ("/commit/", 412, {}, r"somebody pushed"),
        ("/commit/", 429, {"Retry-After": "3600"}, r"429.*too many requests: try again in 3600 s"),
        ("/commit/", 500, {}, r"500.*try again"),
        ("/repos/create", 402, {}, r"402"),
        ("/repos/create", 403, {}, r"403.*may write"),
    ],
)
def test_every_refusal_is_one_clear_error(hub, new_repo_id, folder, path, status, headers, said):
    repo = new_repo_id()
    hub.fail("POST", path, status, times=99, headers=headers)
    with pytest.raises(HubError, match=said) as refused:
        stage.push_folder(folder, repo, token=ALICE)
    assert str(refused.value).startswith(f"cannot push to '{repo}'") or status == 412
    assert not hub.exists(repo) or hub.files(repo) == {}


def test_who_may_not_push(hub, new_repo_id, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(HubError, match="403"):
        stage.push_folder(folder, new_repo_id("bob"), token=ALICE)
    with pytest.raises(HubError, match="403"):
        stage.push_folder(folder, new_repo_id("reader"), token=READER)
    for repo in (new_repo_id(), "no-namespace"):
        with pytest.raises(HubError, match="hf auth login"):
            stage.push_folder(folder, repo)
    with pytest.raises(HubError, match="neither a folder nor a repo id"):
        stage.push_folder(folder, "a/b/c", token=ALICE)


@pytest.mark.parametrize(
    "path",
    [
        "checkpoint-500/model.safetensors",
        "out.run/scores.json",
        "optimizer.pt",
        "optimizer.safetensors",
        "scheduler.pt",
        "rng_state_0.pth",
        "training_args.bin",
        "trainer_state.json",
        "pytorch_model.bin",
        "sub/weights.pkl",
        "token",
        ".env",
        "stored_tokens",
        "id_rsa",
        "server.key",
    ],
)
def test_what_must_not_leave_is_refused_before_any_request(hub, folder, path):
    write(folder, {path: b"x"})
    with pytest.raises(OutputError, match=path.replace(".", r"\.")):
        stage.push_folder(folder, "alice/never", token=ALICE)
    assert not hub.requests and not hub.exists("alice/never")


def test_token_in_a_text_is_refused(hub, folder):
    write(folder, {"plan.json": json.dumps({"command": f"HF_TOKEN={ALICE} hf-prune"}).encode()})
    with pytest.raises(OutputError, match=r"plan\.json"):
        stage.push_folder(folder, "alice/never", token=ALICE)
    assert not hub.requests


def test_caches_and_unknown_files_stay_behind(hub, new_repo_id, folder):
    kept = {".eval_results/hf_prune.yaml": b"- value: 1\n", "LICENSE": b"MIT", "plots/scores.png": b"\0png"}
    before = contents(write(folder, kept))
    stays = {"draft.tmp": b"x", "run.py": b"x", ".gitattributes": b"x", "model.onnx": b"x"}
    caches = {".cache/huggingface/token": b"x", ".git/config": b"x", "__pycache__/a.pyc": b"x"}
    write(folder, stays | caches)
    repo = new_repo_id()
    result = stage.push_folder(folder, repo, token=ALICE)
    assert hub.files(repo) == before and set(result.skipped) == set(stays)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config.json": None}, "holds neither config.json"),
        ({"model.safetensors": None}, "holds no weights"),
        (SHARDED, "holds both"),
        (SHARDED | {"model.safetensors": None, "model-00002-of-00002.safetensors": None}, "shards that are not there"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"[]"}, "not an index"),
    ],
)
def test_folder_that_is_not_whole_is_refused(hub, folder, change, said):
    for path, content in change.items():
        if content is None:
            (folder / path).unlink(missing_ok=True)
        else:
            write(folder, {path: content})
    with pytest.raises(CheckpointError, match=said):
        stage.push_folder(folder, "alice/never", token=ALICE)
    assert not hub.requests


def test_working_folders_are_refused(hub, tmp_path, folder):
    with pytest.raises(OutputError, match="not a folder"):
        stage.push_folder(tmp_path / "nothing", "alice/never", token=ALICE)
    for name in ("model.run", "checkpoint-10"):
        with pytest.raises(OutputError, match="working folder"):
            stage.push_folder(folder.rename(tmp_path / name), "alice/never", token=ALICE)
        folder = tmp_path / name


def test_push_file_leaves_the_rest_alone(hub, new_repo_id, folder):
    repo = new_repo_id()
    stage.push_folder(folder, repo, token=ALICE)
    url = stage.push_file(b'{"a": 1}', "pruner_config.json", repo, token=ALICE, commit_message="Recipe")
    assert hub.files(repo) == contents(folder) | {"pruner_config.json": b'{"a": 1}'}
    assert url.endswith(f"/commit/{hub.commits(repo)[0].sha}")
    assert stage.download_file(repo, "pruner_config.json").read_bytes() == b'{"a": 1}'
    with pytest.raises(HubError, match=r"cannot download 'nope\.json'"):
        stage.download_file(repo, "nope.json")
