"""Which linear maps carry adapters."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import Decoder
from hf_prune.architecture.sublayers import part_modules
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.healing.registries import trainable
from hf_prune.units import Unit

# Parts of a block's dotted names. Attention, state space and convolution layers mix tokens; routers choose experts
# and are left as they are, or healing would move tokens to experts that were trained for others.
_MIXER = re.compile(r"attn|attention|mixer|mamba|ssm|conv|temporal", re.IGNORECASE)
_ROUTER = re.compile(r"router|^gate$|^shared_expert_gate$", re.IGNORECASE)
# The residual's own linear map, around attention or MLP, in the blocks of sliced models.
_SHORTCUT = re.compile(r"^(.*_)?shortcut$")

_KINDS = ("mlp", "all")

_NEAREST = 3
"""Names that are suggested in place of an unknown one."""


@dataclass(frozen=True)
class Targets:
    """The linear maps that carry adapters.

    Attributes:
        names: dotted names within a block, such as "mlp.gate_proj"; the same for all blocks that have them.
        pattern: regular expression that matches the full names of these modules and of nothing else.
        transposed: whether they are Conv1D, with weights of shape (inputs, outputs), as in GPT-2; shortcuts aside,
            which are nn.Linear in every sliced model.
        blocks_path: of the decoder.
        positions: full name of each of these modules -> position of its block.
        warning: sentence where these are not what was asked for.
    """

    names: tuple[str, ...]
    pattern: str
    transposed: bool
    blocks_path: str
    positions: dict[str, int]
    warning: str | None = None


def find_targets(decoder: Decoder, kind: str, silent: Collection[Unit] = ()) -> Targets:
    """Find the linear maps inside the blocks, by what they are and where they sit.

    "mlp" means every linear map outside of attention (and other token mixers), "all" means those as well; routers
    never count. The shortcuts of a sliced model belong to neither attention nor MLP, whatever they are called after:
    they are the residual's own map, and "all" alone adapts them. Experts that are fused into one tensor are no linear
    maps and get no adapter; where a model has no other MLP, the adapters go to attention instead, with a warning.
    Anything else is read as names with commas between, such as "q_proj,mlp.down_proj": each means the maps whose
    dotted names end in these parts. Parts that were silenced get none: what an adapter adds to a weight of zeros would
    let them speak again.

    Args:
        decoder: the model.
        kind: see above.
        silent: parts that write nothing, and are to stay so.

    Raises:
        ArchitectureError: the blocks hold no linear map that could carry an adapter.
        ConfigError: a name stands for none of them.
    """
    quiet = quiet_modules(decoder, silent)
    linears = _linears(decoder, quiet)
    branches = [name for name in linears if not is_shortcut(name)]
    mlp = [name for name in branches if not any(_MIXER.search(part) for part in name.split("."))]
    warning = None
    fused = _fused_experts(decoder) if kind in _KINDS else []
    if kind in _KINDS:
        names = mlp if kind == "mlp" else list(linears)
    else:
        names = _named(decoder, kind, linears, bool(quiet)) if linears else []
    if fused:
        share = "all of its" if not mlp else "some of its"
        warning = (
            f"The model's experts are fused tensors ({', '.join(fused)}), which carry no adapters; healing leaves "
            f"{share} MLP weights as they are"
        )
        warning += " and trains attention instead." if not mlp and kind == "mlp" else "."
    if not names and fused:
        names = branches
    if not names:
        hint = " Try healing.target='all' (--heal-target all)." if linears else ""
        raise ArchitectureError(
            f"healing found no linear map for target='{kind}' in the blocks of '{decoder.name}' (model_type "
            f"'{decoder.config.model_type}'); expected nn.Linear, Conv1D or their quantized forms.{hint}"
        )
    kinds = {linears[name] for name in names if not is_shortcut(name)}
    if len(kinds) > 1:
        raise ArchitectureError(
            f"'{decoder.name}' mixes nn.Linear and Conv1D among {names}; expected one kind for one adapter"
        )
    pattern = rf"{re.escape(decoder.blocks_path)}\.\d+\.({'|'.join(re.escape(name) for name in sorted(names))})"
    if quiet:
        pattern = rf"(?!(?:{'|'.join(map(re.escape, quiet))})(?:\.|$)){pattern}"
    positions = {
        full: at
        for at, block in enumerate(decoder.blocks)
        for name, _ in block.named_modules()
        if re.fullmatch(pattern, full := f"{decoder.block_prefix(at)}{name}")
    }
    return Targets(tuple(sorted(names)), pattern, True in kinds, decoder.blocks_path, positions, warning)


def sides(module: nn.Module) -> tuple[int, int]:
    """How many numbers a linear map, plain or 4-bit, gives and takes: (outputs, inputs)."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return outputs, inputs
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def quiet_modules(decoder: Decoder, silent: Collection[Unit]) -> list[str]:
    """Full names of the modules that silenced parts are made of.

    Args:
        decoder: the model.
        silent: parts of it that write nothing.
    """
    return sorted(
        f"{decoder.blocks_path}.{unit.layer}.{name}"
        for unit in silent
        for name in part_modules(decoder.blocks[unit.layer], unit.part)
    )


