"""Configuration of a patched Mistral."""

from transformers.models.mistral.configuration_mistral import MistralConfig


class PatchedMistralConfig(MistralConfig):
    """A Mistral whose blocks lack parts, as `removed_parts` says (see `patched.py`)."""

    model_type = "patched_mistral"
