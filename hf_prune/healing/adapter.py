"""LoRA and DoRA adapters: put on a model, taken off as tensors, saved without asking the Hub."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.errors import CheckpointError
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.merge import MAGNITUDE, PREFIX, merge_adapter
from hf_prune.healing.ranks import Ranks
from hf_prune.healing.targets import Targets, find_targets
from hf_prune.healing.trained import State
from hf_prune.units import Unit

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def scaling(config: HealingConfig) -> Callable[[int], float]:
    """The factor of an adapter by its rank: alpha / rank of the config, with rsLoRA alpha / sqrt(rank)."""
    return Ranks.of(config).scaling


def add_adapter(model: PreTrainedModel, config: HealingConfig, targets: Targets) -> "PeftModel":
    """Put fresh adapters on a model: A random, B zero, so that nothing changes yet; all other weights are frozen.

    With DoRA (https://arxiv.org/abs/2402.09353) the length m of every row of W + s B A is trained as well, and starts
    as that of W: y = m (W + s B A) x / ||W + s B A||.

    Args:
        model: plain or 4-bit model, changed in place.
        config: resolved.
        targets: found in this very model (4-bit copies keep Conv1D weights the other way round).

    Raises:
        ConfigError: ranks do not grow, or there is no second block for the last one.
        CheckpointError: DoRA, and a row of a weight holds zeros alone, which has no direction.
    """
    from peft import LoraConfig, get_peft_model

    assert config.alpha and config.rank and config.dropout is not None
    ranks, alphas = Ranks.of(config).patterns(targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets.pattern,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        fan_in_fan_out=targets.transposed,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        adapted = get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters() if config.use_dora else ():
        module, magnitude, _ = name.partition(MAGNITUDE)
        if magnitude and not parameter.all():
            raise CheckpointError(
                f"healing.use_dora: a row of '{module.removeprefix(PREFIX)}' is all zeros; DoRA learns directions, of "
                "which it has none. Leave use_dora out"
            )
    return adapted


@dataclass(frozen=True)
class Adapters:
    """LoRA or DoRA beside linear maps of the blocks; see `Trainable`."""

    kind: ClassVar[Literal["adapters"]] = "adapters"

    where: str
    silent: tuple[Unit, ...]
    names: tuple[str, ...]
    lowest: int
    warning: str | None = None
    keep_whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, decoder: Decoder, where: str, silent: Collection[Unit] = ()) -> "Adapters":
        """Adapters on the maps that `find_targets` finds.

        Args:
            decoder: the pruned model.
            where: see `find_targets`.
            silent: see `find_targets`.

        Raises:
            ArchitectureError: the blocks hold no linear map that could carry an adapter.
            ConfigError: a name stands for none of them.
        """
        found = find_targets(decoder, where, silent)
        return cls(where, tuple(silent), found.names, min(found.positions.values()), found.warning)

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
