"""The reload contract: a saved model is loaded again by stock transformers, in another process, and compared.

Run as a program (`python -m hf_prune.reload FOLDER PROBE`) it is that other process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import per_layer_settings, ships_code
from hf_prune.architecture.decoder import decoder_of, first_device, parameter_bytes
from hf_prune.checkpoint import weight_files
from hf_prune.errors import OutputError, ReloadError
from hf_prune.names import home, original_name
from hf_prune.probe import probe
from hf_prune.records import Plan

Level = Literal["full", "streamed"]

_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|KEY)(?:_PATH)?$", re.IGNORECASE)

_UNREGISTERED = """
import runpy, hf_prune.registration
hf_prune.registration.remove()
runpy.run_module("hf_prune.reload", run_name="__main__", alter_sys=True)
"""


def reload_level(model: PreTrainedModel) -> Level:
    """ "full" where a second copy of the model fits, "streamed" where it does not or where it spans devices."""
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "streamed"
    needed = 1.3 * parameter_bytes(model) + 5e8
    device = first_device(model)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return "full" if needed < free else "streamed"


def check_reload(
    model: PreTrainedModel,
    folder: Path,
    *,
    source: Path | None = None,
    keep: Sequence[int] = (),
    level: Level | None = None,
    trust_remote_code: bool = False,
) -> Level:
    """Hold a saved folder against the model that was saved.

    Level "full" loads it with plain `AutoModelForCausalLM` in a child process and compares logits and cached greedy
    tokens, equal to the bit; a model that ships its code (sliced, patched) by the code that lies in the folder,
    without this package's. Level "streamed" checks names and shapes against the stock class on the meta device, the
    settings of each layer against the model's, and every tensor byte for byte against the base checkpoint (`source`),
    or against the model where none is given.

    Args:
        model: the model in memory, as it was saved.
        folder: where it was saved.
        source: base checkpoint whose kept tensors must be found unchanged (level "streamed").
        keep: base indices of the kept blocks (level "streamed").
        level: chosen by memory when None.
        trust_remote_code: whether code in the folder may run.

    Returns:
        The level that was checked.

    Raises:
        ReloadError: what was saved does not load back as what is in memory.
        OutputError: the check was killed, most likely as memory ran out.
    """
    level = level or reload_level(model)
    shipped = ships_code(model.config.model_type)
    if level == "streamed":
        _check_config(model, load_meta(folder, trust_remote_code or shipped), folder)
        _check_bytes(model, folder, source, keep)
        return level
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "probe.safetensors"
        save_file(probe(model), wanted)
        settings = {
            "device": str(first_device(model)),
            "attn_implementation": model.config._attn_implementation,
            "threads": torch.get_num_threads(),
            "trust_remote_code": trust_remote_code or shipped,
        }
        # Code that is shipped is what somebody runs who has not this package: nothing is registered then.
        start = ["-c", _UNREGISTERED] if shipped else ["-m", "hf_prune.reload"]
        command = [sys.executable, *start, str(folder), str(wanted), json.dumps(settings)]
        environment = _environment()
        if shipped:
            environment["HF_MODULES_CACHE"] = str(Path(scratch) / "modules")
        _ask(command, environment, folder)
    return level


def check_streamed(
    folder: Path,
    *,
    source: Path | None,
    plan: Plan,
    origin: Path | None = None,
    level: Level = "streamed",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> Level:
    """Hold a folder that was written without a model in memory against the base and the plan, in a child process.

    Level "streamed" checks names, shapes and dtypes against the stock class on the meta device, the settings of each
    layer against the base's, every tensor byte for byte against the base and the plan, and sends a probe through the
    blocks, one in memory at a time: what leaves the last one is finite, and equal to the bit to what leaves the base's
    where the removed blocks are passed by. Level "full" compares every tensor likewise, cuts the base in memory and
    loads the folder with plain `AutoModelForCausalLM`, each in a child process, and compares logits and cached greedy
    tokens.

    Args:
        folder: where it was saved.
        source: base checkpoint with its weights; None where they are not on this machine.
        plan: what was done.
        origin: folder of the base's config; `source` when None.
        level: "full" needs `source`, and the memory for the base.
        dtype: of the weights, as they were written.
        trust_remote_code: whether code in the folders may run.

    Returns:
        The level that was checked.

    Raises:
        ReloadError: what was saved does not load back as the cut base.
        OutputError: the check was killed, most likely as memory ran out.
    """
    origin = origin or source
    settings = {
        "folder": str(folder),
        "source": None if source is None else str(source),
        "origin": None if origin is None else str(origin),
        "plan": serial.to_dict(plan),
        "dtype": str(dtype).removeprefix("torch."),
        "trust_remote_code": trust_remote_code,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "hf_prune.reload_streamed"]
    if level == "streamed":
        _ask([*command, json.dumps(settings)], _environment(), folder)
        return level
    if source is None:
        raise ReloadError(f"'{folder}' cannot be checked at level 'full': the base's weights are not on this machine")
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "probe.safetensors"
        _ask([*command, json.dumps(settings | {"probe": str(wanted)})], _environment(), folder)
        loading = settings | {"device": "cpu", "attn_implementation": None}
        _ask(
            [sys.executable, "-m", "hf_prune.reload", str(folder), str(wanted), json.dumps(loading)],
            _environment(),
            folder,
        )
    return level


def _ask(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Run a child that lists what is wrong with a folder, and raise it."""
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if child.returncode < 0:
        raise OutputError(
            f"'{folder}' could not be checked: the process that loads it back was killed (signal "
            f"{-child.returncode}). The output was not kept. Free some memory, and run the same command again"
        )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        raise ReloadError(
            f"'{folder}' does not load back with stock transformers: {lines[-1][:500]}. The output was not kept; "
            "please report this with the model's config.json"
        )
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    if answer["problems"]:
        raise ReloadError(
            f"'{folder}' loads back as another model: {'; '.join(answer['problems'])}. The output was not kept; "
            "please report this with the model's config.json"
        )


