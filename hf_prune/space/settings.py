"""What the Space may use of the machine that it runs on, read once when it starts.

Everything has a default by hardware. Named arguments of `read` go first, then these environment variables:

    HF_PRUNE_SPACE_MEMORY_GB   all models in memory together
    HF_PRUNE_SPACE_MODEL_GB    the largest model that is opened
    HF_PRUNE_SPACE_DISK_GB     the Hub's cache; what was not used for longest is deleted above it
    HF_PRUNE_SPACE_FEATURED    pruned models that are offered first, Hub ids with commas between them
"""

import ipaddress
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_prune.errors import ConfigError
from hf_prune.memory import memory_limit
from hf_prune.space.ids import hub_id
from hf_prune.space.pair import DEMO

GB = 10**9

_SHARE = 0.6  # of the memory; the rest is for Python, torch, the cache of attention, and making a model
_GPU_SHARE = 0.7
_ZERO_MEMORY, _ZERO_MODEL = 40 * GB, 17 * GB  # what is in memory is moved to the GPU for each answer
_SPACE_DISK = 30 * GB  # Spaces have 50 GB, which the models that are made share


@dataclass(frozen=True)
class Settings:
    """What is allowed here.

    Attributes:
        on_space: whether this is a Space on the Hub.
        hardware: what it runs on, in words.
        memory_bytes: most bytes of weights in memory, of all models together.
        model_bytes: most bytes of one model's weights.
        disk_bytes: most bytes in the Hub's cache; None never deletes anything, as on a laptop, whose cache is the
            user's.
        prompt_chars: longest prompt.
        new_tokens: longest answer.
        queue_size: visitors that may wait.
        featured: pairs that are offered first.
        local_login: whether this machine's own login is the visitor's; never on a Space.
    """

    on_space: bool
    hardware: str
    memory_bytes: int
    model_bytes: int
    disk_bytes: int | None = None
    prompt_chars: int = 8000
    new_tokens: int = 512
    queue_size: int = 20
    featured: tuple[str, ...] = (DEMO,)
    local_login: bool = False

    def __post_init__(self) -> None:
        if self.on_space and self.local_login:
            raise ConfigError("local_login=True on a Space; expected False: the Space's login is not its visitors'")

    def check_size(self, name: str, size: int, form: str = "") -> None:
        """Refuse a model that is too large for this machine.

        Args:
            name: what it is called.
            size: bytes of its weights once loaded.
            form: of what kind the weights are then, such as "in bfloat16".

        Raises:
            ConfigError: names size, limit and hardware.
        """
        if size > self.model_bytes:
            raise ConfigError(
                f"'{name}' takes {size / GB:.2f} GB once loaded{form and f' ({form})'}; at most "
                f"{self.model_bytes / GB:.2f} GB can be opened here, on {self.hardware}, as a pruned model and its "
                "original are in memory together. Pick a smaller model, or run the page on a larger machine: "
                "hf-prune space"
            )


def read(
    environ: Mapping[str, str], *, host: str | None = None, shared: bool | None = None, **changes: Any
) -> Settings:
    """The settings of this machine.

    Args:
        environ: environment variables.
        host: address that the page is served on; `GRADIO_SERVER_NAME`, else this machine alone, when None.
        shared: whether the page gets a public link; `GRADIO_SHARE` when None.
        changes: fields of `Settings` that are given.

    Raises:
        ConfigError: a variable holds no amount, or no Hub id.
    """
    host = environ.get("GRADIO_SERVER_NAME", "127.0.0.1") if host is None else host
    shared = asks_to_share(environ) if shared is None else shared
    on_space = bool(environ.get("SPACE_ID"))
    hardware, memory, model = _hardware(environ, on_space)
    given_memory = _amount(environ, "HF_PRUNE_SPACE_MEMORY_GB")
    memory, model = (given_memory, given_memory // 2) if given_memory is not None else (memory, model)
    model = _amount(environ, "HF_PRUNE_SPACE_MODEL_GB") or model
    disk = _amount(environ, "HF_PRUNE_SPACE_DISK_GB")
    named = [text.strip() for text in environ.get("HF_PRUNE_SPACE_FEATURED", "").split(",") if text.strip()]
    found = Settings(
        on_space=on_space,
        hardware=hardware,
        memory_bytes=memory,
        model_bytes=model,
        disk_bytes=disk or (_SPACE_DISK if on_space else None),
        featured=(DEMO, *dict.fromkeys(hub_id(name) for name in named if name != DEMO)),
        local_login=not on_space and not shared and is_loopback(host),
    )
    return replace(found, **changes)


def asks_to_share(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for a public link."""
    return environ.get("GRADIO_SHARE", "").lower() in ("1", "true")


def device() -> str:
    """Where models are to live: the GPU, where there is one (also one that a Space only has for some seconds)."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_lock = threading.Lock()
_current: Settings | None = None


def current() -> Settings:
    """The settings in force; those of this machine, as nobody else's, where none were set."""
    global _current
    with _lock:
        if _current is None:
            import os

            _current = replace(read(os.environ), local_login=False)
        return _current


def use(settings: Settings | None) -> None:
    """Put settings in force for the whole process; None takes them back."""
    global _current
    with _lock:
        _current = settings


def _hardware(environ: Mapping[str, str], on_space: bool) -> tuple[str, int, int]:
    """What this runs on in words, and the bytes for all models and for one."""
    memory = memory_limit()
    ours = int(_SHARE * memory)
    where = "this Space" if on_space else "this machine"
    if environ.get("SPACES_ZERO_GPU"):
        ours = min(ours, _ZERO_MEMORY)
        return f"{where} (ZeroGPU)", ours, min(ours // 2, _ZERO_MODEL)
    if device() == "cuda":
        import torch

        size = torch.cuda.get_device_properties(0).total_memory
        ours = int(_GPU_SHARE * size)
        return f"{where} (a GPU with {size / GB:.0f} GB)", ours, ours // 2
    return f"{where} (no GPU, {memory / GB:.0f} GB of memory)", ours, ours // 2


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, as it names itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _amount(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < 1e6:
        given = " (also set by --memory)" if name.endswith("_MEMORY_GB") else ""
        raise ConfigError(f"{name}={text[:40]!r}{given}; expected gigabytes, such as 8 or 0.5")
    return int(amount * GB)
