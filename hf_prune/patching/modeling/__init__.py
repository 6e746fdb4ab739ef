"""Modeling code of patched models: registered when hf_prune is imported, and shipped with every patched model.

The files are self-contained (torch and transformers alone), because they travel: `patched.py` with the two files of
one family.
"""

import importlib
from typing import Any

PATCHABLE: dict[str, str] = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
"""model_type of each family to the name that its classes carry."""


def config_class(model_type: str) -> Any:
    """Config of a patched model of this family; saved with it, its code goes along."""
    module = importlib.import_module(f"{__name__}.configuration_patched_{model_type}")
    found = getattr(module, f"Patched{PATCHABLE[model_type]}Config")
    found.register_for_auto_class()
    return found


def model_class(model_type: str) -> Any:
    """Causal language model of a patched model of this family; saved, its code goes along."""
    module = importlib.import_module(f"{__name__}.modeling_patched_{model_type}")
    found = getattr(module, f"Patched{PATCHABLE[model_type]}ForCausalLM")
    found.register_for_auto_class("AutoModelForCausalLM")
    return found
