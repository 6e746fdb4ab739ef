"""Working state of one run, so that the same command goes on after a kill."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.records import TextUse
from hf_prune.samples import Samples


class RunFolder:
    """A folder of finished stages, each valid only for the inputs that it was made from.

    A stage is finished when `STAGE.inputs` holds the digest of its inputs; that file is written last.

    Args:
        path: the folder; None makes a temporary one that goes with this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="hf-prune-") if path is None else None
        self.path = Path(self._temporary.name) if self._temporary is not None else Path(path or "")
        self.path.mkdir(parents=True, exist_ok=True)

    def has(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether the stage was finished with these very inputs."""
        mark = self.path / f"{stage}.inputs"
        return mark.is_file() and mark.read_text(encoding="utf-8").strip() == digest(inputs)

    def finish(self, stage: str, inputs: dict[str, Any]) -> None:
        """Mark a stage as finished; call it once its files are there."""
        serial.write_text(self.path / f"{stage}.inputs", digest(inputs) + "\n")

    def save_samples(self, stage: str, samples: Samples, inputs: dict[str, Any]) -> None:
        """Keep the token ids of a text."""
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


def digest(inputs: dict[str, Any]) -> str:
    """The sha256 of everything that a stage depends on."""
    return hashlib.sha256(json.dumps(serial.to_dict(inputs), sort_keys=True).encode()).hexdigest()
