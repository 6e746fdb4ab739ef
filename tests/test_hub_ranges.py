"""The weights of a model on the loopback Hub by byte ranges: what is sent, what is believed, what breaks off."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_prune import hub_client, hub_pull, hub_ranges, prune_layers
from hf_prune.checkpoint import checkpoint_entries, weight_files
from hf_prune.errors import CheckpointError, HubError, RangeError
from hf_prune.hub_headers import FIRST, hub_weights
from hf_prune.hub_ranges import LARGEST_REQUEST, SMALLEST_REQUEST, WORKERS, runs
from hf_prune.moving import LARGEST_SPAN, SourceWeights, Span
from hf_prune.output import Finished
from hf_prune.records import Operation, Plan
from hf_prune.surgery.checkpoint import write_weights

from .cli.support import done
from .hub.fixtures import ALICE, BOB
from .hub.folders import write
from .making import base_folder, reference

LAYER = 1 << 20
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait hundredths instead of seconds between tries of our own."""
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01, 0.01))


def safetensors(tensors: dict[str, bytes], padding: int = 0) -> bytes:
    """A file that holds these bytes as tensors, in this order."""
    header, at = {}, 0
    for name, content in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [at, at + len(content)]}
        at += len(content)
    raw = json.dumps(header).encode() + b" " * padding
    return len(raw).to_bytes(8, "little") + raw + b"".join(tensors.values())


def layers(*numbers: int, size: int = LAYER) -> dict[str, bytes]:
    return {f"model.layers.{number}.weight": random.Random(number).randbytes(size) for number in numbers}


