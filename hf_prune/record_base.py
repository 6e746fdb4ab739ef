"""What all records share: JSON both ways, and the facts that several of them name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_prune import serial
from hf_prune.errors import ConfigError


class Record:
    """JSON both ways, with a schema version; subclasses are frozen dataclasses."""

    FILE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types, with its schema version."""
        return {"schema": self.SCHEMA, **serial.to_dict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build the record from JSON types.

        Raises:
            ConfigError: the schema version is not this one, or keys or types do not fit.
        """
        if not isinstance(data, dict) or data.get("schema") != cls.SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"{cls.__name__} has schema {found!r}; this version of hf_prune reads {cls.SCHEMA}")
        return serial.from_dict(cls, {k: v for k, v in data.items() if k != "schema"})

    def save(self, folder: Path) -> Path:
        """Write the record under its own file name into `folder`; the file appears whole or not at all."""
        path = Path(folder) / self.FILE
        serial.write_text(path, serial.dumps(self.to_dict()))
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the record from a file, or from the folder that holds it.

        Raises:
            ConfigError: missing, no JSON, or not this record.
        """
        path = Path(path)
        return cls.from_dict(serial.read_json(path / cls.FILE if path.is_dir() else path))


@dataclass(frozen=True)
class ModelRef:
    """Which model a record speaks of.

    Attributes:
        id: Hub id, or the bare folder name of a local model (never a path).
        revision: Hub commit, or None for a local model.
        model_type: `config.model_type` of the decoder.
        num_layers: decoder blocks before pruning.
        digest: sha256 that stands for the weights (Hub commit, header hashes of a local checkpoint, or
            names, shapes and first values of tensors in memory).
    """

    id: str
    revision: str | None
    model_type: str
    num_layers: int
    digest: str = ""


@dataclass(frozen=True)
class Environment:
    """Where a figure was measured.

    Attributes:
        hardware: processor or GPU, in words.
        versions: package name to version.
        dtype: of the weights while measuring.
        device: "cpu", "cuda", ...
    """

    hardware: str
    versions: dict[str, str]
    dtype: str
    device: str


@dataclass(frozen=True)
class TextUse:
    """Which text was used.

    Attributes:
        dataset: Hub id or bare file name; None means text sampled from the original model itself.
        config: dataset config name.
        split: dataset split.
        revision: Hub commit of the dataset, where there is one.
        samples: sequences used.
        tokens: tokens in them (pads not counted).
        max_length: longest sequence allowed, in tokens.
        seed: of sampling or shuffling.
        sha256: of the token ids (and of what of them is learned, where that is not all), so that another run can tell
            it saw the same text.
        answers: whose answers alone are learned: the "dataset"'s own, or those that the "original" model gave to its
            prompts; None where everything is.
    """

    dataset: str | None
    config: str | None
    split: str | None
    revision: str | None
    samples: int
    tokens: int
    max_length: int
    seed: int
    sha256: str
    answers: Literal["dataset", "original"] | None = None
