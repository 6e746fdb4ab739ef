"""Resolving and pulling models of the loopback Hub, through the real client, and what its errors say."""

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hf_prune import hub as stage
from hf_prune import hub_client, hub_pull
from hf_prune.errors import CheckpointError, ConfigError, HubError
from hf_prune.hub_listing import RemoteFile, has_content, remote_files

from .hub.fixtures import ALICE, BOB, READER
from .hub.folders import COMMON, SHARDED, contents, write


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait hundredths instead of seconds between tries of our own."""
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def folder(tmp_path):
    """A finished model in one file."""
    return write(tmp_path / "model", {**COMMON, "model.safetensors": b"\3" * 5000})


@pytest.mark.parametrize("token", ["hf_" + "x" * 34, "hf_" + "y" * 34 + "\nX-Evil: 1", "other-zzz"])
def test_token_never_shows(hub, new_repo_id, folder, token, caplog):
    caplog.set_level(logging.DEBUG)
    hub.fail("GET", "/api/models/", 403, times=9, message=f"token {token.split()[0]} is not welcome")
    for call in (
        lambda: stage.push_folder(folder, new_repo_id(), token=token),
        lambda: stage.resolve(new_repo_id(), token=token),
    ):
        with pytest.raises(HubError) as refused:
            call()
        logged = [record.getMessage() for record in caplog.records if record.name.startswith(("hf_prune", "hugging"))]
        shown = "".join(traceback.format_exception(refused.value)) + "".join(logged)
        assert not any(secret in shown for secret in ("hf_xxx", "hf_yyy", "other-zzz"))


def test_resolve_pins_the_commit(hub, new_repo_id, folder):
    repo = new_repo_id()
    old = hub.add_repo(repo, folder)
    HfApi(token=ALICE).create_tag(repo, tag="v1")
    new = hub.add_repo(repo, {"notes.md": "more"})
    for revision, sha in ((None, new), ("main", new), ("v1", old), (old, old), (old[:9], old)):
        found = stage.resolve(repo, revision)
        assert (found.id, found.commit, found.folder) == (repo, sha, None)


def test_resolve_of_a_folder(hub, folder):
    assert stage.resolve(str(folder)) == stage.ResolvedModel(id=str(folder), commit=None, folder=folder)
    with pytest.raises(ConfigError, match="revision='main'"):
        stage.resolve(str(folder), "main")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        stage.resolve(str(folder.parent))
    assert not hub.requests


def test_resolve_says_what_is_wrong(hub, new_repo_id, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    public, private, gated, adapter = (new_repo_id() for _ in range(4))
    hub.add_repo(public, folder)
    hub.add_repo(private, folder, private=True)
    hub.add_repo(gated, folder, gated=True, allowed=("reader",))
    hub.add_repo(adapter, {"adapter_config.json": "{}"})
    for token in (None, BOB):
        with pytest.raises(HubError, match=r"no model 'alice/nothing'.*hf auth login"):
            stage.resolve("alice/nothing", token=token)
        with pytest.raises(HubError, match=rf"no model '{private}'.*hf auth login"):
            stage.resolve(private, token=token)
        with pytest.raises(HubError, match=r"is gated.*ask for access"):
            stage.resolve(gated, token=token)
    for revision in ("nope", "0" * 40):
        with pytest.raises(HubError, match=rf"no revision '{revision}'.*branch, a tag or a commit"):
            stage.resolve(public, revision)
    with pytest.raises(HubError, match="401.*hf auth login"):
        stage.resolve(public, token="hf_nobody")
    with pytest.raises(CheckpointError, match=r"no config\.json.*adapter"):
        stage.resolve(adapter)
    with pytest.raises(HubError, match="neither a folder nor a repo id"):
        stage.resolve(str(tmp_path / "nothing"))
    assert stage.resolve(private, token=ALICE).commit and stage.resolve(gated, token=READER).commit


def test_is_restricted(hub, new_repo_id):
    public, private, gated = (new_repo_id() for _ in range(3))
    hub.add_repo(public, {})
    hub.add_repo(private, {}, private=True)
    hub.add_repo(gated, {}, gated=True)
    found = [stage.is_restricted(repo, ALICE) for repo in (public, private, gated)]
    assert found == [False, True, True] and stage.is_restricted(gated, BOB)
    with pytest.raises(HubError, match="there is no model"):
        stage.is_restricted(private, BOB)


def test_pull_takes_what_is_needed_and_no_more(hub, new_repo_id):
    repo = new_repo_id()
    wanted = COMMON | {"model.safetensors": b"w", "generation_config.json": b"{}", "chat_template.jinja": b"c"}
    wanted |= {"tokenizer.model": b"t", "LICENSE.txt": b"l", "USE_POLICY.md": b"u", "NOTICE": b"n", "merges.txt": b"m"}
    wanted |= {"additional_chat_templates/tool.jinja": b"a"}
    rest = SHARDED | {"pytorch_model.bin": b"p", "model.gguf": b"g", "original/consolidated.00.pth": b"o"}
    rest |= {"onnx/config.json": b"{}", "modeling_x.py": b"code", "training_args.bin": b"t", "cover.png": b"\0"}
    sha = hub.add_repo(repo, wanted | rest)
    folder = stage.pull(repo, sha)
    assert contents(folder) == wanted
    assert contents(stage.pull(repo, sha, allow_patterns=["*.py", "*.bin"])) == wanted | {"modeling_x.py": b"code"}


def test_pull_of_shards_and_of_none(hub, new_repo_id):
    repo = new_repo_id()
    sha = hub.add_repo(repo, COMMON | SHARDED | {"model-00003-of-00003.safetensors": b"left over"})
    assert contents(stage.pull(repo, sha, weights=False)) == COMMON
    assert contents(stage.pull(repo, sha)) == COMMON | SHARDED
    hub.reset()
    stage.pull(repo, sha)
    assert not hub.asked("GET", "/resolve/")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.bin": b"p"}, r"pickles \(pytorch_model\.bin\).*safetensors/convert"),
        ({"consolidated.00.pth": b"p"}, r"pickles \(consolidated\.00\.pth\)"),
        ({"model.pt": b"p", "training_args.bin": b"t"}, r"pickles \(model\.pt\)"),
        ({"model.gguf": b"g"}, r"only model\.gguf; expected model\.safetensors"),
        ({}, "no weights at all"),
        ({"model.safetensors.index.json": SHARDED["model.safetensors.index.json"]}, "not there: model-00001-of"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'}, r"not there: \.\./\.\./x"),
        ({"model.safetensors.index.json": b"{}"}, "not an index"),
    ],
)
def test_pull_refuses_weights_it_cannot_trust_or_find(hub, new_repo_id, files, said):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"config.json": "{}", **files})
    with pytest.raises(CheckpointError, match=said):
        stage.pull(repo, sha)
    assert not hub.asked("GET", r"\.(bin|pth|pt|gguf)$")


def test_pull_takes_up_a_broken_download(hub, new_repo_id, monkeypatch):
    repo, weights = new_repo_id(), os.urandom(200_000)
    sha = hub.add_repo(repo, COMMON | {"model.safetensors": weights})
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.truncate(r"model\.safetensors", after_bytes=150_000)
    hub.fail("GET", r"resolve/.*/model\.safetensors", 503)
    hub.fail("HEAD", r"resolve/.*/tokenizer\.json", 500)
    assert (stage.pull(repo, sha) / "model.safetensors").read_bytes() == weights
    asked = [request.headers.get("range") for request in hub.asked("GET", r"resolve/.*/model\.safetensors")]
    assert len(asked) == 3 and asked[:2] == [None, None] and int(asked[2][6:-1]) > 100_000


def test_verified_download_holds_every_weight_file_against_its_hash(hub, new_repo_id):
    single, many = new_repo_id(), new_repo_id()
    one = hub.add_repo(single, COMMON | {"model.safetensors": b"w" * 1000, "modeling_x.py": b"code"})
    two = hub.add_repo(many, COMMON | SHARDED)
    folder = hub_pull.pull_verified(single, one, allow_patterns=["*.py"])
    assert set(contents(folder)) == {*COMMON, "model.safetensors", "modeling_x.py"}
    folder = hub_pull.pull_verified(many, two)
    assert contents(folder) == COMMON | SHARDED
    spoilt = (folder / "model-00002-of-00002.safetensors").resolve()
    spoilt.write_bytes(b"\2" * 1999 + b"\3")
    with pytest.raises(HubError, match=rf"'model-00002-of-00002\.safetensors' of '{many}' at {two[:8]} is not what"):
        hub_pull.pull_verified(many, two)
    spoilt.write_bytes(b"\2" * 1999)
    with pytest.raises(HubError, match="Delete '.*' and download it again"):
        hub_pull.pull_verified(many, two)
    spoilt.unlink()
    assert contents(hub_pull.pull_verified(many, two)) == COMMON | SHARDED


def test_files_in_git_itself_are_held_against_its_blob_id(hub, new_repo_id, tmp_path):
    repo = new_repo_id()
    listed = remote_files(repo, hub.add_repo(repo, {"x.txt": "hello\n"}))
    assert listed["x.txt"] == RemoteFile("x.txt", 6, "ce013625030ba8dba906f756967f9e9ca394464a")
    (tmp_path / "x").write_bytes(b"hello\n")
    (tmp_path / "y").write_bytes(b"hellO\n")
    assert has_content(tmp_path / "x", listed["x.txt"]) and not has_content(tmp_path / "y", listed["x.txt"])


def test_cached_weights_are_all_or_nothing(hub, new_repo_id):
    single, many, other = new_repo_id(), new_repo_id(), new_repo_id()
    one = hub.add_repo(single, COMMON | {"model.safetensors": b"w"})
    two = hub.add_repo(many, COMMON | SHARDED)
    assert hub_pull.cached_weights(other, one) is None
    for repo, sha in ((single, one), (many, two)):
        stage.pull(repo, sha, weights=False)
        assert hub_pull.cached_weights(repo, sha) is None
        folder = stage.pull(repo, sha)
        hub.reset()
        assert hub_pull.cached_weights(repo, sha) == folder and not hub.requests
        newer = hub.add_repo(repo, {"notes.md": "more"})
        assert hub_pull.cached_weights(repo, newer) is None
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert hub_pull.cached_weights(many, two) is None


def test_repo_whose_shards_are_not_all_there_is_refused_by_its_index_alone(hub, new_repo_id):
    repo = new_repo_id()
    shards = sorted(name for name in SHARDED if name.endswith(".safetensors"))
    sha = hub.add_repo(repo, COMMON | {name: content for name, content in SHARDED.items() if name != shards[1]})
    folder = stage.pull(repo, sha, weights=False)
    with pytest.raises(CheckpointError, match=f"not there: {shards[1]}"):
        hub_pull.check_weights(repo, sha, folder)
    assert not hub.sent(r"\.safetensors$")


def test_part_of_a_cache_is_not_taken_for_the_repo(hub, new_repo_id, monkeypatch):
    repo = new_repo_id()
    sha, shard = hub.add_repo(repo, COMMON | SHARDED), "model-00001-of-00002.safetensors"
    for files in (list(COMMON), ["model.safetensors.index.json", shard]):
        for name in files:  # as other programs do, which don't keep the list of files
            folder = hub_pull.download_file(repo, name, revision=sha).parent
        with monkeypatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            assert stage.pull(repo, sha, weights=False) == folder
            with pytest.raises(HubError, match=r"the weights of .* not all, in the cache.*unset HF_HUB_OFFLINE"):
                stage.pull(repo, sha)
            with pytest.raises(HubError, match=r"the weights of .* not all, in the cache.*unset HF_HUB_OFFLINE"):
                hub_pull.check_weights(repo, sha, folder)


def test_offline_uses_the_cache_or_says_so(hub, new_repo_id):
    repo = new_repo_id()
    sha = hub.add_repo(repo, COMMON | {"model.safetensors": b"w"})
    code = (
        "import sys\nfrom hf_prune import hub\nfrom hf_prune.errors import HubError\n"
        "try:\n    found = hub.resolve(sys.argv[1])\n    print(hub.pull(found.id, found.commit))\n"
        "except HubError as error:\n    print('HubError', error)\n"
    )

    def run(repo_id: str, **environment: str) -> str:
        command = [sys.executable, "-c", code, repo_id]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    said = run(repo, HF_HUB_OFFLINE="1")
    assert said.startswith("HubError") and "HF_HUB_OFFLINE is set" in said
    folder = run(repo)
    assert Path(folder).name == sha
    hub.reset()
    assert run(repo, HF_HUB_OFFLINE="1") == folder and not hub.requests
