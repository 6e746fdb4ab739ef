"""A model that lies in files, with or without an adapter beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_prune import extras, loading
from hf_prune.checkpoint import weight_files
from hf_prune.healing.adapter import WEIGHTS
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.loading import Source


@dataclass(frozen=True)
class Stored:
    """A model that can be loaded as often as it is needed.

    Attributes:
        source: folder of its weights.
        adapter: folder of the adapter that belongs on them, if one does.
        kwargs: of `loading.load_model`.
    """

    source: Source
    adapter: Path | None
    kwargs: dict[str, Any]

    def load(self) -> PreTrainedModel | Any:
        """Load it.

        Raises:
            CheckpointError: weights are missing or of another shape.
            MissingExtraError: there is an adapter, and peft is not installed.
        """
        model = loading.load_model(self.source, **self.kwargs)
        if self.adapter is None:
            return model
        extras.require("peft", "heal", f"loading the adapter '{self.adapter.name}'")
        from peft import PeftModel

        with quiet_peft():
            return PeftModel.from_pretrained(model, str(self.adapter)).eval()

    def files(self) -> tuple[Path, ...]:
        """What `load` reads: the weights, and those of the adapter."""
        assert self.source.folder is not None
        adapter = () if self.adapter is None else (self.adapter / WEIGHTS,)
        return (*weight_files(self.source.folder), *adapter)
