"""Packing: several sequences in one row without one seeing another; which go together, and which models can do it."""

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_prune.errors import ArchitectureError
from hf_prune.healing.held_out import evaluation_mode

# Lengths of the pairs of sequences that share a row while a model is tried; pads follow the second pair.
_PAIRS = ((13, 9), (7, 11))
# What a packed sequence's logits may differ by in float32, relative to their size: it is about 1e-6 where models can
# do it.
_EXACT = 1e-3
# In other dtypes rounding hides small differences. There they must be far below those of sequences that do see each
# other: of 42 families in bfloat16, their share is at most 0.04 where models can do it, and at least 0.15 where not.
_FAR_BELOW = 0.1


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which sequences share a row: the longest first, each into the first row with room for it.

    Args:
        lengths: of the sequences, in tokens; none above `room`.
        room: of a row, in tokens.

    Returns:
        Indices of the sequences of each row; equal lengths keep their order.
    """
    rows: list[list[int]] = []
    if not lengths:
        return rows
    # A tree over as many rows as there may be, each node with the most room that is left below it: the first row that
    # fits is found in log n steps.
    leaves = 1 << (len(lengths) - 1).bit_length()
    most = [room] * (2 * leaves)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        node = 1
        while node < leaves:
            node *= 2
            if most[node] < lengths[index]:
                node += 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(index)
        most[node] -= lengths[index]
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return rows


def pad_share(lengths: Sequence[int], batch_size: int) -> float:
    """Share of pads in batches of rows in random order.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows a batch.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    groups = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Refuse models in which sequences that share a row see each other, or count positions from the row's start.

    Short sequences are run two in a row, and alone. Transformers keeps the sequences of a row apart by their positions
    where attention takes its masks from it; ALiBi, state spaces, convolutions, and models with masks or positions of
    their own do not.

    Args:
        model: as it will be trained; its training mode is restored.

    Raises:
        ArchitectureError: logits of the packed sequences are not those of the sequences alone.
    """
    names = inspect.signature(model.forward).parameters
    if "position_ids" not in names and all(p.kind is not p.VAR_KEYWORD for p in names.values()):
        raise ArchitectureError(
            f"{_kind(model)} takes no position_ids, by which sequences that share a row are told apart{_ADVICE}"
        )
    training = model.training
    evaluation_mode(model)
    try:
        packed, alone, joined = _probe(model)
    finally:
        model.train(training)
    change, most = _change(packed, alone), _EXACT
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        # The median: rounding sends single tokens to other experts.
        change, most = change.median(), _FAR_BELOW * float(_change(joined, alone).median())
    if float(change.max()) > most:
        raise ArchitectureError(
            f"in {_kind(model)} sequences that share a row see each other or their place in it: packed, their logits "
            f"change by up to {float(_change(packed, alone).max()):.1%}{_ADVICE}"
        )


_ADVICE = "; expected the same logits as alone. Set healing.packing=False"


def _kind(model: PreTrainedModel) -> str:
    return f"a model of type '{model.config.model_type}' ({type(model).__name__})"


def _change(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of each token, the relative change of its logits."""
    found, expected = found.double(), expected.double()
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def _probe(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the second sequences of the pairs: packed, alone, and as one sequence with the first ones.

    Returns:
        Three times (tokens of all of them, vocabulary).
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    length = max(map(sum, _PAIRS))
    ids, positions = (torch.zeros(len(_PAIRS), length, dtype=torch.int64) for _ in range(2))
    for row, (first, second) in enumerate(_PAIRS):
        ids[row, : first + second] = torch.randint(vocabulary, (first + second,), generator=generator)
        positions[row, : first + second] = torch.cat((torch.arange(first), torch.arange(second)))

    def logits(ids: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids.to(device), use_cache=False, **more).logits

    packed = logits(ids, position_ids=positions.to(device))
    joined = logits(ids)
    seconds = [slice(first, first + second) for first, second in _PAIRS]
    alone = [logits(row[None, at])[0] for row, at in zip(ids, seconds, strict=True)]
    of_rows = [torch.cat([row[at] for row, at in zip(rows, seconds, strict=True)]) for rows in (packed, joined)]
    return of_rows[0], torch.cat(alone), of_rows[1]
