"""Working state of one run, so that the same command goes on after a kill."""

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_prune import serial
from hf_prune.errors import OutputError
from hf_prune.records import TextUse
from hf_prune.samples import Samples
from hf_prune.saving import no_room

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_OURS = ".hf-prune-run"
"""Empty file in every run folder: without it a folder is somebody else's, and is left alone."""


class RunFolder:
    """A folder of finished stages, each valid only for the inputs that it was made from.

    A stage is finished when `STAGE.inputs` holds the digest of its inputs; that file is written last.

    Attributes:
        lasting: whether the folder stays when this object goes.

    Args:
        path: the folder, made when the first file goes into it; None makes a temporary one that goes with this object.

    Raises:
        OutputError: something of that name is there that no run has left.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="hf-prune-") if path is None else path)
        if path is None:
            weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        self.lasting = path is not None
        _check_ours(self._path)

    @property
    def path(self) -> Path:
        """The folder, made now if it is not there."""
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / _OURS).touch()
        return self._path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from filling the same output: each would take the other's files for its own.

        Raises:
            OutputError: another one does so now.
        """
        with (self.path / _OURS).open("r+b") as mark:
            if fcntl is not None:
                try:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OutputError(
                        f"'{self._path}' is in use: another process writes the same output. Wait until it is done, or "
                        "choose another output"
                    ) from error
            yield

    def has(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether the stage was finished with these very inputs."""
        mark = self._path / f"{stage}.inputs"
        return mark.is_file() and mark.read_text(encoding="utf-8").strip() == digest(inputs)

    def begin(self, stage: str) -> None:
        """Call it before files of a stage are written: those of other inputs, half overwritten, are worth nothing."""
        (self.path / f"{stage}.inputs").unlink(missing_ok=True)

    def finish(self, stage: str, inputs: dict[str, Any]) -> None:
        """Mark a stage as finished; call it once its files are there."""
        serial.write_text(self.path / f"{stage}.inputs", digest(inputs) + "\n")

    def save_samples(self, stage: str, samples: Samples, inputs: dict[str, Any]) -> None:
        """Keep the token ids of a text."""
        self.begin(f"{stage}-text")
        samples.save(self.tokens(stage))
        serial.write_text(self.path / f"{stage}_text.json", serial.dumps(samples.use))
        self.finish(f"{stage}-text", inputs)

    def load_samples(self, stage: str, inputs: dict[str, Any]) -> Samples | None:
        """The token ids of a text that was kept for these very inputs."""
        if not self.has(f"{stage}-text", inputs):
            return None
        use = serial.from_dict(TextUse, serial.read_json(self.path / f"{stage}_text.json"))
        return Samples.load(self.tokens(stage), use)

    def tokens(self, stage: str) -> Path:
        """The file that keeps the token ids of a text."""
        return self.path / f"{stage}_tokens.safetensors"


def beside(output: Path) -> Path:
    """Where the working state of a run lies until its output is complete: `OUTPUT.run`.

    Raises:
        OutputError: something of that name is there that no run has left.
    """
    target = Path(os.path.abspath(output))
    path = target.parent / f"{target.name}.run"
    _check_ours(path)
    return path


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Say it in one sentence where the disk of a run folder is full.

    Raises:
        OutputError: it is; what was finished stays there.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = no_room(error)
        if reason is None:
            raise
        raise OutputError(
            f"{reason} '{path}' ({shutil.disk_usage(path.parent).free / 1e6:.0f} MB free); what was finished is kept. "
            "Free some space, and run the same command again"
        ) from error


def remove(path: Path) -> None:
    """Delete a run folder, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def digest(inputs: dict[str, Any]) -> str:
    """The sha256 of everything that a stage depends on."""
    return hashlib.sha256(json.dumps(serial.to_dict(inputs), sort_keys=True).encode()).hexdigest()


def _check_ours(path: Path) -> None:
    if path.exists() and not (path.is_dir() and ((path / _OURS).is_file() or not any(path.iterdir()))):
        raise OutputError(
            f"'{path}', where working state would be kept, is a file or holds something else; expected a new or empty "
            "folder, or one that an interrupted run has left. Move it, or choose another output"
        )
