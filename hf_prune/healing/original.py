"""The original model as healing loads it: in the dtype and at the place of the pruned one."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune import loading
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.architecture.decoder import first_device
from hf_prune.errors import ConfigError
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.held_out import evaluation_mode
from hf_prune.healing.nf4 import nf4_config
from hf_prune.healing.origin import Origin
from hf_prune.loading import Source


@dataclass(frozen=True)
class Computing:
    """How the pruned model computes, which is how its original does.

    Attributes:
        device: where.
        dtype: of frozen weights; of those in 4 bits, of their products.
        autocast: whether products run in bfloat16.
        quantized: whether the pruned model is in 4 bits.
        trust_remote_code: whether code from the original's folder may run.
    """

    device: torch.device
    dtype: torch.dtype
    autocast: bool = False
    quantized: bool = False
    trust_remote_code: bool = False


def files_of(origin: Origin) -> Source | None:
    """The original's files; None where it lies in none."""
    source = None if origin.source is None else origin.source()
    return None if source is None or source.folder is None else source


def load_original(origin: Origin, mode: str, computing: Computing) -> tuple[Decoder, bool]:
    """The original, ready to be run.

    Args:
        origin: how to get at it.
        mode: "nf4" or "resident".
        computing: how the pruned model computes.

    Returns:
        The original, and whether it is a copy for this alone; else it is somebody else's, and stays as it is.

    Raises:
        ConfigError: it is to be in 4 bits, and there are no files.
        CheckpointError: the files are broken.
    """
    source = files_of(origin)
    if source is None:
        if mode == "nf4":
            raise no_files()
        assert origin.load is not None
        model: Any = origin.load()
        if (model.dtype, first_device(model)) == (computing.dtype, computing.device):
            return decoder_of(model), False
        # It is somebody else's: another dtype, or another place, takes a copy.
        own = copy.deepcopy(model).to(computing.device, computing.dtype).requires_grad_(False)
        return decoder_of(own.eval()), True
    assert source.folder is not None
    quantization = None
    if mode == "nf4":
        quantization = nf4_config(source.folder, computing.dtype, trust_remote_code=computing.trust_remote_code)
    model = loading.load_model(
        source,
        dtype=computing.dtype if quantization is None else "auto",
        device_map={"": computing.device},
        trust_remote_code=computing.trust_remote_code,
        quantization_config=quantization,
    )
    if mode == "nf4" and computing.quantized:
        from peft import prepare_model_for_kbit_training

        # As the pruned model is made ready: what both keep whole has one dtype, and can be shared.
        with quiet_peft():
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.requires_grad_(False)
    evaluation_mode(model)
    return decoder_of(model, source.ref.id), True


def check_fit(original: Decoder, pruned: Decoder, *, states: bool) -> None:
    """Refuse an original that the pruned model cannot come from.

    Args:
        original: loaded.
        pruned: the model that is healed.
        states: whether hidden states are compared.

    Raises:
        ConfigError: vocabulary, or width, are not those of the pruned model.
    """
    sizes = [int(decoder.config.vocab_size) for decoder in (original, pruned)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"'{original.name}' has a vocabulary of {sizes[0]}, the pruned model one of {sizes[1]}; divergences and "
            "token ids need the same. Name the model that was pruned (--original)"
        )
    widths = [int(decoder.config.hidden_size) for decoder in (original, pruned)]
    if states and widths[0] != widths[1]:
        raise ConfigError(
            f"hidden states of '{original.name}' are {widths[0]} wide, those of the pruned model {widths[1]}: they "
            "cannot be compared. Take loss 'kl'"
        )


def no_files() -> ConfigError:
    """What is said where the original is to be loaded in 4 bits and cannot be."""
    return ConfigError(
        "healing.teacher='nf4' loads the original's files in 4 bits, and the original was handed over in memory. Save "
        "it to a folder and prune that, or take teacher 'resident' or 'stored'"
    )
