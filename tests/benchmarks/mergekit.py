"""mergekit's passthrough merge, from the package index in an environment of its own: the peer that copies layers."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from .costs import cold, sync, weights_of

VERSION = "0.1.5"

# Imports apart, as for our own children (`costs`): what follows them is counted.
_SCRIPT = """
import importlib.metadata, json, pathlib, sys
from mergekit.scripts.run_yaml import main

def resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

imports = resident("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
main(sys.argv[1:], standalone_mode=False)
names = ("mergekit", "torch", "transformers", "safetensors")
versions = {name: importlib.metadata.version(name) for name in names}
print()
print(json.dumps({"imports": imports, "peak": resident("VmHWM"), "versions": versions}))
"""


def install(folder: Path) -> Path:
    """Make an environment with mergekit and the same torch as here; returns the folder. Minutes, and a network."""
    if not (folder / "bin" / "mergekit-yaml").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        same = f"torch=={torch.__version__.partition('+')[0]}"
        for wanted in (same, f"mergekit=={VERSION}"):
            subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    return folder


def main(
    environment: Path, source: Path, scratch: Path, layers: Sequence[int], reference: Path | None = None
) -> dict[str, Any]:
    """Cut blocks with mergekit, from a cold page cache to files on the disk.

    Args:
        environment: what `install` made.
        source: the checkpoint.
        scratch: folder with room for the result, which goes again.
        layers: ascending neighbours that go.
        reference: the same cut, which the result is held against.
    """
    output, recipe = scratch / "mergekit", scratch / "mergekit.yaml"
    depth = _depth(source)
    runs = [(0, layers[0]), (layers[-1] + 1, depth)]
    slices = [{"sources": [{"model": str(source), "layer_range": [start, end]}]} for start, end in runs if start < end]
    recipe.write_text(yaml.safe_dump({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}))
    command = [str(environment / "bin" / "python"), "-c", _SCRIPT, str(recipe), str(output)]
    cold(weights_of(source))
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"mergekit ended with {done.returncode}: {done.stderr[-3000:]}")
    merged = time.perf_counter()
    sync(weights_of(output))
    seconds, waited = time.perf_counter() - started, time.perf_counter() - merged
    if reference is not None:
        check_equal(output, reference)
    shutil.rmtree(output)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": round(seconds, 2),
        "of it waiting for the disk (fsync)": round(waited, 2),
        "peak resident": found["peak"],
        "memory above imports": found["peak"] - found["imports"],
        "versions": found["versions"],
    }


def check_equal(first: Path, second: Path) -> None:
    """Hold two checkpoints against each other: all names and shapes, and the numbers of every 16th tensor.

    Raises:
        ValueError: they differ.
    """
    one, two = _where(first), _where(second)
    if one.keys() != two.keys():
        raise ValueError(f"{first.name} and {second.name} hold other tensors: {sorted(one.keys() ^ two.keys())[:3]}")
    for number, name in enumerate(sorted(one)):
        with safe_open(one[name], framework="pt") as left, safe_open(two[name], framework="pt") as right:
            shapes = [file.get_slice(name).get_shape() for file in (left, right)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"'{name}' has shapes {shapes[0]} and {shapes[1]}")
            if number % 16 == 0 and not torch.equal(left.get_tensor(name), right.get_tensor(name)):
                raise ValueError(f"'{name}' differs between {first.name} and {second.name}")


def _where(folder: Path) -> dict[str, Path]:
    found = {}
    for path in weights_of(folder):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _depth(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["num_hidden_layers"]
