"""Make `import hf_prune` enough for transformers' Auto classes to load sliced and patched models, lazily.

Registering a class means importing it, and torch with it: seconds that `hf-prune --help` must not take. And while
transformers is being imported its modules are half there, so that a family can't be imported at any moment.
Therefore a finder waits for transformers' table of models and registers the configs once it is whole, which needs
little; a model class is imported and registered when the first config of its family is made, as every Auto class makes
one first.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Register sliced and patched models now where transformers' tables are loaded, else as soon as they are."""
    if _CONFIGS in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Finder())


def remove() -> None:
    """Register nothing in this process, if transformers is not loaded yet: it is then as without this package."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def register() -> None:
    """Tell AutoConfig of every sliced or patched family, and AutoModelForCausalLM of each once it is used."""
    from transformers import AutoConfig

    from hf_prune.patching import modeling as patched
    from hf_prune.slicing import modeling as sliced

    for code, families in ((sliced, sliced.SLICEABLE), (patched, patched.PATCHABLE)):
        for model_type in families:
            found = code.config_class(model_type)
            AutoConfig.register(found.model_type, found, exist_ok=True)
            _register_model_when_used(functools.partial(code.model_class, model_type), found)


def _register_model_when_used(model_class: Callable[[], Any], config: Any) -> None:
    make = config.__init__

    @functools.wraps(make)
    def make_first(self: Any, *args: Any, **kwargs: Any) -> None:
        from transformers import AutoModelForCausalLM

        config.__init__ = make
        AutoModelForCausalLM.register(config, model_class(), exist_ok=True)
        make(self, *args, **kwargs)

    config.__init__ = make_first


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the finders behind it find the tables, and registers once they have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (_CONFIGS, _MODELS):
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((found for finder in behind if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # The table of configs is made for that of models, which is half there then; or it is wanted alone.
        if module.__name__ == _MODELS or _MODELS not in sys.modules:
            remove()
            register()
