"""Deploying the page to a Space of the loopback Hub, through the real client; and the wheel that goes with it."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard

from hf_prune import __version__, hub_client, space_wheel
from hf_prune.errors import HubError, OutputError
from hf_prune.space import settings
from hf_prune.space_deploy import FEATURED, deploy

from .hub.fixtures import ALICE, BOB, READER

ROOT = Path(__file__).parents[1]
NAME = f"hf_prune-{__version__}-py3-none-any.whl"
PAGE = ("app.py", "README.md", "requirements.txt")
PAIR_CARD = "---\ntags:\n- hf-prune\nbase_model: org/base\n---\n# Pruned\n"


def make_wheel(folder: Path, changes: dict[str, bytes] | None = None, name: str = NAME) -> Path:
    """A wheel of the project with the real page and little else."""
    info = f"hf_prune-{__version__}.dist-info"
    files = {f"hf_prune/space_page/{part}": (ROOT / "space" / part).read_bytes() for part in PAGE}
    files |= {
        "hf_prune/__init__.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: hf-prune\nVersion: {__version__}\n"
        "Provides-Extra: space\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    } | (changes or {})
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD")).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as target:
        for path, content in files.items():
            target.writestr(zipfile.ZipInfo(path), content)
    return folder / name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hundredths instead of seconds between tries of our own."""
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """See `make_wheel`."""
    return make_wheel(tmp_path / "dist")


@pytest.fixture
def pair(hub, new_repo_id) -> str:
    """A pruned model, as far as its card tells."""
    repo = new_repo_id()
    hub.add_repo(repo, {"README.md": PAIR_CARD})
    return repo


def space_files(hub, repo: str) -> dict[str, bytes]:
    return hub.files(repo, repo_type="space")


def commits(hub, repo: str) -> list[str]:
    return [commit.title for commit in hub.commits(repo, repo_type="space")]


def test_new_space_is_public_and_one_commit_fills_it(hub, new_repo_id, wheel, pair):
    repo = new_repo_id()
    done = deploy(repo, hardware="zero-a10g", pairs=[pair], wheel=wheel, token=ALICE)
    files = space_files(hub, repo)
    assert set(files) == {*PAGE, NAME} == set(done.additions) and files[NAME] == wheel.read_bytes()
    assert files["app.py"] == (ROOT / "space" / "app.py").read_bytes()
    assert commits(hub, repo) == ["Deploy with hf-prune", "initial commit"]
    assert done.url == f"{hub.endpoint}/spaces/{repo}" and done.commit == hub.commits(repo, repo_type="space")[0].sha
    assert done.created and done.hardware == "zero-a10g" and done.bytes == sum(map(len, files.values()))
    info = HfApi(token=False).space_info(repo)
    assert info.private is False and info.sdk == "gradio" and info.runtime.requested_hardware == "zero-a10g"
    card = SpaceCard(files["README.md"].decode())
    assert card.data.models == [pair, "org/base"] == list(done.models) and card.data.sdk == "gradio"
    assert repo in card.text and "me/my-space" not in card.text
    variables = HfApi(token=ALICE).get_space_variables(repo)
    told = settings.read({name: variable.value for name, variable in variables.items()})
    assert told.featured == (settings.DEMO, pair)


