"""LoRA adapters: put on a model, taken off as tensors, saved without asking the Hub."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.merge import merge_adapter
from hf_prune.healing.targets import Targets, find_targets
from hf_prune.healing.trained import State
from hf_prune.units import Unit

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def scaling(config: HealingConfig) -> float:
    """alpha / rank."""
    assert config.alpha and config.rank
    return config.alpha / config.rank


def add_adapter(model: PreTrainedModel, config: HealingConfig, targets: Targets) -> "PeftModel":
    """Put fresh adapters on a model: A random, B zero, so that nothing changes yet; all other weights are frozen.

    Args:
        model: plain or 4-bit model, changed in place.
        config: resolved.
        targets: found in this very model (4-bit copies keep Conv1D weights the other way round).
    """
    from peft import LoraConfig, get_peft_model

    assert config.alpha and config.rank and config.dropout is not None
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets.pattern,
        fan_in_fan_out=targets.transposed,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        return get_peft_model(model, lora)


@dataclass(frozen=True)
class Adapters:
    """LoRA beside linear maps of the blocks; see `Trainable`."""

    kind: ClassVar[Literal["adapters"]] = "adapters"

    where: Literal["mlp", "all"]
    silent: tuple[Unit, ...]
    names: tuple[str, ...]
    lowest: int
    warning: str | None = None
    keep_whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, decoder: Decoder, where: Literal["mlp", "all"], silent: Collection[Unit] = ()) -> "Adapters":
        """Adapters on the maps that `find_targets` finds.

        Args:
            decoder: the pruned model.
            where: see `find_targets`.
            silent: see `find_targets`.

        Raises:
            ArchitectureError: the blocks hold no linear map that could carry an adapter.
        """
        found = find_targets(decoder, where, silent)
        carrying = [name for name, _ in decoder.model.named_modules() if re.fullmatch(found.pattern, name)]
        lowest = min(int(name.removeprefix(f"{decoder.blocks_path}.").partition(".")[0]) for name in carrying)
        return cls(where, tuple(silent), found.names, lowest, found.warning)

    def begin(self, model: PreTrainedModel, config: HealingConfig) -> "PeftModel":
        """See `Trainable.begin`."""
        # Found in this very model: 4-bit copies keep Conv1D weights the other way round.
        return add_adapter(model, config, find_targets(decoder_of(model), self.where, self.silent))

    def state(self, trainee: Any) -> State:
        """See `Trainable.state`; the names are those that PEFT saves."""
        return adapter_state(trainee)

    def restore(self, trainee: Any, state: State) -> None:
        """See `Trainable.restore`."""
        from peft import set_peft_model_state_dict

        result: Any = set_peft_model_state_dict(trainee, state)
        assert not result.unexpected_keys, result.unexpected_keys

    def attach(self, model: PreTrainedModel, config: HealingConfig, state: State, base_model: str) -> "PeftModel":
        """See `Trainable.attach`."""
        adapted = add_adapter(model, config, find_targets(decoder_of(model, base_model), self.where, self.silent))
        self.restore(adapted, state)
        # Only now: with a name instead of a folder there, PEFT asks the Hub whenever it saves.
        adapted.peft_config["default"].base_model_name_or_path = base_model
        adapted.eval()
        return adapted

    def merge(self, model: PreTrainedModel, config: HealingConfig, state: State) -> None:
        """See `Trainable.merge`."""
        merge_adapter(model, state, scaling(config))


def adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapters' tensors in float32 on the CPU, under the names that PEFT saves."""
    from peft import get_peft_model_state_dict

    # Embeddings are never trained here; to find that out by itself PEFT would ask the Hub.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}


def save_adapter(model: "PeftModel", state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json (PEFT would add a card that names local paths)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))


def set_adapter_base(folder: Path, base_model: str) -> None:
    """Write the name of the base into a saved adapter: the repo that holds the pruned weights, once it is known.

    Args:
        folder: adapter folder.
        base_model: Hub id, never a path of this machine.
    """
    config = serial.read_json(folder / CONFIG) | {"base_model_name_or_path": base_model}
    serial.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