def _environment() -> dict[str, str]:
    """What the child is given: it loads local files, some with code of their own, and needs no secret for that."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def _compare(folder: str, wanted_path: str, settings: dict[str, Any]) -> list[str]:
    """In the child: load, run the probe, and list what differs."""
    torch.set_num_threads(settings["threads"])
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed
        use_safetensors=True,
        attn_implementation=settings["attn_implementation"],
        trust_remote_code=settings["trust_remote_code"],
        device_map=settings["device"] if settings["device"] != "cpu" else None,
    )
    model, info = loaded
    problems = [
        f"{kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[:3]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[kind]
    ]
    wanted, found = load_file(wanted_path), probe(model)
    if wanted["logits"].dtype != found["logits"].dtype:
        problems.append(f"dtype {found['logits'].dtype}, expected {wanted['logits'].dtype}")
    elif not torch.equal(wanted["logits"].nan_to_num(), found["logits"].nan_to_num()):
        problems.append(f"logits differ by up to {(wanted['logits'] - found['logits']).abs().max().item():.3g}")
    if not torch.equal(wanted["greedy"], found["greedy"]):
        problems.append("cached greedy tokens differ")
    return problems


def load_meta(folder: Path, trust_remote_code: bool) -> PreTrainedModel:
    """The stock model without its weights, into which all weights of the folder fit.

    Args:
        folder: of the checkpoint.
        trust_remote_code: whether code in the folder may run.

    Raises:
        ReloadError: transformers refuses it, or weights are missing, unexpected or of another shape.
    """
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # there is nothing that a stranger's config or header cannot make transformers raise
        raise ReloadError(
            f"'{folder}' does not load back with stock transformers: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    loaded, info = answer
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ReloadError(f"'{folder}': {kind.replace('_', ' ')} {sorted(map(str, info[kind]))[:3]} for its class")
    return loaded


def _check_config(model: PreTrainedModel, loaded: PreTrainedModel, folder: Path) -> None:
    """What the file says of the layers, and of the dtype, is what the model in memory does."""
    wanted = {"dtype": str(model.dtype), **per_layer_settings(model.config.get_text_config(decoder=True))}
    found = {"dtype": str(loaded.dtype), **per_layer_settings(loaded.config.get_text_config(decoder=True))}
    for key in wanted.keys() | found.keys():
        if wanted.get(key) != found.get(key):
            raise ReloadError(
                f"'{folder}' loads back as another model: config key '{key}' is {found.get(key)}, expected "
                f"{wanted.get(key)}"
            )


def _check_bytes(model: PreTrainedModel, folder: Path, source: Path | None, keep: Sequence[int]) -> None:
    """Every saved tensor equals the one that it came from, one tensor in memory at a time."""
    homes = {} if source is None else {name: path for path in weight_files(source) for name in _names(path)}
    memory = model.state_dict()
    leaf = decoder_of(model).blocks_path.rpartition(".")[2]
    for path in weight_files(folder):
        with safe_open(path, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                tensor, live = saved.get_tensor(name), memory.get(name)
                dtype = live.dtype if live is not None else model.dtype if tensor.is_floating_point() else tensor.dtype
                if tensor.dtype != dtype:
                    raise ReloadError(
                        f"'{folder}': tensor '{name}' is {_plain(tensor.dtype)}, expected {_plain(dtype)}"
                    )
                if source is not None:
                    original = home(original_name(name, leaf, keep), homes, model.base_model_prefix)
                    if original is None:
                        raise ReloadError(f"'{folder}': tensor '{name}' has no counterpart in '{source}'")
                    with safe_open(homes[original], "pt") as base:
                        wanted = base.get_tensor(original).to(dtype)  # cast where loading cast it
                    origin = f"'{original}' in '{source}'"
                elif live is not None and not live.is_meta:
                    wanted, origin = live.cpu(), "the model in memory"
                else:
                    continue  # stored under another name or in other pieces than in memory, or offloaded
                if not _same_bytes(tensor, wanted):
                    raise ReloadError(f"'{folder}': tensor '{name}' differs from {origin}")


def _same_bytes(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.shape != two.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, two)))


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"problems": _compare(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))}) + "\n")
