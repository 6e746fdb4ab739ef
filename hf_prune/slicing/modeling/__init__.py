"""Modeling code of sliced models: registered when hf_prune is imported, and shipped with every sliced model.

The files are self-contained (torch and transformers alone), because they travel: `sliced.py` with the two files of one
family. A family says in `modeling_sliced_*.py` which parts of its blocks read the residual stream and which write to
it; that is all that the slicing code knows of it as well.
"""

import importlib
from typing import Any

SLICEABLE: dict[str, str] = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "phi3": "Phi3",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
    "opt": "OPT",
    "gpt2": "GPT2",
    "phi": "Phi",
    "gpt_neox": "GPTNeoX",
    "falcon": "Falcon",
}
"""model_type of each family to the name that its classes carry."""


PLAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""Families in which a model of one rotation is again a plain model of its family, of smaller `hidden_size`."""


def config_class(model_type: str) -> Any:
    """Config of a sliced model of this family; saved with it, its code goes along."""
    module = importlib.import_module(f"{__name__}.configuration_sliced_{model_type}")
    found = getattr(module, f"Sliced{SLICEABLE[model_type]}Config")
    found.register_for_auto_class()
    return found


def model_class(model_type: str) -> Any:
    """Causal language model of a sliced model of this family; saved, its code goes along."""
    module = importlib.import_module(f"{__name__}.modeling_sliced_{model_type}")
    found = getattr(module, f"Sliced{SLICEABLE[model_type]}ForCausalLM")
    found.register_for_auto_class("AutoModelForCausalLM")
    return found