def sharded(*shards: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a sharded checkpoint."""
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = {name: safetensors(shard) for name, shard in zip(names, shards, strict=True)}
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return files | {INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def wanted(weights: SourceWeights, names: list[str]) -> tuple[list[Span], int]:
    """Spans that put these tensors one behind the other into the file `out`, and its length."""
    spans, at = [], 0
    for name in names:
        entry = weights.entries[name]
        for start in range(0, entry.size, LARGEST_SPAN):
            size = min(LARGEST_SPAN, entry.size - start)
            spans.append(Span(entry.file, entry.start + start, size, "out", at + start))
        at += entry.size
    return spans, at


def fetch(weights: SourceWeights, names: list[str], folder: Path, done=lambda span: None) -> bytes:
    spans, size = wanted(weights, names)
    with (folder / "out").open("wb") as target:
        target.truncate(size)
    weights.mover.move(spans, folder, done)
    return (folder / "out").read_bytes()


# --- headers


def test_headers_alone_are_fetched_and_say_what_a_local_checkpoint_says(hub, new_repo_id, tmp_path):
    repo, files = new_repo_id(), sharded(layers(0, 1), layers(2, 3), layers(4))
    sha = hub.add_repo(repo, files)
    hub.reset()
    weights = hub_weights(repo, sha)
    assert dict(weights.entries) == checkpoint_entries(write(tmp_path, files))
    assert hub.sent(r"resolve/.*\.safetensors$") <= 3 * FIRST + 64
    assert len(hub.asked("GET", r"resolve/.*\.safetensors$")) == 4  # one a shard, and one to see that parts are parts
    assert repo in weights.identity and sha in weights.identity
    assert {request.user for request in hub.requests} == {None}


def test_long_header_takes_a_second_request(hub, new_repo_id):
    repo, tensors = new_repo_id(), layers(0, 1)
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors, padding=FIRST)})
    hub.reset()
    weights = hub_weights(repo, sha)
    assert list(weights.entries) == list(tensors)
    asked = [request.headers["range"] for request in hub.asked("GET", r"resolve/.*\.safetensors$")]
    length = weights.entries["model.layers.0.weight"].start
    assert asked[:2] == [f"bytes=0-{FIRST - 1}", f"bytes={FIRST}-{length - 1}"]


def test_identity_changes_with_the_commit_and_the_content(hub, new_repo_id):
    repo = new_repo_id()
    first = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, size=100))})
    second = hub.add_repo(repo, {"model.safetensors": safetensors(layers(1, size=100))})
    found = {hub_weights(repo, sha).identity for sha in (first, second, first)}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "promises a header of 0"),
        (b"\1\0\0", "promises a header"),
        ((1 << 60).to_bytes(8, "little") + b"{}", f"promises a header of {1 << 60}"),
        ((99_000_000).to_bytes(8, "little") + b" " * 1000, "promises a header of 99000000"),
        ((3).to_bytes(8, "little") + b"[1]", "has no safetensors header"),
        (safetensors(layers(0, size=100))[:-1], "truncated"),
        (safetensors(layers(0, size=100)) + b"x", "too long"),
        (safetensors(layers(0, size=100)).replace(b"[0, 100]", b"[0, 101]"), "takes 101 bytes"),
        (safetensors(layers(0, 1, size=100)).replace(b"[100, 200]", b"[50, 150] "), "overlaps"),
        (safetensors(layers(0, 1, size=100)).replace(b"layers.1", b"layers.0"), "names 'model.layers.0.weight' twice"),
    ],
)
def test_hostile_headers_are_refused(hub, new_repo_id, content, said):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": content})
    with pytest.raises(CheckpointError, match=f"{said}"):
        hub_weights(repo, sha)


def test_headers_that_are_too_long_together_are_not_fetched(hub, new_repo_id, monkeypatch):
    monkeypatch.setattr("hf_prune.hub_headers.LONGEST_HEADER", 3 * FIRST)
    repo, files = new_repo_id(), sharded(layers(0, size=9), layers(1, size=9))
    padded = {name: safetensors(layers(number, size=9), 2 * FIRST) for number, name in enumerate(sorted(files)[:2])}
    sha = hub.add_repo(repo, files | padded)
    hub.reset()
    with pytest.raises(CheckpointError, match=rf"headers of '{repo}' have \d+ bytes by their own word"):
        hub_weights(repo, sha)
    assert hub.sent(r"\.safetensors$") == 2 * FIRST


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_map": {"a": "model-00009-of-00009.safetensors"}}, "not there: model-00009-of-00009"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "not there"),
        ({"weight_map": {}}, "not there: all"),
        ({}, "not an index"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "tensor 'a' is in model-00001"),
    ],
)
def test_index_that_lies_is_refused(hub, new_repo_id, change, said):
    repo = new_repo_id()
    sha = hub.add_repo(repo, sharded(layers(0, size=9), layers(1, size=9)) | {INDEX: json.dumps(change)})
    with pytest.raises(CheckpointError, match=said):
        hub_weights(repo, sha)


def test_tensor_in_two_shards_and_pickles_are_refused(hub, new_repo_id):
    twice, pickles = new_repo_id(), new_repo_id()
    files = sharded(layers(0, 2, size=9), layers(0, 1, size=9))
    sha = hub.add_repo(twice, files)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.weight' lies in two shards"):
        hub_weights(twice, sha)
    with pytest.raises(CheckpointError, match="only as pickles"):
        hub_weights(pickles, hub.add_repo(pickles, {"pytorch_model.bin": b"p"}))


def test_file_too_large_for_parts_says_so(hub, new_repo_id, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 1000)
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, size=1000))})
    with pytest.raises(RangeError, match="download whole files instead"):
        hub_weights(repo, sha)


# --- from the Hub to a cut checkpoint


_KILLED = """
import os, signal
from hf_prune import hub_ranges
from hf_prune.cli import main
from hf_prune.journal import Journal

hub_ranges.SMALLEST_REQUEST = 1000
enter = Journal._enter

def die(self, spans):
    enter(self, spans)
    if len(self._finished) > 2:
        os.kill(os.getpid(), signal.SIGKILL)

Journal._enter = die
main()
"""


@pytest.mark.slow
def test_kill_9_while_fetching_and_on_it_goes(hub, hub_token, new_repo_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repo, (_, folder) = new_repo_id(), base_folder(tmp_path / "base")
    hub.add_repo(repo, folder)
    words = ("prune", repo, "--method", "simple", "--drop-layers", "3", "--max-shard-size", "60KB", "--output", "out")
    command = [sys.executable, "-c", _KILLED, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("out").exists()
    _, *lines = Path("out.run/moved.json").read_text().splitlines()
    had = sum(size for line in lines for _, _, size in json.loads(line))
    hub.reset()
    done(*words)
    shards, kept = weight_files(Path("out")), checkpoint_entries(Path("out"))
    asked = sum(entry.size for entry in kept.values()) - had
    assert had and asked <= hub.sent(r"\.safetensors$") <= asked + FIRST + 64 and len(shards) > 1
    assert Finished.load(Path("out")).fetched == "ranges"
    assert {path.name for path in Path().iterdir()} == {"base", "out"}
    done("prune", folder, *words[2:-1], "whole")
    assert all(path.read_bytes() == (Path("whole") / path.name).read_bytes() for path in shards)


def test_cut_by_ranges_equals_the_cut_in_memory(hub, new_repo_id, tmp_path):
    repo = new_repo_id()
    model, base = base_folder(tmp_path / "base", hidden_size=64, intermediate_size=1024)
    model.save_pretrained(base, max_shard_size="1MB")
    (base / "model.safetensors").unlink()
    sha = hub.add_repo(repo, base)
    plan = Plan(reference(8), "uidl", "window", (Operation("drop", (2, 3, 4)),), "a test")
    hub.reset()
    origin = hub_pull.pull(repo, sha, weights=False)
    (tmp_path / "cut").mkdir()
    write_weights(hub_weights(repo, sha), origin, plan, tmp_path / "cut", max_shard_size="700KB")
    wanted = prune_layers(model, [2, 3, 4]).state_dict()
    found = {}
    for path in weight_files(tmp_path / "cut"):
        found |= load_file(path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    kept = sum(tensor.nbytes for tensor in wanted.values())
    shards = len(hub.asked("GET", r"resolve/.*\.safetensors$"))
    assert hub.sent(r"\.safetensors$") <= kept + shards * FIRST


# --- who may, and offline


def test_access(hub, new_repo_id, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    gated, private, files = new_repo_id(), new_repo_id(), {"model.safetensors": safetensors(layers(0, size=100))}
    closed = hub.add_repo(gated, files, gated=True)
    hidden = hub.add_repo(private, files, private=True)
    with pytest.raises(HubError, match=r"is gated.*ask for access"):
        hub_weights(gated, closed, BOB)
    with pytest.raises(HubError, match=r"no model.*hf auth login"):
        hub_weights(private, hidden)
    with pytest.raises(HubError, match="no revision"):
        hub_weights(private, "0" * 40, ALICE)
    weights = hub_weights(private, hidden, ALICE)
    assert list(weights.entries) == ["model.layers.0.weight"] and ALICE not in repr(weights)


def test_offline_says_what_to_do(hub, new_repo_id, monkeypatch):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, size=100))})
    hub.reset()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*unset it, or download the repo once"):
        hub_weights(repo, sha)
    assert not hub.requests


# --- moving


def test_dropping_a_third_downloads_what_is_kept(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(*range(12))
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    hub.reset()
    kept = [name for number, name in enumerate(tensors) if number not in (5, 6, 7, 8)]
    got = fetch(hub_weights(repo, sha), kept, tmp_path)
    assert got == b"".join(tensors[name] for name in kept)
    assert hub.sent(".") <= 1.01 * len(got)
    assert len(hub.asked("GET", r"resolve/.*\.safetensors$")) == 4  # header, its check, and what lies around the gap


def test_large_files_come_from_another_host_which_gets_no_token(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(*range(3))
    sha = hub.add_repo(repo, sharded(tensors), private=True)
    hub.reset()
    hub.redirect(r"\.safetensors$", times=99)
    weights = hub_weights(repo, sha, ALICE)
    assert fetch(weights, list(tensors), tmp_path) == b"".join(tensors.values())
    assert {request.user for request in hub.asked("GET", "/resolve/")} == {"alice"}
    assert {request.user for request in hub.asked("GET", "/storage/")} == {None}


def test_broken_connection_goes_on_where_it_broke(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(*range(4))
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights, told = hub_weights(repo, sha), []
    hub.reset()
    hub.truncate(r"\.safetensors$", after_bytes=2 * LAYER + 100_000)
    hub.fail("GET", r"\.safetensors$", 503)
    got = fetch(weights, list(tensors), tmp_path, told.append)
    assert got == b"".join(tensors.values()) and [span.at for span in told] == [0, LAYER, 2 * LAYER, 3 * LAYER]
    starts = [int(request.headers["range"][6:].split("-")[0]) for request in hub.asked("GET", r"\.safetensors$")]
    assert len(starts) == 3 and starts[0] == starts[1]
    assert 0 <= 2 * LAYER + 100_000 - (starts[2] - starts[0]) <= 1 << 17  # nothing that was written comes again


def test_connection_that_keeps_breaking_is_an_error_and_finished_spans_stay(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(*range(3))
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights, told = hub_weights(repo, sha), []
    hub.truncate(r"\.safetensors$", after_bytes=LAYER + 9)
    hub.truncate(r"\.safetensors$", after_bytes=0, times=9)
    with pytest.raises(HubError, match=r"fetch a part of 'model\.safetensors'.*cannot be reached"):
        fetch(weights, list(tensors), tmp_path, told.append)
    hub.reset()
    assert [span.at for span in told] == [0]
    spans, _ = wanted(weights, list(tensors))
    weights.mover.move([span for span in spans if span not in told], tmp_path, told.append)
    assert (tmp_path / "out").read_bytes() == b"".join(tensors.values())
    assert hub.sent(r"\.safetensors$") == 2 * LAYER


def test_many_requests_at_a_time_and_one_that_fails_stops_all(hub, new_repo_id, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_ranges, "SMALLEST_REQUEST", 1000)
    repo, tensors = new_repo_id(), layers(*range(64), size=5000)
    sha = hub.add_repo(repo, sharded(tensors))
    weights, threads = hub_weights(repo, sha), set()
    hub.reset()
    got = fetch(weights, list(tensors), tmp_path, lambda span: threads.add(threading.get_ident()))
    assert got == b"".join(tensors.values())
    assert len(hub.asked("GET", r"\.safetensors$")) == 64 / 4 and len(threads) > 1  # 2 for each worker
    hub.reset()
    hub.fail("GET", r"\.safetensors$", 403)
    with pytest.raises(HubError, match="403"):
        fetch(weights, list(tensors), tmp_path)
    assert len(hub.asked("GET", r"\.safetensors$")) <= 16


def test_errors_of_the_disk_and_of_the_caller_are_not_the_hubs(hub, new_repo_id, tmp_path, monkeypatch):
    repo, tensors = new_repo_id(), layers(0, 1)
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights = hub_weights(repo, sha)

    def full(*given: object) -> int:
        raise OSError(28, "No space left on device")

    def stop(span: Span) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left") as failed:
            fetch(weights, list(tensors), tmp_path)
    assert not isinstance(failed.value, HubError)
    with pytest.raises(KeyboardInterrupt):
        fetch(weights, list(tensors), tmp_path, stop)


def test_who_stops_does_not_wait_for_a_hub_that_fails(hub, new_repo_id, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_client, "WAITS", (0.3, 0.3, 0.3))
    repo, shards = new_repo_id(), (layers(0), layers(1))
    weights = hub_weights(repo, hub.add_repo(repo, sharded(*shards)))
    hub.reset()
    hub.fail("GET", "00002-of", 503, times=99)

    def stop(span: Span) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(weights, [*shards[0], *shards[1]], tmp_path, stop)
    assert len(hub.asked("GET", "00002-of")) < 3, "it is not asked as often as one who waits would ask"


def test_empty_tensors_and_no_spans_need_no_request(hub, new_repo_id, tmp_path):
    repo, told = new_repo_id(), []
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, size=100))})
    weights = hub_weights(repo, sha)
    hub.reset()
    (tmp_path / "out").touch()
    empty = Span("model.safetensors", weights.entries["model.layers.0.weight"].start, 0, "out", 0)
    weights.mover.move([empty], tmp_path, told.append)
    weights.mover.move([], tmp_path, told.append)
    assert told == [empty] and not hub.requests and weights.mover.read("model.safetensors", 0, 0) == b""


# --- servers that lie


def test_server_without_ranges_is_found_out_before_anything_large(hub, new_repo_id):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(*range(20)))})
    hub.reset()
    hub.ignore_range(r"\.safetensors$", times=99)
    with pytest.raises(RangeError, match=r"answered 200, not the part.*download whole files instead"):
        hub_weights(repo, sha)
    assert hub.sent(r"\.safetensors$") < 20 * LAYER


def test_small_file_may_come_whole_but_its_parts_may_not(hub, new_repo_id):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, size=100))})
    hub.ignore_range(r"\.safetensors$")
    assert list(hub_weights(repo, sha).entries) == ["model.layers.0.weight"]
    hub.ignore_range(r"\.safetensors$", times=2)
    with pytest.raises(RangeError, match="answered 200"):
        hub_weights(repo, sha)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda hub: hub.ignore_range(r"\.safetensors$"), "answered 200"),
        (lambda hub: hub.short_range(r"\.safetensors$"), r"answered 'bytes .*; asked for"),
        (lambda hub: hub.short_range(r"\.safetensors$", missing=-7), r"answered 'bytes .*; asked for"),
        (lambda hub: hub.wrong_range(r"\.safetensors$", by=5, honest=True), r"answered 'bytes .*; asked for"),
    ],
)
def test_other_part_than_asked_for_is_refused(hub, new_repo_id, tmp_path, lie, said):
    repo, tensors = new_repo_id(), layers(0, 1, 2)
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights, told = hub_weights(repo, sha), []
    lie(hub)
    with pytest.raises(RangeError, match=said):
        fetch(weights, list(tensors)[:2], tmp_path, told.append)
    assert not told


def test_server_that_counts_from_elsewhere_is_found_out_by_the_header(hub, new_repo_id):
    repo = new_repo_id()
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(layers(0, 1))})
    first = hub.asked("GET", r"\.safetensors$")
    assert not first
    hub_weights(repo, sha)
    hub.wrong_range(r"\.safetensors$", by=0)  # strikes the header, and leaves it as it is
    hub.wrong_range(r"\.safetensors$", by=5)
    with pytest.raises(RangeError, match="sends other bytes for a part than for the whole"):
        hub_weights(repo, sha)


def test_changed_content_is_refused(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(0, 1)
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights = hub_weights(repo, sha)
    hub.change_etag(r"\.safetensors$")
    with pytest.raises(HubError, match=r"not any more what it was.*Start again") as refused:
        fetch(weights, list(tensors), tmp_path)
    assert not isinstance(refused.value, RangeError)


def test_shard_that_vanished_is_named(hub, new_repo_id, tmp_path):
    repo, tensors = new_repo_id(), layers(0, 1)
    sha = hub.add_repo(repo, {"model.safetensors": safetensors(tensors)})
    weights = hub_weights(repo, sha)
    hub.fail("GET", r"\.safetensors$", 404, headers={"X-Error-Code": "EntryNotFound"})
    with pytest.raises(HubError, match=r"fetch a part of 'model\.safetensors' of .*404"):
        fetch(weights, list(tensors), tmp_path)


# --- runs


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 9)), max_size=30, unique=True),
    st.randoms(use_true_random=False),
)
def test_runs_hold_every_span_once_and_no_gap(drawn, shuffle):
    unit = 1 << 20
    spans = [Span(file, start * unit, size * unit, "out", number) for number, (file, start, size) in enumerate(drawn)]
    shuffle.shuffle(spans)
    found = runs(spans)
    assert sorted(span.at for run in found for span in run) == list(range(len(spans)))
    for run in found:
        assert len({span.file for span in run}) == 1
        assert all(a.start + a.size == b.start for a, b in zip(run, run[1:], strict=False))
        assert len(run) == 1 or sum(span.size for span in run) <= LARGEST_REQUEST


def test_runs_are_few_and_leave_work_for_all_threads():
    spans = [Span("a", n * LARGEST_SPAN, LARGEST_SPAN, "out", n * LARGEST_SPAN) for n in range(1000)]
    assert {len(run) for run in runs(spans)} == {LARGEST_REQUEST // LARGEST_SPAN}
    small = [Span("a", n * 2**20, 2**20, "out", n * 2**20) for n in range(4 * WORKERS)]
    assert {len(run) for run in runs(small)} == {SMALLEST_REQUEST // 2**20}
    assert len(runs([Span("a", n * 9, 9, "out", n * 9) for n in range(1000)])) == 1


# --- memory

_CHILD = """
import json, resource, sys, threading
from pathlib import Path
from hf_prune.hub_headers import hub_weights
from hf_prune.moving import LARGEST_SPAN, Span
repo, sha, folder = sys.argv[1:]
weights = hub_weights(repo, sha)
spans, at = [], 0
for entry in weights.entries.values():
    for start in range(0, entry.size, LARGEST_SPAN):
        size = min(LARGEST_SPAN, entry.size - start)
        spans.append(Span(entry.file, entry.start + start, size, "out", at + start))
    at += entry.size
with open(folder + "/out", "wb") as target:
    target.truncate(at)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
weights.mover.move(spans, Path(folder), lambda span: None)
print(json.dumps([peak() - before, at]))
"""


def sparse_repo(hub, repo: str, folder: Path, size: int) -> str:
    """A model of one tensor of zeros."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as sparse:
        sparse.write(len(header).to_bytes(8, "little") + header)
        sparse.truncate(8 + len(header) + size)
    return hub.add_repo(repo, {"model.safetensors": folder / "model.safetensors"})


def test_pieces_are_small(hub, new_repo_id, tmp_path):
    repo = new_repo_id()
    weights = hub_weights(repo, sparse_repo(hub, repo, tmp_path, 32 << 20))
    tracemalloc.start()
    try:
        spans, size = wanted(weights, ["a"])
        (tmp_path / "out").touch()
        os.truncate(tmp_path / "out", size)
        weights.mover.move(spans, tmp_path, lambda span: None)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(hub, new_repo_id, tmp_path):
    repo, size = new_repo_id(), 400 << 20
    sha = sparse_repo(hub, repo, tmp_path, size)
    command = [sys.executable, "-c", _CHILD, repo, sha, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    grown, moved = json.loads(done.stdout)
    assert moved == size and grown < 24 << 20, grown
