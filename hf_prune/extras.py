"""Optional dependencies: imported where they are used, with an error that names the extra."""

import importlib
import importlib.util
from types import ModuleType

from hf_prune.errors import MissingExtraError


def available(module: str) -> bool:
    """Whether `module` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: importable name, such as "peft".
        extra: the extra of this package that installs it.
        purpose: what it is needed for, in a few words, for the message.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package '{module}', which is not installed. Install it with: "
            f"pip install 'hf-prune[{extra}]'"
        ) from error
