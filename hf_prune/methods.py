"""The named recipes: what `method="..."` stands for."""

from hf_prune.errors import ConfigError
from hf_prune.method import Method
from hf_prune.recipes import fits, gradients, linear, ours, outputs, papers, parts, passes, plain, widths
from hf_prune.registry import did_you_mean

__all__ = ["FILES", "METHODS", "Method", "get_method"]

FILES = (papers, ours, plain, passes, outputs, gradients, fits, linear, parts, widths)

METHODS: dict[str, Method] = {method.name: method for file in FILES for method in file.METHODS}

_NAMED = 4
"""Methods that an error names."""


def get_method(name: str) -> Method:
    """Look up a recipe.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(
            f"unknown method '{name}'; expected one of the {len(METHODS)} that `hf-prune methods` lists, such as "
            f"{', '.join(list(METHODS)[:_NAMED])}.{did_you_mean(str(name), list(METHODS))}"
        )
    return METHODS[name]
