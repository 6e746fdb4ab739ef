"""The models of one run: original, pruned, healed. One is in memory; the others are loaded when they are needed."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import loading
from hf_prune.amounts import Sizes
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import block_sizes, parameter_bytes
from hf_prune.architecture.sublayers import part_sizes, why_no_part
from hf_prune.architecture.writes import can_rescale
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.evaluation.flops import module_flops
from hf_prune.loading import Fetched, Source
from hf_prune.memory import give_back
from hf_prune.memory_budget import MaxMemory
from hf_prune.placement import device_of
from hf_prune.records import Plan
from hf_prune.reload import check_reload
from hf_prune.run_folder import RunFolder, remove
from hf_prune.saving import save_model, staged
from hf_prune.stored import Stored
from hf_prune.surgery import apply_plan
from hf_prune.surgery.apply import copy_apart
from hf_prune.surgery.slice import Text, apply_slicing
from hf_prune.units import Part, Unit

Label = Literal["original", "pruned", "healed"]
LABELS: tuple[Label, ...] = ("original", "pruned", "healed")


_SAMPLED = 256


def name_given(config: PrunerConfig, model_id: str | Path) -> str | None:
    """What the user calls a base that is given as a folder; the name in a recipe of another model is that model's."""
    return config.base_model if Path(model_id).is_dir() and config.hf_prune_version is None else None


