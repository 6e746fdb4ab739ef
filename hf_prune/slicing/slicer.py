"""SliceGPT's loop: find the basis of each point from what the blocks before it, sliced already, send there."""

import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import first_device
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.precision import cast, faster_dtype
from hf_prune.progress import tqdm
from hf_prune.runner import Call, Walker, evaluating, first, run_block
from hf_prune.samples import Batch, batches
from hf_prune.slicing.blank import blank_model, check_filled
from hf_prune.slicing.families import check_sliceable
from hf_prune.slicing.modeling import model_class
from hf_prune.slicing.modeling.sliced import Step
from hf_prune.slicing.moments import Orientation, SecondMoment, Weighting, principal_basis
from hf_prune.slicing.points import Widths
from hf_prune.slicing.read_costs import can_stay_tied
from hf_prune.slicing.rotate import Rotator, fill

logger = logging.getLogger(__name__)

Basis = Literal["per_block", "global"]

_FEWEST = 0.25
"""Calibration tokens for each channel below which nothing is sliced: the kept space would be that of the noise."""


@dataclass(frozen=True)
class Settings:
    """How the bases are found.

    Attributes:
        basis: "per_block" finds one at each point, from the stream as the sliced blocks before it make it, and puts
            shortcuts between them (SliceGPT); "global" finds one for all, from the unsliced model, and needs none.
        orientation: of the kept directions among themselves, see `principal_basis`.
        weighting: of the tokens, see `SecondMoment`.
        tied: whether the head of a tied model stays the table of the embeddings.
        batch_size: calibration sequences at once.
        seed: of a random orientation.
        budget: bytes of hidden states held in memory; see `ActivationStore`.
        scratch: folder for the rest of them.
    """

    basis: Basis = "per_block"
    orientation: Orientation = "pca"
    weighting: Weighting = "raw"
    tied: bool = False
    batch_size: int = 8
    seed: int = 0
    budget: int | None = None
    scratch: Path | None = None


def slice_model(
    decoder: Decoder,
    widths: Widths,
    sequences: Sequence[torch.Tensor],
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    *,
    progress: bool = False,
) -> PreTrainedModel:
    """Slice a model: rotate its residual stream to its principal directions and cut the smallest off.

    The base is left as it is; the sliced model has tensors of its own, in the base's dtype and on its devices. Each
    half of a block runs once over the text, with the weights that the sliced model will have (in float32 where the
    processor is slow in theirs), so that every basis sees the error made before it (SliceGPT section 3.4 and the
    authors' code; they run each block twice).

    Args:
        decoder: the base.
        widths: of the stream at each point.
        sequences: 1-D int64 calibration sequences.
        settings: how the bases are found.
        progress: whether to show a bar.

    Returns:
        A model of the family's sliced class, in eval mode.

    Raises:
        ArchitectureError: the family cannot be sliced.
        CheckpointError: the weights are quantized.
        ConfigError: widths that the model cannot have, or too little text.
        MeasureError: NaN or infinite hidden states; names the layer.
    """
    check_sliceable(decoder.config, decoder.name)
    check_tokens(sum(map(len, sequences)), decoder.config.hidden_size, decoder.name)
    tied = settings.tied and can_stay_tied(decoder)
    shortcuts = settings.basis == "per_block"
    check_widths(decoder, widths, shortcuts)
    sliced = blank_model(decoder, widths, shortcuts=shortcuts, tied=tied)
    loop = _Loop(decoder, sliced, sequences, settings, progress)
    with evaluating(decoder.model), torch.inference_mode():
        if shortcuts:
            loop.slice_in_turn(widths)
        else:
            basis = loop.one_basis(widths.embed)
            points = sum(len(block.own_steps) for block in loop.rotator.blocks)
            fill(decoder, sliced, [basis] * (points + 1))
    check_filled(sliced)
    return _thawed(sliced)


