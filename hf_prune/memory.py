"""Main memory that this process may take, which in a container is less than what the machine has."""

import gc
from pathlib import Path

import psutil

_UNLIMITED = 1 << 50  # cgroups write large numbers, or "max", where there is no limit


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may take: the machine's, or less where its container has a limit.

    Args:
        root: where `proc` and `sys` lie.
    """
    limits = [psutil.virtual_memory().total]
    groups = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "0::/\n1:memory:/").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds not in ("", "memory"):  # version 2, and version 1
            continue
        top, name = (groups, "memory.max") if kinds == "" else (groups / "memory", "memory.limit_in_bytes")
        own = Path(path.lstrip("/"))
        # A limit of any group above this one holds too. In a container the own path may not be there, its top is.
        for group in (own, *own.parents):
            text = _text(top / group / name).strip()
            if text.isdigit() and 0 < int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits)


def free_memory() -> int:
    """Bytes of memory that this process may still take: what is free, or less where its container has a limit."""
    left = memory_limit() - psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, left))


def give_back() -> None:
    """Give back the memory, of GPUs too, of what nobody refers to any more."""
    import torch  # here, because the limits above are asked for without it

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
