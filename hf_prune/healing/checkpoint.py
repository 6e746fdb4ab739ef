"""The pruned checkpoint that healing starts from: checks before loading, a fingerprint, loading it whole."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hf_prune.config import HealingConfig
from hf_prune.errors import CheckpointError, ConfigError, DataError
from hf_prune.healing.registries import kind_of
from hf_prune.samples import Samples

_SAMPLED = 256


def check_config(config: HealingConfig) -> None:
    """Refuse settings that were not resolved, and an adapter of what trains none.

    Raises:
        ConfigError: a setting that `settings.resolve` fills is None, or output="adapter" with weights as target.
    """
    what = ("target", "loss", *(("rank", "alpha", "dropout") if kind_of(config.target or "mlp") == "adapters" else ()))
    optimizer = ("learning_rate", "warmup_steps", "schedule", "beta2", "recompute", "batch_size", "micro_batch_size")
    length = ("steps", "tokens", "max_length", "eval_steps", "save_steps")
    missing = [name for name in (*what, *optimizer, *length) if getattr(config, name) is None]
    if missing:
        raise ConfigError(f"healing settings {missing} are None; expected values: call settings.resolve first")
    if config.output == "adapter" and kind_of(str(config.target)) == "weights":
        raise ConfigError(
            f"healing.output='adapter', and target '{config.target}' trains weights themselves: there is no adapter. "
            "Take output 'merged', or target 'mlp' or 'all'"
        )


def check_samples(samples: Samples, held_out: Samples, config: HealingConfig, vocabulary: int) -> None:
    """Refuse text that cannot train or cannot prove anything.

    Args:
        samples: training text.
        held_out: text for the held-out loss.
        config: resolved.
        vocabulary: ids that the model knows.

    Raises:
        DataError: no text, sequences too short or too long, or of which nothing is learned, unknown token ids, or text
            on both sides.
    """
    for kind, text in (("healing", samples), ("held-out", held_out)):
        if not text.sequences:
            raise DataError(
                f"there is no {kind} text; expected at least one sequence. Check the dataset and its split"
            )
        for index, ids in enumerate(text.sequences):
            if len(ids) < 2 or len(ids) > (config.max_length or 0):
                raise DataError(
                    f"{kind} sequence {index} has {len(ids)} tokens; expected from 2 to max_length={config.max_length}"
                )
        for index, learned in enumerate(text.learned or ()):
            # A step of such rows alone would have no mean.
            if not bool(learned[1:].any()):
                raise DataError(
                    f"{kind} sequence {index} has no token to be learned behind its first one; expected at least one "
                    "in each. Leave it out"
                )
        highest = max(int(ids.max()) for ids in text.sequences)
        if highest >= vocabulary:
            raise DataError(
                f"the {kind} text holds token id {highest}; the model knows ids below {vocabulary}. Was it tokenised "
                "with another model's tokenizer?"
            )
    shared = samples.hashes() & held_out.hashes()
    if shared:
        raise DataError(
            f"{len(shared)} of {len(held_out.sequences)} held-out sequences are in the healing text too; expected "
            "disjoint text, or the held-out loss proves nothing"
        )


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The text config of a pruned checkpoint.

    Raises:
        CheckpointError: there is none, or its weights are quantized already.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; expected the folder of a pruned model")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        method = dict(json.loads((folder / "config.json").read_text())["quantization_config"]).get("quant_method")
        raise CheckpointError(
            f"{folder.name} holds quantized weights (quant_method {method!r}), into which nothing can be merged; heal "
            "a model pruned from the unquantized base, and quantize the result"
        )
    return config.get_text_config(decoder=True)


def count_parameters(folder: Path) -> int:
    """Numbers in all tensors of a checkpoint, from the headers alone.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    total = 0
    for file in _open_all(folder):
        total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return total


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of a checkpoint, from the headers alone.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    return {name for file in _open_all(folder) for name in file.keys()}


def fingerprint(folder: Path) -> str:
    """A sha256 that tells pruned checkpoints apart without reading them whole.

    Covers config.json and, of every tensor, name, dtype, shape and its first values: two cuts of
    one model differ in which values stand under which name, even where all names and sizes agree.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    total = hashlib.sha256((folder / "config.json").read_bytes())
    for file in _open_all(folder):
        for name in sorted(file.keys()):
            view = file.get_slice(name)
            shape = view.get_shape()
            total.update(f"{name} {view.get_dtype()} {shape}".encode())
            start = (view[:1] if shape else file.get_tensor(name)).reshape(-1)[:_SAMPLED].contiguous()
            total.update(start.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _open_all(folder: Path) -> Iterator[Any]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no safetensors files; expected the folder of a pruned model")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name} cannot be read ({error}); prune again") from error


def load(
    folder: Path,
    device: torch.device,
    *,
    dtype: torch.dtype | str = "auto",
    quantization: Any = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the pruned checkpoint whole onto one device.

    Args:
        folder: complete stock checkpoint.
        device: where to.
        dtype: of the weights; "auto" is the checkpoint's.
        quantization: transformers' quantization config, or None.
        trust_remote_code: whether to run code from the folder.

    Raises:
        CheckpointError: weights are missing or left over.
    """
    model: Any
    info: dict[str, Any]
    model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        folder,
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantization,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
    )
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise CheckpointError(f"{folder.name} does not load whole: {wrong}; the checkpoint is damaged, prune again")
    return model


def blank(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The pruned model without its weights, on the meta device.

    Args:
        folder: complete stock checkpoint.
        trust_remote_code: whether to run code from the folder.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings that help nobody here.

    PEFT asks models for an attribute that transformers renamed. Of a sliced GPT-2 it says that Conv1D and nn.Linear
    (the shortcuts) are among its targets, which it sorts out by itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        yield