def check_tokens(tokens: int, hidden_size: int, name: str) -> None:
    """Warn of little calibration text, refuse far too little.

    Raises:
        ConfigError: fewer tokens than a quarter of the hidden size.
    """
    if tokens < _FEWEST * hidden_size:
        raise ConfigError(
            f"{tokens} calibration tokens are too few to slice '{name}' with hidden_size={hidden_size}; expected many "
            f"more than {hidden_size}, and refused below {int(_FEWEST * hidden_size)}. Raise calibration.samples or "
            "max_length (--samples, --max-length)"
        )
    if tokens < hidden_size:
        logger.warning(
            "%d calibration tokens for hidden_size=%d: fewer than one for each direction, so that many directions are "
            "cut that were never seen; take more samples", tokens, hidden_size,
        )  # fmt: skip


def check_widths(decoder: Decoder, widths: Widths, shortcuts: bool) -> None:
    """Refuse widths that do not fit the model.

    Raises:
        ConfigError: names the width.
    """
    hidden, layers = decoder.config.hidden_size, decoder.num_layers
    steps = model_class(decoder.config.model_type).block_class.steps(decoder.config)
    expected = {"attn_out": layers if len(steps) > 1 else 0, "mlp_out": layers}
    for key, number in expected.items():
        if len(getattr(widths, key)) != number:
            raise ConfigError(
                f"{key} holds {len(getattr(widths, key))} widths; '{decoder.name}' with {layers} layers takes {number}"
            )
    points = (widths.embed, *widths.attn_out, *widths.mlp_out)
    wrong = [width for width in points if not 1 <= width <= hidden]
    if wrong:
        raise ConfigError(f"width {wrong[0]}: expected 1 to {hidden}, the hidden size of '{decoder.name}'")
    if not shortcuts and len(set(points)) > 1:
        raise ConfigError(
            f"basis='global' keeps one basis and so one width from embeddings to head; got {min(points)} to "
            f"{max(points)}. Take basis='per_block' for a schedule"
        )


