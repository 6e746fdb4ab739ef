"""Memory that a process may take, in containers too."""

from pathlib import Path

import psutil
import pytest

from hf_prune import memory, streaming
from hf_prune.activation_store import ActivationStore
from hf_prune.memory import free_memory, memory_limit

GROUP = "0::/user.slice/app.scope\n"
OLD_GROUP = "9:name=systemd:/\n4:memory:/app/one\n3:cpuset:/\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (GROUP, {}, None),
        (GROUP, {"memory.max": "max"}, None),
        (GROUP, {"memory.max": "2000"}, 2000),  # in a container, whose own group is the top
        (
            GROUP,
            {"memory.max": "max", "user.slice/memory.max": "3000", "user.slice/app.scope/memory.max": "max"},
            3000,
        ),
        (GROUP, {"user.slice/memory.max": "3000", "user.slice/app.scope/memory.max": "1000"}, 1000),
        (OLD_GROUP, {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (OLD_GROUP, {"memory/memory.limit_in_bytes": "5000"}, 5000),
        (OLD_GROUP, {"memory/app/one/memory.limit_in_bytes": "4000"}, 4000),
        (OLD_GROUP, {"cpuset/memory.limit_in_bytes": "4000"}, None),
        ("", {"memory.max": "7000"}, 7000),  # no /proc/self/cgroup
        (GROUP, {"memory.max": "rubbish"}, None),
    ],
)
def test_memory_of_a_container(tmp_path: Path, groups: str, files: dict[str, str], limit: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    if groups:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert memory_limit(tmp_path) == (limit or psutil.virtual_memory().total)


def test_what_is_free_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().available
    monkeypatch.setattr(memory, "memory_limit", lambda: 10)
    assert free_memory() == 0, "the process itself takes more"
    assert ActivationStore().budget == 0
    assert not streaming.has_room(10, None, "cpu"), "though the machine has room"
