"""What the tensors of a cut checkpoint are called in the one that they come from."""

from collections.abc import Container, Sequence


def original_name(name: str, leaf: str, keep: Sequence[int]) -> str:
    """The name that a tensor of a cut model had before: blocks get their old number.

    Args:
        name: in the cut model.
        leaf: last part of the path of the blocks, such as "layers".
        keep: base indices of the kept blocks.
    """
    parts = name.split(".")
    if leaf in parts:
        at = parts.index(leaf) + 1
        parts[at] = str(keep[int(parts[at])])
    return ".".join(parts)


def home(name: str, homes: Container[str], prefix: str) -> str | None:
    """The name that the base gives a tensor: some were saved without the prefix of their base model, or with it."""
    names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((candidate for candidate in names if candidate in homes), None)