class _Loop:
    """The text between the blocks, and the bases it names."""

    def __init__(
        self, decoder: Decoder, sliced: Any, sequences: Sequence[torch.Tensor], settings: Settings, progress: bool
    ) -> None:
        self.decoder, self.sliced, self.settings, self.progress = decoder, sliced, settings, progress
        self.rotator = Rotator(decoder, sliced)
        self.walker = Walker(decoder)
        self.batches = list(batches(sequences, settings.batch_size))
        self.store = ActivationStore(settings.budget, settings.scratch)
        self.width: int = decoder.config.hidden_size
        self.dtype = decoder.model.dtype
        self.compute = faster_dtype(first_device(decoder.model), self.dtype)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def slice_in_turn(self, widths: Widths) -> None:
        """Blocks in order: readers take the basis found before them, the stream behind gives the next one."""
        rotator, first_basis = self.rotator, self._basis(self._embed(), widths.embed)
        rotator.tables(first_basis)
        basis = first_basis
        for layer in self._layers("slicing"):
            block = rotator.blocks[layer]
            rotator.rest(layer)
            for step in block.own_steps:
                rotator.readers(layer, step, basis)
                rotator.writers(layer, step, None)
                moment = self._advance(layer, step, basis)
                width = getattr(widths, step.width)[layer]
                last = layer == self.decoder.num_layers - 1 and step is block.own_steps[-1]
                # Nothing is cut from the last point of full width: the base's own basis is as good as any, and exact.
                behind = self._whole() if last and width == self.width else self._basis(moment, width)
                rotator.writers(layer, step, behind)
                rotator.shortcut(layer, step, basis, behind)
                basis = behind
        rotator.head(first_basis, basis)

    def one_basis(self, width: int) -> torch.Tensor:
        """The basis of all points: of the sum of their second moments, each scaled to the same trace."""
        total = self._embed().normalised()
        for layer in self._layers("measuring"):
            block: Any = self.decoder.blocks[layer]
            if self.compute != self.dtype:
                block = copy.deepcopy(block)
                cast(block, self.dtype, self.compute)
            steps = self.rotator.blocks[layer].own_steps
            moments = [self._moment() for _ in steps]
            norms = [block.get_submodule(step.branches[0].norm) for step in steps[1:]]
            for index, batch, hidden, call in self._calls(layer):
                seen: list[torch.Tensor] = []
                handles = [n.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])) for n in norms]
                try:
                    out = first(run_block(block, call, hidden))
                finally:
                    for handle in handles:
                        handle.remove()
                for moment, state in zip(moments, (*(s.reshape(out.shape) for s in seen), out), strict=True):
                    moment.add(self._centred(state), batch.attention_mask)
                self.store[index] = out.to(self.dtype)
            for moment in moments:
                self._check(moment, layer)
                total = total + moment.normalised()
        return principal_basis(total, width, self.settings.orientation, self.generator)

    def _advance(self, layer: int, step: Step, basis: torch.Tensor) -> SecondMoment:
        """One addition to the stream over the whole text, in the basis of the base; its second moment behind."""
        moment, block = self._moment(), self.rotator.blocks[layer]
        turned = basis.to(self.compute)
        changed = cast(block, self.dtype, self.compute)
        for index, batch, hidden, call in self._calls(layer):
            narrow = hidden @ turned.to(hidden.device)
            out = narrow @ turned.T.to(hidden.device)
            for branch in step.branches:
                out = out + block.run(branch, narrow, *call.args, **call.kwargs)
            moment.add(out, batch.attention_mask)
            self.store[index] = out.to(self.dtype)
        for tensor in changed:
            tensor.data = tensor.data.to(self.dtype)  # exact: the numbers came from there
        self._check(moment, layer)
        return moment

    def _embed(self) -> SecondMoment:
        moment = self._moment()
        for index, batch in enumerate(self.batches):
            hidden = self._centred(self.walker.calls(batch)[0])
            moment.add(hidden, batch.attention_mask)
            self.store[index] = hidden
        self._check(moment, None)
        return moment

    def _calls(self, layer: int) -> Iterator[tuple[int, Batch, torch.Tensor, Call]]:
        # Masks and positions are made anew for each layer: that costs an embedding, to keep them costs memory.
        device = next(self.decoder.blocks[layer].parameters()).device
        for index, batch in enumerate(self.batches):
            call = self.walker.calls(batch)[1][layer]
            call = dataclasses.replace(call, args=self._computed(call.args), kwargs=self._computed(call.kwargs))
            yield index, batch, self.store[index].to(device, self.compute), call

    def _computed(self, value: Any) -> Any:
        """Masks and positions in the dtype that is computed in."""
        if isinstance(value, torch.Tensor):
            return value.to(self.compute) if value.dtype == self.dtype else value
        if isinstance(value, dict):
            return {key: self._computed(item) for key, item in value.items()}
        return tuple(map(self._computed, value)) if isinstance(value, tuple) else value

    def _centred(self, hidden: torch.Tensor) -> torch.Tensor:
        """The stream as the sliced model has it: without its mean where the norms subtract it anyway."""
        return hidden - hidden.mean(-1, keepdim=True) if self.rotator.centred else hidden

    def _layers(self, doing: str) -> Any:
        return tqdm(range(self.decoder.num_layers), doing, unit="layer", disable=not self.progress)

    def _moment(self) -> SecondMoment:
        return SecondMoment(self.width, self.settings.weighting)

    def _basis(self, moment: SecondMoment, width: int) -> torch.Tensor:
        return principal_basis(moment.normalised(), width, self.settings.orientation, self.generator)

    def _whole(self) -> torch.Tensor:
        return torch.eye(self.width, dtype=torch.float64, device=next(self.decoder.model.parameters()).device)

    def _check(self, moment: SecondMoment, layer: int | None) -> None:
        assert moment.total is not None
        if torch.isfinite(moment.total).all():
            return
        where = "the embeddings" if layer is None else f"layer {layer}"
        raise MeasureError(
            f"{where} of '{self.decoder.name}' gives NaN or infinite hidden states on the calibration text; expected "
            "finite numbers. Try another --dtype (bfloat16 or float32 instead of float16), or check the weights there"
        )


def _thawed(sliced: Any) -> Any:
    """Weights made in inference mode can't be trained or saved as others can: make plain tensors of them."""
    for module in sliced.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone())
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()
    if sliced.config.tie_word_embeddings:
        sliced.get_output_embeddings().weight = sliced.get_input_embeddings().weight
    return sliced