class Models:
    """Hands out the models of a run.

    Attributes:
        quantized: whether the base's weights are quantized.
        whole_files: whether weights are fetched as whole files alone, never in part.
        in_memory: whether the original was handed over in memory.
        fetched: how the base's weights came here; None while they have not.

    Args:
        source: the base model; its folder is None where a model was handed over in memory.
        tokenizer: of all of them.
        run: where the pruned checkpoint is kept.
        kwargs: from `load_kwargs`.
        model: the model in memory, if it is.
        find: fetches the base model's folder where `source` has none, if there is a way.
        fetch: brings the base's weights to the folder of `source` where they are not there yet.
        max_memory: bytes that may be used of each device ("cpu", or the number of a GPU); None leaves it to what is
            free.
        quantized: whether the base's weights are quantized.
        whole_files: whether weights are fetched as whole files alone, never in part.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        run: RunFolder,
        kwargs: dict[str, Any],
        model: PreTrainedModel | None = None,
        find: Callable[[], Path | None] = lambda: None,
        fetch: Callable[[], Fetched] = lambda: "whole",
        max_memory: MaxMemory | None = None,
        quantized: bool = False,
        whole_files: bool = False,
    ) -> None:
        self.source, self.kwargs, self._find, self._fetch = source, kwargs, find, fetch
        self.max_memory = max_memory
        self.fetched: Fetched | None = None
        self.stage: Label = "original"
        self._tokenizer, self._run = tokenizer, run
        self._current: Any = model
        self._checkpoint: Source | None = None
        self._adapter: Path | None = None
        self._healed: Source | None = None
        self._merged = False
        self._whole: PreTrainedModel | None = None
        self.in_memory = model is not None
        self.quantized, self.whole_files = quantized, whole_files

    def take_up(self, checkpoint: Source, stage: Label, adapter: Path | None = None) -> None:
        """Go on with a checkpoint that is pruned, or healed, already; an adapter beside pruned weights heals them."""
        self._checkpoint, self.stage, self._adapter = checkpoint, stage, adapter

    @property
    def device(self) -> torch.device:
        """Where the model computes: of one that is not in memory, where it would be loaded."""
        planned = None if self._current is not None else device_of(self.kwargs["device_map"])
        return self.current().device if planned is None else planned

    def current(self) -> PreTrainedModel:
        """The model as it is now."""
        if self._current is None:
            if self.stage != "original" and self._checkpoint is None:
                raise AssertionError(f"the {self.stage} model is neither in memory nor in a folder")
            if self.stage == "original":
                self.fetch()
            source = self.source if self.stage == "original" else self._healed or self._checkpoint
            assert source is not None
            self._current = Stored(source, self._adapter, self.kwargs).load()
        return self._current

    def fetch(self) -> None:
        """Bring the base's weights here as files, where they are not there yet.

        Raises:
            HubError: the download failed.
            CheckpointError: they are broken, or disagree with the config.
        """
        if self.fetched is None:
            self.fetched = self._fetch()

    def original(self) -> PreTrainedModel:
        """The uncut model: of one that was handed over in memory the removed blocks are kept for this.

        Raises:
            ConfigError: its folder is not known.
        """
        if self.stage == "original":
            return self.current()
        if self._whole is not None:
            return self._whole
        if self._original_folder() is None:
            raise ConfigError(
                f"the original of '{self.source.ref.id}' is needed, to compare with it or to sample text "
                "from it, and it is not there any more. Name it (original=..., --original), or give a dataset and "
                "evaluate nothing"
            )
        self.fetch()
        return loading.load_model(self.source, **self.kwargs)

    @property
    def has_original(self) -> bool:
        """Whether the original is at hand: in memory, in a folder, or on the Hub at a commit that is known."""
        there = self.stage == "original" or self._whole is not None or self.source.folder is not None
        return there or self.source.ref.revision is not None

    def find_original(self) -> None:
        """Bring the original's files here, where they are known and not here.

        Raises:
            HubError: they cannot be fetched.
            ConfigError: the folder is another model's.
        """
        if self.stage != "original" and self._whole is None:
            self._original_folder()

    def original_source(self) -> Source | None:
        """The uncut model's files, brought here where they are not; None where it was handed over in memory.

        Raises:
            HubError: the download failed.
        """
        if self.in_memory or self._original_folder() is None:
            return None
        self.fetch()
        return self.source

    def _original_folder(self) -> Path | None:
        if self.source.folder is None:
            self.source = dataclasses.replace(self.source, folder=self._find())
        return self.source.folder

    def pruned(self, plan: Plan) -> PreTrainedModel:
        """The pruned model, before healing."""
        if self.stage == "pruned":
            return self.current()
        return loading.load_model(self.checkpoint(plan), **self.kwargs)

    def release(self) -> None:
        """Drop the model in memory."""
        self._current = None
        give_back()

    def cut(self, plan: Plan, text: Callable[[], Text]) -> None:
        """Carry out a plan on the original, or take the pruned checkpoint that a killed run has left.

        Args:
            plan: what to do.
            text: gives the calibration text, which slicing looks at.
        """
        if self._current is None and self._run.has("pruned", self._inputs(plan)):
            self.take_up(self.pruned_source(plan), "pruned")
            return
        model = self.current()
        if plan.slicing is not None:
            sliced = apply_slicing(decoder_of(model, self.source.ref.id), plan, text())
            self._whole = model if self.source.folder is None else None
            self._current, self.stage = sliced, "pruned"
            if self._run.lasting:
                self.checkpoint(plan)  # slicing is long work: a run that is killed later need not do it again
            return
        if self.source.folder is None:
            self._whole = copy_apart(decoder_of(model, self.source.ref.id), plan)
        apply_plan(decoder_of(model, self.source.ref.id), plan)
        self.stage = "pruned"

    def replace(self, healed: Any, adapter: Path | None) -> None:
        """Take the healed model in place of the pruned one.

        Args:
            healed: the model.
            adapter: folder of the adapter that lies on it; None where it was merged.
        """
        self._current, self.stage, self._adapter = healed, "healed", adapter
        self._merged = adapter is None

    def stored(self, label: Label, plan: Plan | None) -> Stored | None:
        """One of the models as files, which are written now where they are not there yet.

        Args:
            label: which; healed ones only while they are the current model.
            plan: what was cut; None for the original.

        Returns:
            The files; None where a model that was handed over in memory, or what became of it, lies in none.

        Raises:
            OutputError: the disk is full.
            ReloadError: the pruned checkpoint does not load back.
        """
        if label == "original":
            folder = None if self.in_memory else self._original_folder()
            self.fetch()
            return None if folder is None else Stored(self.source, None, self.kwargs)
        if self.in_memory and label == self.stage:
            return None
        assert plan is not None
        checkpoint = self.checkpoint(plan)
        if label == "pruned":
            return Stored(checkpoint, None, self.kwargs)
        if self._merged:
            checkpoint = self._save_healed(checkpoint, plan)
        return Stored(checkpoint, self._adapter, self.kwargs)

    def _save_healed(self, pruned: Source, plan: Plan) -> Source:
        if self._healed is None:
            source = dataclasses.replace(pruned, folder=Path(self._run.path) / "healed")
            assert source.folder is not None
            remove(source.folder)
            with staged(source.folder) as stage:
                save_model(self.current(), self._tokenizer, stage, source=pruned.folder, keep=range(len(plan.kept)))
            self._healed = source
        return self._healed

    def checkpoint(self, plan: Plan) -> Source:
        """The pruned model as a checkpoint: the folder taken up, or one in the run folder, written when needed.

        Raises:
            OutputError: the disk is full.
            ReloadError: the checkpoint does not load back.
        """
        if self._checkpoint is not None:
            return self._checkpoint
        source = self.pruned_source(plan)
        assert source.folder is not None
        if not self._run.has("pruned", self._inputs(plan)):
            self._run.begin("pruned")
            remove(source.folder)  # of other settings, or killed before it was marked
            model = self.current()
            with staged(source.folder) as stage:
                save_model(model, self._tokenizer, stage, source=self.source.folder, keep=plan.kept)
                kept_bytes = self.source.folder if plan.unchanged else None
                check_reload(model, stage, source=kept_bytes, keep=plan.kept)
            self._run.finish("pruned", self._inputs(plan))
        self._checkpoint = source
        return source

    @property
    def untouched(self) -> bool:
        """Whether the original lies in files, and nothing has loaded or cut it yet."""
        return self.stage == "original" and not self.in_memory and self._current is None

    def sizes(self, flops_at: int | None = None) -> Sizes:
        """What the original's blocks weigh, by its config alone where that says it all.

        Args:
            flops_at: tokens of the text for which FLOPs are counted as well; they are not where this is None.

        Raises:
            ArchitectureError: FLOPs cannot be counted without running the model.
        """
        return sizes_of(self._blank() or self.original(), self.source.ref.id, flops_at)

    def can_rescale(self) -> bool:
        """Whether surgery "compensate" is exact on the original, by its config alone where that says it all."""
        return can_rescale(decoder_of(self._blank() or self.original(), self.source.ref.id))

    def _blank(self) -> PreTrainedModel | None:
        """The original without its weights; None where it is in memory, or was quantized: configs don't tell those."""
        folder = self.source.folder
        if folder is None or self.quantized or (self.stage == "original" and self._current is not None):
            return None
        trusted = self.kwargs["trust_remote_code"]
        return loading.blank_model(folder, self.source.ref.id, self.kwargs["dtype"], trust_remote_code=trusted)

    def outline(self) -> PreTrainedModel:
        """The model as it is now, for its structure alone: without weights where it is not in memory."""
        if self._current is None and self._checkpoint is not None and self._checkpoint.folder is not None:
            trusted = self.kwargs["trust_remote_code"]
            return loading.blank_model(self._checkpoint.folder, self.source.ref.id, trust_remote_code=trusted)
        return self._blank() or self.current()

    def pruned_parameters(self, plan: Plan) -> int:
        """Parameters of the pruned model, also before it is cut."""
        if self.stage != "original":
            return _count(self.outline())
        if plan.slicing is not None:
            return plan.slicing.parameters
        sizes = self.sizes()
        gone = sum(sizes.parameters[i] for i in plan.dropped)
        for op in plan.operations:
            if op.kind == "remove":  # but for their norms
                gone += sum(sizes.weight(Unit(i, op.options["part"]), "parameters") for i in op.layers)
        return sizes.total_parameters - gone

    def pruned_source(self, plan: Plan) -> Source:
        """What the pruned checkpoint is called, and where it lies in the run folder."""
        ref = dataclasses.replace(self.source.ref, num_layers=len(plan.kept))
        return Source(ref, Path(self._run.path) / "pruned", self.source.on_hub)

    def _inputs(self, plan: Plan) -> dict[str, Any]:
        return {"plan": plan, "dtype": str(self.kwargs["dtype"]), "verified": self.whole_files}


