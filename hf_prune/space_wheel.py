"""The project's own wheel, for a machine that finds it on no index: built, or packed again from what is installed."""

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import hf_prune
from hf_prune.errors import OutputError
from hf_prune.hub_files import is_secret

logger = logging.getLogger(__name__)

_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hf_prune", "model_cards", "space")
_PAGE = "hf_prune/space_page/"
# What installers write beside a package, and no wheel holds.
_INSTALLERS = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: equal files make equal wheels
_BUILD_SECONDS = 600


@dataclass(frozen=True)
class Wheel:
    """A wheel of this project: where it lies, which version it holds, and its hash."""

    file: Path
    version: str
    sha256: str

    def page(self, name: str) -> str:
        """One of the files of the page that it holds: `app.py`, `README.md` or `requirements.txt`."""
        with zipfile.ZipFile(self.file) as held:
            return held.read(_PAGE + name).decode("utf-8")


def own_wheel(scratch: Path, given: Path | None = None) -> Wheel:
    """The wheel of this project that runs here.

    Args:
        scratch: an empty folder for what is made.
        given: a wheel that was built already; None makes one.

    Returns:
        The wheel.

    Raises:
        OutputError: it is no wheel of this project, holds a secret, or can't be made.
    """
    if given is not None:
        return _checked(given)
    checkout = Path(hf_prune.__file__).parents[1]
    if all((checkout / name).exists() for name in _SOURCES):
        return _checked(build(checkout, scratch))
    return _checked(pack_installed(scratch))


def build(checkout: Path, scratch: Path) -> Path:
    """Build the wheel of a checkout, from a copy: what earlier builds left behind would get into it.

    So would files that git does not know, where it is there to be asked; they stay out, and a warning names them.

    Args:
        checkout: its root.
        scratch: folder for the copy and the wheel.

    Returns:
        The wheel.

    Raises:
        OutputError: the build failed.
    """
    source, built = scratch / "source", scratch / "built"
    source.mkdir()
    unknown = _unknown_to_git(checkout)
    if unknown:
        logger.warning("Left out of the wheel, as git does not know them: %s", ", ".join(sorted(unknown)))

    def ignored(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(checkout)
        return {name for name in names if _is_left_behind(name) or (inside / name).as_posix() in unknown}

    for name in _SOURCES:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copyfile(checkout / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    environment["SOURCE_DATE_EPOCH"] = "315532800"  # see _DATE
    try:
        subprocess.run(
            [*command, "--wheel-dir", str(built), str(source)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines() or [type(error).__name__]
        raise OutputError(
            f"the wheel of this checkout can't be built ({said[-1]}): build it with `python -m build --wheel`, and "
            "pass it as --wheel FILE"
        ) from error
    (file,) = built.glob("*.whl")
    return file


def _unknown_to_git(checkout: Path) -> set[str]:
    """Files of a checkout that were never added to git; none where there is no git, or no repository."""
    command = ["git", "-C", str(checkout), "ls-files", "--others", "-z", "--", *_SOURCES]
    if not (checkout / ".git").exists():
        return set()
    try:
        listed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    names = (os.fsdecode(name) for name in listed.split(b"\0") if name)
    return {name for name in names if not any(map(_is_left_behind, name.split("/")))}


def _is_left_behind(name: str) -> bool:
    return name == "__pycache__" or name.startswith(".")


def pack_installed(scratch: Path) -> Path:
    """Make a wheel of the installed files of this package, as their RECORD names them.

    Args:
        scratch: folder for the wheel.

    Returns:
        The wheel.

    Raises:
        OutputError: the package is not installed from a wheel, or its files were changed since.
    """
    try:
        installed = metadata.distribution("hf-prune")
    except metadata.PackageNotFoundError as error:
        raise OutputError("hf-prune is not installed here: pass its wheel as --wheel FILE") from error
    files = dict(sorted(_installed_files(installed)))
    (folder,) = {path.partition("/")[0] for path in files if path.endswith(".dist-info/METADATA")}
    rows = [f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()]
    files[f"{folder}/RECORD"] = "".join([*rows, f"{folder}/RECORD,,\n"]).encode()
    tag = message_from_bytes(files[f"{folder}/WHEEL"])["Tag"]
    wheel = scratch / f"{folder.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def _installed_files(installed: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """What a wheel of an installed package holds: path and content, each as its RECORD says."""
    for file in installed.files or ():
        outside = ".." in file.parts or file.is_absolute()  # scripts, which installers write
        if outside or "__pycache__" in file.parts or (_in_metadata(file) and file.name in _INSTALLERS):
            continue
        place = Path(str(installed.locate_file(file)))
        content = place.read_bytes() if place.is_file() else b""
        if file.hash is None or file.hash.mode != "sha256" or _digest(content) != file.hash.value:
            raise OutputError(
                f"the installed file {file} is not the one that was installed: install hf-prune again, or pass its "
                "wheel as --wheel FILE"
            )
        yield file.as_posix(), content


def _in_metadata(file: metadata.PackagePath) -> bool:
    return file.parts[0].endswith(".dist-info")


def _digest(content: bytes) -> str:
    """A hash as RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _checked(file: Path) -> Wheel:
    """Refuse what is no wheel of this project with its page, and one that a secret got into."""
    try:
        with zipfile.ZipFile(file) as held:
            names = set(held.namelist())
            (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            about = message_from_bytes(held.read(described))
            secret = next((name for name in sorted(names) if is_secret(name, held.read(name))), None)
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise OutputError(f"'{file}' is not a wheel; expected hf_prune-VERSION-py3-none-any.whl") from error
    missing = [name for name in ("app.py", "README.md", "requirements.txt") if _PAGE + name not in names]
    name, version = str(about["Name"]), str(about["Version"])
    if name.replace("_", "-") != "hf-prune" or missing or "space" not in (about.get_all("Provides-Extra") or ()):
        raise OutputError(f"'{file}' holds {name} {version}; expected hf-prune, with the page of the Space in it")
    if not file.name.startswith(f"hf_prune-{version}-") or file.suffix != ".whl":
        raise OutputError(f"'{file}' is called otherwise than its content; expected hf_prune-{version}-...whl")
    if secret is not None:
        raise OutputError(f"'{file}' holds {secret}, which looks like a secret: take it out and build again")
    return Wheel(file, version, hashlib.sha256(file.read_bytes()).hexdigest())


__all__ = ["Wheel", "build", "own_wheel", "pack_installed"]
