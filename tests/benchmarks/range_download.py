"""Pruning a model of the Hub by ranges: bytes sent over bytes kept, requests, and seconds beside a whole download.

A loopback Hub serves a checkpoint of 317 MB in four shards and counts what it sends. `hf-prune prune` drops a third of
the blocks, with an empty cache; then another process with an empty cache downloads the whole repo through
huggingface_hub. The floor is the bytes of the tensors that stay. On a loopback address nothing is slow, so that bytes
and requests are what counts, and seconds show only that many ranges cost no more than few files.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.models.llama import modeling_llama  # noqa: F401 (the child would import it while the clock runs)

from hf_prune import pruner  # noqa: F401 (likewise)
from hf_prune.cli.app import app
from tests.hub import LoopbackHub

from .checkpoints import SMALL, Shapes, checkpoint
from .costs import Cost, run_child
from .streamed_surgery import kept_bytes

_REPO = "bench/model"
_WEIGHTS = r"/resolve/.*\.safetensors(\?|$)"


def main(shapes: Shapes = SMALL, *, scratch: Path | None = None) -> dict[str, Any]:
    """Prune by ranges, then download all of it.

    Args:
        shapes: of the model.
        scratch: folder with room for four times the checkpoint.
    """
    first = shapes.layers // 2
    layers = list(range(first, first + shapes.layers // 3))
    with (
        checkpoint(shapes, scratch) as source,
        tempfile.TemporaryDirectory(prefix="hf-prune-bench-", dir=scratch) as work,
        LoopbackHub(Path(work) / "hub", {}) as hub,
    ):
        hub.add_repo(_REPO, source)
        kept = kept_bytes(source, layers)
        cut = _run(hub, Path(work), "prune", {"layers": layers, "output": str(Path(work) / "cut")})
        whole = _run(hub, Path(work), "download", {})
    return {
        "model": shapes.describe(),
        "blocks dropped": [layers[0], layers[-1]],
        "bytes kept": kept,
        "by ranges": cut,
        "whole": whole,
        "weights sent over kept": round(cut["bytes of weights"] / kept, 5),
        "all bytes sent over kept": round(cut["bytes"] / kept, 5),
        "weights sent over a whole download": round(cut["bytes of weights"] / whole["bytes of weights"], 4),
    }


def prune(layers: list[int], output: str) -> None:
    """What `hf-prune prune` does; run in a child process."""
    which = f"{layers[0]}-{layers[-1]}"
    app(["prune", _REPO, "--layers", which, "--output", output, "--quiet"], standalone_mode=False)


def download() -> None:
    """All files of the repo; run in a child process."""
    snapshot_download(_REPO)


def _run(hub: LoopbackHub, work: Path, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    home = work / "home"
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    hub.reset()
    cost: Cost = run_child(f"range_download:{function}", arguments, environment=environment)
    shutil.rmtree(home)
    return {
        "seconds": round(cost.seconds, 2),
        "bytes": hub.sent("."),
        "bytes of weights": hub.sent(_WEIGHTS),
        "requests": len(hub.requests),
        "requests for weights": len(hub.asked("GET", _WEIGHTS)),
        "memory above imports": cost.above_imports,
    }
