"""What the wheel, the constraints and the declared dependencies must agree on."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = ("peft", "bitsandbytes", "accelerate", "lm_eval", "optimum", "gradio")
EXTRAS = PROJECT["project"]["optional-dependencies"]


def requirements(*groups: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for group in groups for r in map(Requirement, group)}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_package_is_in_the_wheel() -> None:
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "hf_prune").rglob("__init__.py")} | {
        "hf_prune.model_cards",
        "hf_prune.space_page",
        "optimum.commands.register",
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_module_lies_in_a_package() -> None:
    for file in (ROOT / "hf_prune").rglob("*.py"):
        if file.parent.name != "optimum_cli":  # goes to a folder that several packages share
            assert (file.parent / "__init__.py").is_file(), f"{file} would be left out of the wheel"


def test_the_command_of_optimum_goes_where_optimum_looks() -> None:
    home = ROOT / PROJECT["tool"]["setuptools"]["package-dir"]["optimum.commands.register"]
    assert [path.name for path in home.iterdir() if path.name != "__pycache__"] == ["register_hf_prune.py"]


def test_constraints_pin_what_is_declared() -> None:
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    for name, requirement in requirements(PROJECT["project"]["dependencies"], *EXTRAS.values()).items():
        if name != "hf-prune":
            assert requirement.specifier.contains(pinned[name]), f"{requirement} with {name}=={pinned[name]}"


def test_constraints_are_plain_versions() -> None:
    for name, version in pins().items():
        assert name == canonicalize_name(name)
        assert version[0].isdigit() and "+" not in version, f"{name}=={version} is of one platform only"


def test_imports_are_declared() -> None:
    extras = (EXTRAS[name] for name in ("heal", "eval", "optimum", "space"))
    declared = set(requirements(PROJECT["project"]["dependencies"], *extras))
    owners = packages_distributions()
    known = {*sys.stdlib_module_names, "hf_prune", "spaces"}  # ZeroGPU brings `spaces`, which is of use nowhere else
    for file in (ROOT / "hf_prune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names} - known:
                # By its own name too: of Optimum, where it is not installed, only this package's file is there.
                distributions = {canonicalize_name(distribution) for distribution in [*owners.get(name, []), name]}
                assert distributions & declared, f"{file.relative_to(ROOT)} imports {name}, which is not declared"


def test_works_without_any_extra() -> None:
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # importing it fails
import hf_prune, hf_prune.cli.app, hf_prune.demo
for name in hf_prune.__all__:
    getattr(hf_prune, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    for number in range(1, 10):
        assert f"\n   {number}. " in text
    assert text.rstrip().endswith("limitations under the License.")
