"""The working state of a healing run: kept where the inputs are the same, thrown away where they are not."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.healing.budget import Throughput

log = logging.getLogger(__name__)

CHECKPOINTS, ADAPTER, LOGS, PREFIX = "checkpoints", "adapter", "logs", "prefix"

TEACHER = "teacher"
"""What the original makes of texts: told apart by keys of its own, and kept where other inputs change."""

_STATE = "inputs.json"


def open_work(
    work: Path, config: HealingConfig, facts: Mapping[str, str], *, resume: bool, measure: Callable[[], Throughput]
) -> Throughput:
    """Keep the working state of the same inputs; throw away any other, saying what has changed.

    Args:
        work: folder of the run.
        config: resolved.
        facts: what else decides the result: what it is, for people -> a value or a digest.
        resume: whether state of the same inputs is kept at all.
        measure: says how fast this machine is; asked once per run, as the answer decides how is computed.

    Returns:
        How fast this machine was found.
    """
    path = work / _STATE
    inputs = {"settings": serial.to_dict(config), "facts": dict(facts)}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if path.is_file():
        state = serial.read_json(path)
        if resume and state["digest"] == digest:
            return serial.from_dict(Throughput, state["throughput"])
        if resume:
            log.warning("throwing away the healing state of other inputs (%s)", "; ".join(changes(state, inputs)))
        else:
            log.warning("throwing away the healing state of an earlier run")
    for name in (CHECKPOINTS, ADAPTER, LOGS, PREFIX):
        if (work / name).exists():
            shutil.rmtree(work / name)
    speed = measure()
    serial.write_text(path, serial.dumps({"digest": digest, **inputs, "throughput": serial.to_dict(speed)}))
    return speed


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs: "steps: 100 -> 200", "another healing text".

    Args:
        before: inputs of the run whose state there is; of an older version of this package where they are not told.
        now: inputs of this run.
    """
    if "settings" not in before or "facts" not in before:
        return ["of an earlier version"]
    old, new = before["settings"], json.loads(json.dumps(now["settings"]))
    names = [*new, *(name for name in old if name not in new)]
    found = [f"{n}: {_shown(old.get(n))} -> {_shown(new.get(n))}" for n in names if old.get(n) != new.get(n)]
    return found + [f"another {what}" for what, value in now["facts"].items() if before["facts"].get(what) != value]


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