def sizes_of(model: PreTrainedModel, name: str, flops_at: int | None = None) -> Sizes:
    """What the blocks of a model weigh.

    Args:
        model: with its weights, or on the meta device.
        name: what it is called in errors.
        flops_at: see `Models.sizes`.

    Raises:
        ArchitectureError: FLOPs cannot be counted without running the model.
    """
    decoder = decoder_of(model, name)
    parameters, size = block_sizes(decoder)
    counted = None
    if flops_at is not None:
        counted = {path: count // flops_at for path, count in module_flops(model, flops_at).items()}
    parts: tuple[Part, ...] = ("attention", "mlp")
    return Sizes(
        tuple(parameters),
        tuple(size),
        _count(model),
        parameter_bytes(model),
        () if counted is None else tuple(counted.get(decoder.block_prefix(i)[:-1], 0) for i in range(len(size))),
        0 if counted is None else counted[""],
        part_sizes(decoder, counted),
        {part: why for part in parts if (why := why_no_part(decoder, part))},
    )


def weights_digest(model: PreTrainedModel) -> str:
    """A sha256 that stands for weights in memory: config, and name, dtype, shape and first values of each tensor."""
    total = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            first = tensor.detach().reshape(-1)[:_SAMPLED].cpu().contiguous()
            total.update(first.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())