def test_new_space_is_public_whatever_the_default_of_its_namespace(hub, new_repo_id, wheel, monkeypatch):
    real, asked = HfApi.create_repo, {}

    def create(self, *args, **kwargs):
        asked.update(kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_repo", create)
    deploy(new_repo_id(), wheel=wheel, token=ALICE)
    assert asked["private"] is False and asked["space_hardware"] is None


def test_requirements_name_the_wheel_by_address_and_hash(hub, new_repo_id, wheel):
    repo = new_repo_id()
    deploy(repo, wheel=wheel, token=ALICE)
    lines = space_files(hub, repo)["requirements.txt"].decode().splitlines()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted = f"hf-prune[space] @ {hub.endpoint}/spaces/{repo}/resolve/main/{NAME}#sha256={digest}"
    assert [line for line in lines if not line.startswith("#")] == [wanted]


def pip_install(requirements: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a Space's build does, without a token and without the other packages."""
    folder.mkdir()
    (folder / "requirements.txt").write_bytes(requirements)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--no-index"]
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return subprocess.run(
        [*command, "--target", str(folder / "site"), "-r", str(folder / "requirements.txt")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.slow
def test_pip_installs_what_the_requirements_say_and_nothing_else(hub, new_repo_id, wheel, tmp_path):
    repo = new_repo_id()
    deploy(repo, wheel=wheel, token=ALICE)
    requirements = space_files(hub, repo)["requirements.txt"]
    done = pip_install(requirements, tmp_path / "good")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good" / "site" / "hf_prune" / "space_page" / "app.py").is_file()
    hub.add_repo(repo, {NAME: make_wheel(tmp_path / "other", {"hf_prune/more.py": b""})}, repo_type="space")
    refused = pip_install(requirements, tmp_path / "bad")
    assert refused.returncode != 0 and "DO NOT MATCH THE HASHES" in refused.stderr


def test_again_sends_only_what_changed_and_deletes_older_wheels(hub, new_repo_id, wheel, pair, tmp_path):
    repo = new_repo_id()
    first = deploy(repo, pairs=[pair], wheel=wheel, token=ALICE)
    hub.add_repo(repo, {"hf_prune-0.0.9-py3-none-any.whl": b"old", "notes.md": "mine"}, repo_type="space")
    hub.reset()
    again = deploy(repo, pairs=[pair], wheel=wheel, token=ALICE)
    assert again.additions == () and again.deletions == ("hf_prune-0.0.9-py3-none-any.whl",)
    assert not again.created and commits(hub, repo)[0] == "Deploy with hf-prune"
    assert set(space_files(hub, repo)) == {*PAGE, NAME, "notes.md"}
    assert not hub.asked("POST", "create|hardware|variables")
    hub.reset()
    nothing = deploy(repo, pairs=[pair], wheel=wheel, token=ALICE)
    assert nothing.commit == again.commit != first.commit and not hub.asked("POST", "/commit/")
    newer = make_wheel(tmp_path / "newer", {"hf_prune/new.py": b"new = True\n"})
    changed = deploy(repo, pairs=[pair], wheel=newer, token=ALICE)
    assert set(changed.additions) == {NAME, "requirements.txt"}


def test_hardware_and_pairs_of_a_space_that_is_there(hub, new_repo_id, wheel, pair):
    repo = new_repo_id()
    deploy(repo, wheel=wheel, token=ALICE)
    assert HfApi(token=ALICE).get_space_variables(repo) == {}
    done = deploy(repo, hardware="t4-small", pairs=[pair], wheel=wheel, token=ALICE)
    assert HfApi(token=ALICE).get_space_runtime(repo).requested_hardware == "t4-small" == done.hardware
    assert HfApi(token=ALICE).get_space_variables(repo)[FEATURED].value == pair
    assert done.additions == ("README.md",) and not done.created
    hub.reset()
    deploy(repo, hardware="t4-small", pairs=[pair], wheel=wheel, token=ALICE)
    deploy(repo, wheel=wheel, token=ALICE)
    assert not hub.asked("POST", "/hardware|/variables|/commit/")


def test_dry_run_reads_only(hub, new_repo_id, wheel, pair):
    repo = new_repo_id()
    plan = deploy(repo, hardware="zero-a10g", pairs=[pair], wheel=wheel, token=ALICE, dry_run=True)
    assert plan.created and plan.commit is None and set(plan.additions) == {*PAGE, NAME}
    assert not hub.exists(repo, "space")
    deploy(repo, wheel=wheel, token=ALICE)
    hub.reset()
    plan = deploy(repo, hardware="t4-small", pairs=[pair], wheel=wheel, token=ALICE, dry_run=True)
    assert plan.additions == ("README.md",) and not plan.created
    assert {request.method for request in hub.requests} == {"GET"}


def test_name_alone_goes_to_the_user(hub, new_repo_id, wheel):
    name = new_repo_id().split("/")[1]
    assert deploy(name, wheel=wheel, token=ALICE).repo_id == f"alice/{name}"


def test_private_space_is_refused(hub, new_repo_id, wheel):
    repo = new_repo_id()
    HfApi(token=ALICE).create_repo(repo, repo_type="space", space_sdk="gradio", private=True)
    with pytest.raises(HubError, match=r"private Space, whose build could not fetch the wheel"):
        deploy(repo, wheel=wheel, token=ALICE, overwrite=True)
    assert commits(hub, repo) == ["initial commit"]


def test_space_of_something_else_is_not_replaced_unasked(hub, new_repo_id, wheel):
    repo = new_repo_id()
    hub.add_repo(repo, {"app.py": "print()", "README.md": "mine"}, repo_type="space")
    for dry_run in (True, False):
        with pytest.raises(HubError, match=r"did not deploy \(it holds app.py and no wheel.*--overwrite"):
            deploy(repo, wheel=wheel, token=ALICE, dry_run=dry_run)
    assert space_files(hub, repo)["app.py"] == b"print()"
    deploy(repo, wheel=wheel, token=ALICE, overwrite=True)
    assert set(space_files(hub, repo)) == {*PAGE, NAME}


def test_space_that_was_just_made_by_hand_is_welcome(hub, new_repo_id, wheel):
    repo = new_repo_id()
    hub.add_repo(repo, {"README.md": "---\nsdk: gradio\n---\n"}, repo_type="space")
    assert not deploy(repo, wheel=wheel, token=ALICE).created


def test_a_model_of_the_same_name_is_left_alone(hub, new_repo_id, wheel):
    repo = new_repo_id()
    hub.add_repo(repo, {"config.json": "{}"})
    deploy(repo, wheel=wheel, token=ALICE)
    assert hub.files(repo) == {"config.json": b"{}"} and set(space_files(hub, repo)) == {*PAGE, NAME}


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (BOB, "alice/space-of-another", r"may write to bob;"),
        (READER, "reader/space-1", r"this access token may only read"),
        (None, "alice/space-1", r"hf auth login"),
        (ALICE, "a/b/c", r"neither a folder nor a repo id"),
        (ALICE, "alice/../x", r"neither a folder nor a repo id"),
    ],
)
def test_who_may_not_deploy_learns_it_before_anything_is_built(hub, wheel, monkeypatch, token, repo, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(space_wheel, "build", pytest.fail)
    with pytest.raises(HubError, match=said):
        deploy(repo, token=token)
    assert not hub.asked("POST", "")


def test_organisations_of_the_user_count(hub, new_repo_id, wheel):
    repo = new_repo_id("acme")
    assert deploy(repo, wheel=wheel, token=ALICE).created


def test_unknown_hardware_is_refused_before_any_request(hub, wheel):
    with pytest.raises(HubError, match=r"unknown hardware 'gpu'; expected one of: cpu-basic, .*zero-a10g"):
        deploy("alice/never", hardware="gpu", wheel=wheel, token=ALICE)
    assert not hub.requests


@pytest.mark.parametrize("status", [402, 403])
@pytest.mark.parametrize("there", [True, False])
def test_hardware_that_the_hub_refuses(hub, new_repo_id, wheel, status, there):
    repo = new_repo_id()
    if there:
        deploy(repo, wheel=make_wheel(wheel.parent / "old", {"hf_prune/old.py": b""}), token=ALICE)
    hub.fail("POST", "/hardware" if there else "/repos/create", status, message="Subscribe first")
    todo = "has to be paid for" if status == 402 else "may not do that"
    with pytest.raises(HubError, match=rf"on 't4-small': the Hub answered {status} \(.*Subscribe first.*{todo}"):
        deploy(repo, hardware="t4-small", wheel=wheel, token=ALICE)
    assert hub.exists(repo, "space") == there
    assert not there or len(commits(hub, repo)) == 2


def test_pairs_have_to_be_found_by_everybody(hub, new_repo_id, wheel):
    repo, private, foreign = new_repo_id(), new_repo_id(), new_repo_id()
    hub.add_repo(private, {"README.md": PAIR_CARD}, private=True)
    hub.add_repo(foreign, {"README.md": "---\ntags:\n- other\n---\n"})
    for name, said in ((private, "is private"), (foreign, "not made by hf-prune"), ("alice/none", "no model")):
        with pytest.raises(HubError, match=rf"'{name}'.*{said}|{said} '{name}'"):
            deploy(repo, pairs=[name], wheel=wheel, token=ALICE)
    assert not hub.exists(repo, "space")


@pytest.mark.parametrize("base", ["7", "{a: b}", "[{a: b}, null, 3]", "/home/me/base", '"org/a\\n- b"', "null"])
def test_bases_that_are_no_hub_ids_are_left_out(hub, new_repo_id, wheel, base):
    repo, pair = new_repo_id(), new_repo_id()
    hub.add_repo(pair, {"README.md": f"---\ntags: [hf-prune]\nbase_model: {base}\n---\n"})
    assert deploy(repo, pairs=[pair, pair], wheel=wheel, token=ALICE).models == (pair,)
    assert SpaceCard(space_files(hub, repo)["README.md"].decode()).data.models == [pair]
    assert HfApi(token=ALICE).get_space_variables(repo)[FEATURED].value == pair


def test_pairs_that_a_person_wrote_into_the_variable_are_kept(hub, new_repo_id, wheel, pair):
    repo = new_repo_id()
    deploy(repo, wheel=wheel, token=ALICE)
    HfApi(token=ALICE).add_space_variable(repo, FEATURED, f"demo, {pair} ,")
    hub.reset()
    assert deploy(repo, wheel=wheel, token=ALICE).models == (pair, "org/base")
    assert not hub.asked("POST", "/variables")


@pytest.mark.parametrize("path", ["app.py", NAME])
def test_hub_that_holds_something_else_is_caught(hub, new_repo_id, wheel, path):
    hub.corrupt(rf"^{path}$")
    with pytest.raises(HubError, match=r"has another hash.*do not use"):
        deploy(new_repo_id(), wheel=wheel, token=ALICE)


def test_push_of_somebody_else_meanwhile(hub, new_repo_id, wheel, monkeypatch, tmp_path):
    repo = new_repo_id()
    deploy(repo, wheel=wheel, token=ALICE)
    real = HfApi.create_commit

    def late(self, repo_id, *arguments, **kwargs):
        hub.add_repo(repo, {"app.py": "theirs"}, repo_type="space")
        return real(self, repo_id, *arguments, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(HubError, match=r"somebody pushed.*nothing was changed"):
        deploy(repo, wheel=make_wheel(tmp_path / "new", {"hf_prune/new.py": b""}), token=ALICE)
    assert space_files(hub, repo)["app.py"] == b"theirs" and space_files(hub, repo)[NAME] == wheel.read_bytes()


def test_lost_answer_does_not_commit_twice(hub, new_repo_id, wheel):
    repo = new_repo_id()
    hub.fail("POST", "/commit/", 502, done=True)
    deploy(repo, wheel=wheel, token=ALICE)
    assert commits(hub, repo) == ["Deploy with hf-prune", "initial commit"]


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"hf_prune/.env": b"A=1"}, NAME, r"holds hf_prune/\.env, which looks like a secret"),
        ({"hf_prune/x.py": f"TOKEN = '{ALICE}'".encode()}, NAME, r"holds hf_prune/x\.py"),
        ({}, "hf_prune-9.9-py3-none-any.whl", "called otherwise than its content"),
        (
            {f"hf_prune-{__version__}.dist-info/METADATA": b"Name: other\nVersion: 1\nProvides-Extra: space\n"},
            NAME,
            "holds other 1; expected hf-prune",
        ),
    ],
)
def test_wheels_that_are_refused(hub, new_repo_id, tmp_path, changes, name, said):
    repo = new_repo_id()
    with pytest.raises(OutputError, match=said):
        deploy(repo, wheel=make_wheel(tmp_path / "bad", changes, name), token=ALICE)
    assert not hub.exists(repo, "space")


