"""The loopback Hub against the real clients: what they send, what they make of what it answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub import LoopbackHub
from .hub.fixtures import ALICE, BOB, READER

CARD = "---\nlicense: mit\ntags:\n- small\nbase_model: org/base\n---\n# Hello\n"


@pytest.fixture
def api() -> HfApi:
    """The real client, as alice."""
    return HfApi(token=ALICE)


def hf(*arguments: str, token: str | None = ALICE) -> subprocess.CompletedProcess[str]:
    """Run the real `hf` command."""
    command = [str(Path(sys.executable).parent / "hf"), *arguments]
    environment = dict(os.environ) | ({"HF_TOKEN": token} if token else {})
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami_knows_users_orgs_and_roles(hub):
    alice = HfApi(token=ALICE).whoami()
    assert alice["name"] == "alice" and [org["name"] for org in alice["orgs"]] == ["acme"]
    assert HfApi(token=READER).whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(token="hf_nobody").whoami()
    assert status_of(refused) == 401


def test_commit_round_trip_keeps_history(hub, api, new_repo_id, tmp_path):
    repo = new_repo_id()
    api.create_repo(repo)
    large = os.urandom(50_000)
    (tmp_path / "model.safetensors").write_bytes(large)
    first = api.create_commit(
        repo,
        [CommitOperationAdd("README.md", CARD.encode()), CommitOperationAdd("a/b.txt", b"text")]
        + [CommitOperationAdd("model.safetensors", str(tmp_path / "model.safetensors"))],
        commit_message="first",
    )
    second = api.create_commit(
        repo, [CommitOperationDelete("a/b.txt"), CommitOperationAdd("c.txt", b"")], commit_message="second"
    )
    assert hub.files(repo) == {"README.md": CARD.encode(), "model.safetensors": large, "c.txt": b""}
    assert hub.files(repo, first.oid)["a/b.txt"] == b"text"
    assert [commit.title for commit in hub.commits(repo)] == ["second", "first", "initial commit"]
    assert [commit.commit_id for commit in api.list_repo_commits(repo)][:2] == [second.oid, first.oid]
    folder = Path(snapshot_download(repo, token=ALICE))
    assert folder.name == second.oid and (folder / "model.safetensors").read_bytes() == large


def test_tree_tells_hashes_as_git_and_lfs_do(hub, api, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.txt": b"hello\n", "sub/model.safetensors": b"\0" * 10})
    rows = {row.path: row for row in api.list_repo_tree(repo, recursive=True)}
    assert rows["x.txt"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a" and rows["x.txt"].lfs is None
    assert rows["sub/model.safetensors"].lfs.sha256.startswith("01d448afd928065458cf670b60f5a594")
    assert {row.path for row in api.list_repo_tree(repo)} == {".gitattributes", "x.txt", "sub"}
    assert [row.path for row in api.list_repo_tree(repo, "sub")] == ["sub/model.safetensors"]
    assert [row.path for row in api.get_paths_info(repo, ["x.txt", "nope"])] == ["x.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nope"))
    info = api.model_info(repo, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["x.txt"] == 6 and sizes["sub/model.safetensors"] == 10


def test_branches_tags_and_pull_requests(hub, api, new_repo_id):
    repo = new_repo_id()
    base = hub.add_repo(repo, {"x.txt": "one"})
    api.create_branch(repo, branch="dev")
    api.create_tag(repo, tag="v1")
    api.upload_file(repo_id=repo, path_or_fileobj=b"two", path_in_repo="x.txt", revision="dev")
    pull = HfApi(token=BOB).create_commit(
        repo, [CommitOperationAdd("x.txt", b"three")], commit_message="better", create_pr=True, parent_commit=base
    )
    assert pull.pr_num == 1
    contents = {ref: hub.files(repo, ref)["x.txt"] for ref in ("main", "dev", "v1", "refs/pr/1", base[:8])}
    assert contents == {"main": b"one", "dev": b"two", "v1": b"one", "refs/pr/1": b"three", base[:8]: b"one"}
    assert Path(hf_hub_download(repo, "x.txt", revision="refs/pr/1")).read_text() == "three"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "dev"} and refs.tags[0].target_commit == base
    assert refs.pull_requests[0].ref == "refs/pr/1"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_branch(repo, branch="dev")
    assert status_of(refused) == 409
    api.delete_branch(repo, branch="dev")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="dev")


def test_who_may_read(hub, new_repo_id):
    private, gated = new_repo_id(), new_repo_id()
    hub.add_repo(private, {"config.json": "{}"}, private=True)
    hub.add_repo(gated, {"config.json": "{}"}, gated=True, allowed=("reader",))
    for token, status in ((BOB, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            HfApi(token=token).model_info(private)
        assert status_of(hidden) == status
    assert HfApi(token=ALICE).model_info(private).private
    assert HfApi(token=BOB).model_info(gated).gated == "manual"
    for token, status in ((BOB, 403), (False, 401)):
        with pytest.raises(GatedRepoError) as closed:
            hf_hub_download(gated, "config.json", token=token)
        assert status_of(closed) == status
    with pytest.raises(GatedRepoError):
        HfApi(token=BOB).auth_check(gated)
    assert hf_hub_download(gated, "config.json", token=READER)


def test_who_may_write(hub, api, new_repo_id):
    repo = new_repo_id()
    api.create_repo(repo)
    api.create_repo(new_repo_id("acme"))
    addition = [CommitOperationAdd("x.txt", b"x")]
    for token, status in ((BOB, 403), (READER, 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(token=token).create_commit(repo, addition, commit_message="no")
        assert status_of(refused) == status
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(new_repo_id("bob"))
    assert status_of(refused) == 403
    assert hub.files(repo) == {}


def test_conflicts(hub, api, new_repo_id):
    repo = new_repo_id()
    url = api.create_repo(repo, private=True)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo)
    assert status_of(refused) == 409 and api.create_repo(repo, exist_ok=True) == url
    old = hub.commits(repo)[0].sha
    hub.add_repo(repo, {"x.txt": "theirs"}, private=True)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(repo, [CommitOperationAdd("x.txt", b"mine")], commit_message="late", parent_commit=old)
    assert status_of(refused) == 412 and hub.files(repo) == {"x.txt": b"theirs"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit(repo, [CommitOperationDelete("nope.txt")], commit_message="no")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(repo_id=repo, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md")
    api.update_repo_settings(repo, private=False, gated="manual")
    assert api.model_info(repo).gated == "manual" and not api.model_info(repo).private
    api.delete_repo(repo)
    assert not api.repo_exists(repo)


def test_upload_of_another_content_is_refused(hub):
    headers = {"Authorization": f"Bearer {ALICE}"}
    answer = httpx2.put(f"{hub.endpoint}/lfs/{'0' * 64}", content=b"x", headers=headers)
    assert answer.status_code == 400 and not hub.store.blob("0" * 64).exists()


def test_listing_by_author_search_and_tags(hub, new_repo_id):
    small, other, hidden = new_repo_id("bob"), new_repo_id("bob"), new_repo_id("bob")
    hub.add_repo(small, {"README.md": CARD, "config.json": '{"model_type": "llama"}'})
    hub.add_repo(other, {"README.md": "no front matter"})
    hub.add_repo(hidden, {"README.md": CARD}, private=True)
    api = HfApi(token=False)
    assert {info.id for info in api.list_models(author="bob")} >= {small, other}
    assert [info.id for info in api.list_models(author="bob", filter=["small", "transformers"])] == [small]
    assert [info.id for info in api.list_models(filter="base_model:org/base", search=small)] == [small]
    assert hidden not in {info.id for info in api.list_models()}
    assert api.model_info(small).card_data.license == "mit"


def test_ranges_and_conditional_requests(hub, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.txt": "0123456789"})
    url = f"{hub.endpoint}/{repo}/resolve/main/x.txt"

    def get(**headers: str) -> tuple[int, bytes, str]:
        answer = httpx2.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return answer.status_code, answer.content, answer.headers["ETag"]

    etag = get()[2]
    assert get(Range="bytes=3-5")[:2] == (206, b"345") and get(Range="bytes=8-")[:2] == (206, b"89")
    assert get(Range="bytes=-2")[:2] == (206, b"89") and get(Range="bytes=10-")[0] == 416
    assert get(If_None_Match=etag)[0] == 304 and get(If_None_Match='"old"')[0] == 200


def test_faults_strike_as_often_as_asked(hub, api, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.txt": "x"})
    for status in (401, 403, 404, 409, 412, 429, 500, 503):
        hub.fail("GET", f"/api/models/{repo}", status)
        with pytest.raises(HfHubHTTPError) as failed:
            api.model_info(repo)
        assert status_of(failed) == status
        assert api.model_info(repo).id == repo
    hub.fail("POST", "/commit/main", 502, done=True)
    with pytest.raises(HfHubHTTPError):
        api.create_commit(repo, [CommitOperationAdd("y.txt", b"y")], commit_message="lost answer")
    assert hub.files(repo)["y.txt"] == b"y"
    hub.fail("GET", "/api/models", 400)
    with pytest.raises(BadRequestError):
        api.model_info(repo)


def test_truncated_download_resumes_with_a_range(hub, new_repo_id, tmp_path, monkeypatch):
    repo, content = new_repo_id(), os.urandom(100_000)
    hub.add_repo(repo, {"model.safetensors": content})
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.truncate(r"model\.safetensors", after_bytes=40_000)
    file = hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path)
    assert Path(file).read_bytes() == content
    ranges = [request.headers.get("range") for request in hub.asked("GET", r"model\.safetensors")]
    assert len(ranges) == 2 and ranges[0] is None
    assert ranges[1] is not None and int(ranges[1].removeprefix("bytes=").rstrip("-")) > 30_000


def test_lies_about_ranges(hub, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.bin": b"0123456789"})
    url = f"{hub.endpoint}/{repo}/resolve/main/x.bin"

    def get() -> tuple[int, bytes, str | None]:
        answer = httpx2.get(url, headers={"Range": "bytes=3-5"}, follow_redirects=True)
        return answer.status_code, answer.content, answer.headers.get("Content-Range")

    truth = (206, b"345", "bytes 3-5/10")
    hub.ignore_range(r"x\.bin")
    assert get() == (200, b"0123456789", None) and get() == truth
    hub.short_range(r"x\.bin", missing=2)
    assert get() == (206, b"3", "bytes 3-3/10") and get() == truth
    hub.wrong_range(r"x\.bin", by=1)
    assert get() == (206, b"234", "bytes 3-5/10") and get() == truth
    hub.wrong_range(r"x\.bin", by=1, honest=True)
    assert get() == (206, b"234", "bytes 2-4/10") and get() == truth
    tags = [httpx2.head(url).headers["X-Linked-ETag"]]
    hub.change_etag(r"x\.bin")
    tags += [httpx2.get(url).headers["X-Linked-ETag"] for _ in range(2)]
    assert tags[0] == tags[2] != tags[1]


def test_content_from_another_host(hub, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.bin": b"0123456789"}, private=True)
    hub.reset()
    hub.redirect(r"x\.bin")
    headers = {"Range": "bytes=3-5", "Authorization": f"Bearer {ALICE}"}
    answer = httpx2.get(f"{hub.endpoint}/{repo}/resolve/main/x.bin", headers=headers, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, b"345") and "X-Repo-Commit" not in answer.headers
    assert answer.history[0].headers["X-Linked-ETag"] and [request.user for request in hub.requests] == ["alice", None]


def test_sent_bytes_are_counted(hub, new_repo_id):
    repo = new_repo_id()
    hub.add_repo(repo, {"x.bin": b"0123456789"})
    hub.reset()
    url = f"{hub.endpoint}/{repo}/resolve/main/x.bin"
    httpx2.head(url)
    assert hub.sent(r"x\.bin") == 0
    httpx2.get(url)
    httpx2.get(url, headers={"Range": "bytes=3-5"})
    hub.truncate(r"x\.bin", after_bytes=4)
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(url)
    assert hub.sent(r"x\.bin") == 17


def test_corruption_shows_in_the_tree(hub, api, new_repo_id):
    repo = new_repo_id()
    api.create_repo(repo)
    hub.corrupt(r"x\.txt")
    api.upload_file(repo_id=repo, path_or_fileobj=b"good", path_in_repo="x.txt")
    assert hub.files(repo)["x.txt"] == b"goo?"


def test_request_log_has_no_tokens(hub, api, new_repo_id):
    hub.add_repo(repo := new_repo_id(), {})
    api.model_info(repo)
    assert [request.user for request in hub.asked("GET", repo)] == ["alice"]
    assert ALICE not in repr(hub.requests)


def test_data_survives_a_restart(tmp_path):
    with LoopbackHub(tmp_path, {}) as first:
        sha = first.add_repo("old", {"x.txt": "x"})
    with LoopbackHub(tmp_path, {}) as second:
        assert second.files("old", sha) == {"x.txt": b"x"}
        assert httpx2.get(f"{second.endpoint}/api/models/old/revision/{sha}").json()["sha"] == sha


def test_hf_command_uploads_downloads_and_lists(hub, new_repo_id, tmp_path):
    repo, source, target = new_repo_id(), tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "README.md").write_text(CARD)
    (source / "model.safetensors").write_bytes(b"\0" * 1000)
    done = hf("upload", repo, str(source), ".")
    assert done.returncode == 0, done.stderr
    assert set(hub.files(repo)) == {"README.md", "model.safetensors"}
    done = hf("download", repo, "--local-dir", str(target))
    assert done.returncode == 0, done.stderr
    assert (target / "model.safetensors").read_bytes() == b"\0" * 1000
    done = hf("models", "list", "--author", "alice", "--search", repo.split("/")[1], "--json")
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in json.loads(done.stdout)] == [repo]
    assert hf("download", "alice/not-there").returncode == 1


def test_module_serves_until_killed(tmp_path):
    command = [sys.executable, "-m", "tests.hub", "--root", str(tmp_path), "--user", "carol", "--token", "hf_carol"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        try:
            endpoint = server.stdout.readline().strip()
            assert HfApi(endpoint=endpoint, token="hf_carol").whoami()["name"] == "carol"
        finally:
            server.kill()


def test_transformers_loads_from_the_hub(hub, new_repo_id, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from .tiny import tiny_model, tokens

    repo, model = new_repo_id(), tiny_model("llama", depth=2)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    hub.add_repo(repo, tmp_path)
    assert "model.safetensors.index.json" in hub.files(repo)
    loaded = AutoModelForCausalLM.from_pretrained(repo)
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_datasets_loads_from_the_hub(hub, new_repo_id, tmp_path):
    from datasets import load_dataset

    repo = new_repo_id()
    rows = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(5))
    hub.add_repo(repo, {"data/train.jsonl": rows}, repo_type="dataset")
    loaded = load_dataset(repo, split="train", cache_dir=str(tmp_path))
    assert loaded["text"][:] == [f"line {number}" for number in range(5)]
    streamed = load_dataset(repo, split="train", streaming=True)
    assert [row["text"] for row in streamed][:2] == ["line 0", "line 1"]