def is_shortcut(name: str) -> bool:
    """Whether a dotted name is that of a sliced model's shortcut (`attn_shortcut`, `mlp_shortcut`, `shortcut`)."""
    return _SHORTCUT.match(name.rpartition(".")[2]) is not None


def _named(decoder: Decoder, kind: str, linears: Collection[str], silenced: bool) -> list[str]:
    """The linear maps that a list of names stands for."""
    wanted = [part.strip() for part in kind.split(",")]
    found = {part: [name for name in linears if f".{name}".endswith(f".{part}")] for part in wanted if part}
    unknown = next((part for part in wanted if not found.get(part)), None)
    if unknown is None:
        return list(dict.fromkeys(name for part in wanted for name in found[part]))
    registered = sorted(entry.name for entry in trainable) if len(wanted) == 1 else []
    last = [name.rpartition(".")[2] for name in (*linears, unknown)]
    known = list(dict.fromkeys([*registered, *last[:-1], *linears]))
    close = difflib.get_close_matches(unknown, known, n=_NEAREST) or difflib.get_close_matches(last[-1], known, n=1)
    nearest = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    choices = f"one of {', '.join(registered)}, or " if registered else ""
    raise ConfigError(
        f"healing.target='{kind}': '{unknown}' is no linear map in the blocks of '{decoder.name}' that can carry "
        f"adapters.{nearest} Expected {choices}names with commas between of: {', '.join(sorted(linears))}"
        + (" (parts that were silenced carry none)" if silenced else "")
    )


def _linears(decoder: Decoder, quiet: Collection[str]) -> dict[str, bool]:
    """Dotted names of the linear maps within any block, but for quiet modules, and whether they are Conv1D."""
    found: dict[str, bool] = {}
    for position, block in enumerate(decoder.blocks):
        for name, module in block.named_modules():
            if f"{decoder.blocks_path}.{position}.{name}.".startswith(tuple(f"{each}." for each in quiet)):
                continue
            # Linear4bit and Linear8bitLt of bitsandbytes are subclasses of nn.Linear.
            is_linear = isinstance(module, nn.Linear | Conv1D)
            if is_linear and not any(_ROUTER.search(part) for part in name.split(".")):
                found[name] = isinstance(module, Conv1D)
    return found


def _fused_experts(decoder: Decoder) -> list[str]:
    """Dotted names of the three-dimensional weights (expert, rows, columns) within any block."""
    found = {
        name
        for block in decoder.blocks
        for name, parameter in block.named_parameters()
        if parameter.ndim == 3 and "expert" in name.lower()
    }
    return sorted(found)
