"""What `import hf_prune` gives, and what it does not load."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hf_prune
from hf_prune import errors


@pytest.mark.parametrize("name", hf_prune.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(hf_prune, name)
    assert value is not None
    if name != "__version__":
        assert inspect.getdoc(value), f"{name} has no docstring"


def test_names_and_nothing_else() -> None:
    assert hf_prune.__all__ == sorted(hf_prune.__all__) and set(hf_prune.__all__) == {*hf_prune._HOMES, "__version__"}
    assert dir(hf_prune) == hf_prune.__all__
    with pytest.raises(AttributeError, match="module 'hf_prune' has no attribute 'Prunner'"):
        hf_prune.Prunner  # noqa: B018
    for name, home in hf_prune._HOMES.items():
        assert getattr(importlib.import_module(f"hf_prune.{home}"), name) is getattr(hf_prune, name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(hf_prune.__file__).read_text())
    seen = {
        alias.name: statement.module.removeprefix("hf_prune.")
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == hf_prune._HOMES


def test_import_is_light() -> None:
    code = (
        "import sys, hf_prune; dir(hf_prune); hf_prune.__version__; hf_prune.PruneError; "
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loads {heavy}' if heavy else 0)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_errors_form_one_tree() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    assert all(issubclass(c, errors.PruneError) for c in classes) and issubclass(errors.PruneError, ValueError)
    drawn = inspect.getdoc(errors) or ""
    for c in classes:
        assert c.__name__ in drawn, f"{c.__name__} is not in the tree that the docstring draws"