def test_damaged_wheel_is_refused(wheel, tmp_path):
    damaged = tmp_path / NAME
    with zipfile.ZipFile(wheel) as held, zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as target:
        for name in held.namelist():
            target.writestr(name, held.read(name))
    content = damaged.read_bytes()
    for place in (60, 80, 500):  # in the deflated data of the first file
        damaged.write_bytes(content[:place] + b"\xff" * 12 + content[place + 12 :])
        with pytest.raises(OutputError, match="is not a wheel"):
            space_wheel.own_wheel(tmp_path, damaged)


@pytest.mark.parametrize("content", [None, b"no zip", b"PK"])
def test_what_is_no_wheel_is_refused(tmp_path, content):
    file = tmp_path / NAME
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OutputError, match="is not a wheel"):
        space_wheel.own_wheel(tmp_path, file)


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as held:
        assert held.testzip() is None
        return {name: held.read(name) for name in held.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return space_wheel.own_wheel(tmp_path_factory.mktemp("built")).file


@pytest.mark.slow
def test_wheel_of_a_checkout_holds_no_junk_and_comes_out_the_same(built, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name, content in members(built).items():
        if name.startswith("hf_prune/") and not name.startswith(("hf_prune/space_page/", "hf_prune/model_cards/")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes(content)
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_cards", "space", "hf_prune/optimum_cli"):
        subprocess.run(["cp", "-r", ROOT / name, checkout / name], check=True)
    junk = ("hf_prune/.env", "hf_prune/x.pyc", "hf_prune/__pycache__/y.pyc", "build/lib/hf_prune/old.py", "token")
    for name in junk:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"junk")
    before = {path for path in checkout.rglob("*")}
    (tmp_path / "scratch").mkdir()
    again = space_wheel.build(checkout, tmp_path / "scratch")
    assert again.name == NAME and members(again) == members(built) and again.read_bytes() == built.read_bytes()
    assert {path for path in checkout.rglob("*")} == before
    assert f"hf_prune-{__version__}.dist-info/entry_points.txt" in members(built)
    assert "hf_prune/space_page/app.py" in members(built) and "hf_prune/space/css/base.css" in members(built)


@pytest.mark.slow
def test_what_git_does_not_know_stays_out_of_the_wheel(tmp_path, monkeypatch, caplog):
    checkout, scratch = tmp_path / "check out", tmp_path / "a scratch"
    scratch.mkdir()
    kept = {"pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'}
    kept |= {"known/__init__.py": "", "known/more.py": ""}
    kept["pyproject.toml"] += '[project]\nname = "known"\nversion = "1"\n[tool.setuptools]\npackages = ["known"]\n'
    for name, text in (kept | {"known/mine.py": "KEY = 1", "known/.env": ""}).items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    (checkout / "known" / "outside").symlink_to("/etc")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    subprocess.run(["git", "-C", checkout, "add", *kept], check=True)
    monkeypatch.setattr(space_wheel, "_SOURCES", ("pyproject.toml", "known"))
    held = members(space_wheel.build(checkout, scratch))
    assert {name for name in held if name.startswith("known/")} == {"known/__init__.py", "known/more.py"}
    assert "git does not know them: known/mine.py, known/outside" in caplog.text


@pytest.mark.slow
def test_build_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(space_wheel, "_SOURCES", ("pyproject.toml",))
    (tmp_path / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'nothing'\n")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OutputError, match=r"can't be built .*--wheel FILE"):
        space_wheel.build(tmp_path, tmp_path / "scratch")


def install(wheel: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(folder), str(wheel)], check=True, timeout=300)
    return folder


def repack(site: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Pack what is installed in a folder, by the code that is installed there."""
    scratch.mkdir()
    code = f"from hf_prune.space_wheel import own_wheel; from pathlib import Path; own_wheel(Path({str(scratch)!r}))"
    environment = dict(os.environ) | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=scratch, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_installed_package_is_packed_again_as_it_came(built, tmp_path):
    site = install(built, tmp_path / "site")
    (site / "hf_prune" / "notes.txt").write_text("of this machine")
    (site / "hf_prune" / "__pycache__").mkdir(exist_ok=True)
    (site / "hf_prune" / "__pycache__" / "x.pyc").write_bytes(b"x")
    done = repack(site, tmp_path / "scratch")
    assert done.returncode == 0, done.stderr
    packed = tmp_path / "scratch" / NAME
    record = f"hf_prune-{__version__}.dist-info/RECORD"
    before, after = members(built), members(packed)
    assert set(after) == set(before)
    assert {name: content for name, content in after.items() if name != record} == {
        name: content for name, content in before.items() if name != record
    }
    assert set(io.BytesIO(after[record])) == set(io.BytesIO(before[record]))
    other = install(packed, tmp_path / "other")
    assert all((other / name).read_bytes() == content for name, content in before.items() if name != record)
    assert repack(other, tmp_path / "scratch2").returncode == 0
    assert (tmp_path / "scratch2" / NAME).read_bytes() == packed.read_bytes()
    changed = site / "hf_prune" / "errors.py"
    changed.write_text(changed.read_text() + "# mine\n")
    refused = repack(site, tmp_path / "scratch3")
    assert refused.returncode != 0 and "hf_prune/errors.py is not the one that was installed" in refused.stderr
