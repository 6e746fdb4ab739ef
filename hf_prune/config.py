"""`PrunerConfig`: the recipe, with Optimum's methods, as a plain dataclass."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_prune import serial
from hf_prune.errors import ConfigError
from hf_prune.method import SHIPPED, Effort, Method
from hf_prune.methods import get_method
from hf_prune.registry import WITHOUT_TEXT, measure, planner, surgery_named
from hf_prune.slicing.options import SEARCH, WidthOptions, check_options
from hf_prune.sparsity.options import SparsityOptions
from hf_prune.sparsity.options import check_options as check_sparsity
from hf_prune.stage_configs import (
    PAPER,
    SAME,
    CalibrationConfig,
    EvaluationConfig,
    HealingConfig,
    check_fraction,
    check_from_zero,
    check_indices,
    check_positive,
    options_without_paths,
)
from hf_prune.units import UnitKind

_AMOUNTS = {
    "layers": ("layers", "parameters", "bytes", "flops"),
    "width": ("width", "parameters"),
    "weights": ("weights",),
}

MAX_FORWARDS = 1000
"""Passes of the calibration text that choosing may take without being told so."""


@dataclass(frozen=True)
class PrunerConfig:
    """The recipe of a pruned model.

    Give one amount: `drop_layers`, `layers` or `sparsity`. What is left None is filled by the method; what depends
    on the model is resolved by `Pruner` and recorded.

    Attributes:
        method: named recipe, see `hf-prune methods`.
        drop_layers: how many decoder blocks go; of methods that remove parts of blocks, how many parts.
        layers: exactly these blocks go, 0-based.
        sparsity: share that goes, above 0 and below 1; rounded down to whole blocks, or to a multiple of the width.
        sparsity_of: what the share is of: "layers", "parameters", "bytes" or "flops" for methods that drop layers,
            "width" or "parameters" for methods that slice, "weights" (of the blocks' linear maps) for methods that
            zero single weights; None takes the first. Where parts of blocks go, "layers" counts those parts.
        measure: registry name; overrides the method's.
        planner: registry name; overrides the method's.
        surgery: registry name; overrides the method's.
        measure_kwargs: options of the measure.
        planner_kwargs: options of the planner.
        surgery_kwargs: options of the surgery.
        protect_first: blocks at the start that never go; None takes the method's.
        protect_last: blocks at the end that never go; None takes the method's.
        protect: further blocks that never go, 0-based.
        unit: what goes: "block", "attention", "mlp", or "joint" (attention and MLP in one list); None takes the
            method's.
        max_forwards: passes of the calibration text through the whole model that choosing may take; what would take
            more is refused with its number.
        effort: how long method "auto" may take to choose; None decides by the machine. It means nothing to others.
        rounds: in how many rounds of pruning and healing `run` does it, each on what the round before has healed.
        calibration: what to measure on.
        healing: how to heal.
        evaluation: what to prove.
        base_model: id or name of the base (filled by `Pruner`; set it for a base given as a folder).
        base_revision: Hub commit of the base (filled by `Pruner`).
        hf_prune_version: version that wrote the file.

    Example:
        ```python
        config = PrunerConfig(method="uidl", drop_layers=8)
        config.save_pretrained("recipe")
        assert PrunerConfig.from_pretrained("recipe") == config
        ```
    """

    CONFIG_NAME: ClassVar[str] = "pruner_config.json"

    method: str = "uidl"
    drop_layers: int | None = None
    layers: tuple[int, ...] | None = None
    sparsity: float | None = None
    sparsity_of: Literal["layers", "parameters", "bytes", "flops", "width", "weights"] | None = None
    measure: str | None = None
    planner: str | None = None
    surgery: str | None = None
    measure_kwargs: dict[str, Any] = field(default_factory=dict)
    planner_kwargs: dict[str, Any] = field(default_factory=dict)
    surgery_kwargs: dict[str, Any] = field(default_factory=dict)
    protect_first: int | None = None
    protect_last: int | None = None
    protect: tuple[int, ...] = ()
    unit: UnitKind | None = None
    max_forwards: int = MAX_FORWARDS
    rounds: int = 1
    effort: Effort | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    healing: HealingConfig = field(default_factory=HealingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    base_model: str | None = None
    base_revision: str | None = None
    hf_prune_version: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, before any model is touched."""
        if self.layers is not None:
            object.__setattr__(self, "layers", check_indices(self.layers))
        self._check_amount()
        check_from_zero(self, "protect_first", "protect_last")
        check_positive(self, "max_forwards", "rounds")
        if self.protect:
            object.__setattr__(self, "protect", check_indices(self.protect))
        serial.settle(self)
        if self.effort is not None and self.method != "auto":
            raise ConfigError(f"effort={self.effort!r} is for method 'auto', which it decides; got '{self.method}'")
        recipe = self.recipe()
        if recipe.measure is None and self.measure_kwargs:
            raise ConfigError(f"measure_kwargs={self.measure_kwargs} but method '{self.method}' measures nothing")
        # What a method names is registered; looking that up would import torch, which takes seconds.
        if recipe.measure is not None and (self.measure is not None or self.measure_kwargs):
            named = measure.get(recipe.measure)
            named.check_options(self.measure_kwargs, "measure")
            named.function(**self.options("measure"))  # says what is wrong with values
        if self.planner is not None or self.planner_kwargs:
            planner.get(recipe.planner).check_options(self.planner_kwargs, "planner")
        if self.surgery is not None or self.surgery_kwargs:
            surgery_named(recipe.surgery).check_options(self.surgery_kwargs, "surgery")
        self._check_unit(recipe)

    @property
    def amount_of(self) -> str:
        """What `sparsity` is a share of, resolved."""
        return self.sparsity_of or self.recipe().cuts

    @property
    def calibrates(self) -> bool:
        """Whether calibration text is read: to measure, to slice, or to fit what stands in."""
        recipe = self.recipe()
        if recipe.cuts == "weights":
            return SparsityOptions(**self.options("surgery")).reads_text
        fits = recipe.surgery != "drop" and recipe.cuts == "layers" and surgery_named(recipe.surgery).needs == "text"
        measures = recipe.measure is not None and self.layers is None
        reads = measures and measure.get(str(recipe.measure)).needs not in WITHOUT_TEXT
        return recipe.cuts == "width" or fits or reads

    @property
    def takes_parts_out(self) -> bool:
        """Whether attentions and MLPs that go are taken out, so that the result needs modeling code of its own."""
        return self.recipe().surgery == "drop" and self.options("surgery").get("export") == "hard"

    @property
    def ships_code(self) -> bool:
        """Whether blocks become such as no stock model has, so that the result needs modeling code of its own."""
        return self.takes_parts_out or self.recipe().surgery in SHIPPED

    @property
    def searches(self) -> bool:
        """Whether schedules of widths are tried on the model, on text held out from calibration."""
        return self.recipe().planner == "dynamic_width" and WidthOptions(**self.planner_kwargs).slice_base == SEARCH

    def _check_unit(self, recipe: Method) -> None:
        """Refuse what belongs to the other kind of pruning."""
        allowed = _AMOUNTS[recipe.cuts]
        if self.amount_of not in allowed:
            raise ConfigError(
                f"sparsity_of={self.sparsity_of!r}: method '{self.method}' cuts {recipe.cuts}; expected one of: "
                f"{', '.join(map(repr, allowed))}"
            )
        if recipe.cuts == "width":
            named = [name for name in ("drop_layers", "layers") if getattr(self, name) is not None]
            named += [name for name in ("protect_first", "protect_last", "protect") if getattr(self, name)]
            named += ["unit"] if recipe.unit != "block" else []
            if named:
                raise ConfigError(
                    f"{named[0]}={getattr(self, named[0])}: method '{self.method}' narrows all layers and drops none; "
                    "give sparsity, such as 0.25"
                )
            check_options(self.surgery_kwargs, self.planner_kwargs, self.sparsity, self.amount_of)
            if recipe.planner == "dynamic_width" and self.surgery_kwargs.get("basis") == "global":
                raise ConfigError(
                    "basis='global' keeps one width in all layers; planner 'dynamic_width' gives them different ones. "
                    "Take basis='per_block', or method 'slicegpt'"
                )
        if recipe.cuts == "weights":
            named = [name for name in ("drop_layers", "layers") if getattr(self, name) is not None]
            named += [name for name in ("protect_first", "protect_last", "protect") if getattr(self, name)]
            named += ["unit"] if recipe.unit != "block" else []
            if named:
                raise ConfigError(
                    f"{named[0]}={getattr(self, named[0])}: method '{self.method}' zeroes weights in all layers and "
                    "drops none; give sparsity, such as 0.5"
                )
            check_sparsity(self.options("surgery"), self.sparsity)
        for kind, look_up in (("planner", planner.get), ("surgery", surgery_named)):
            name = getattr(self, kind)
            if name is not None and look_up(name).cuts != recipe.cuts:
                raise ConfigError(
                    f"{kind} '{name}' cuts {look_up(name).cuts}, method '{self.method}' cuts {recipe.cuts}; "
                    f"choose a {kind} of the same kind, or another method"
                )
        if self.takes_parts_out and recipe.unit == "block":
            raise ConfigError(
                "export='hard' is for attentions and MLPs; method "
                f"'{self.method}' drops whole blocks, which are always taken out. Take unit 'attention', 'mlp' or "
                "'joint', or leave it out"
            )
        overridden = self.surgery is not None or self.unit is not None  # what a method names fits together
        if overridden and recipe.cuts == "layers" and recipe.surgery != "drop":
            stands = surgery_named(recipe.surgery).unit
            if stands != recipe.unit:
                removes = "whole ones" if recipe.unit == "block" else "parts of them"
                raise ConfigError(
                    f"surgery '{recipe.surgery}' stands in for "
                    f"{'whole blocks' if stands == 'block' else 'the ' + stands + ' of blocks'}; unit='{recipe.unit}' "
                    f"removes {removes}. Take surgery 'drop', or unit '{stands}'"
                )

    def _check_amount(self) -> None:
        given = {
            k: v
            for k, v in (("drop_layers", self.drop_layers), ("layers", self.layers), ("sparsity", self.sparsity))
            if v is not None
        }
        if len(given) > 1:
            named = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in given.items())
            raise ConfigError(f"{len(given)} amounts at once ({named}); give one of drop_layers, layers, sparsity")
        check_positive(self, "drop_layers")
        check_fraction(self, "sparsity")

    def recipe(self) -> Method:
        """The method with this config's overrides filled in."""
        base = get_method(self.method)
        overrides = {
            name: getattr(self, name)
            for name in ("measure", "planner", "surgery", "protect_first", "protect_last", "unit")
            if getattr(self, name) is not None
        }
        if self.planner is not None and self.measure is None and planner.get(self.planner).needs == "nothing":
            overrides["measure"] = None  # the method's would be measured in vain
        return dataclasses.replace(base, **overrides)

    def options(self, kind: Literal["measure", "planner", "surgery"]) -> dict[str, Any]:
        """Options of the measure, planner or surgery: the method's, and this config's own on top.

        Another measure (planner, surgery) than the method's takes none of the method's options.

        Args:
            kind: whose options.
        """
        base = get_method(self.method)
        kept = getattr(self, kind) in (None, getattr(base, kind))
        return {**(getattr(base, f"{kind}_kwargs") if kept else {}), **getattr(self, f"{kind}_kwargs")}

    def without_paths(self) -> Self:
        """The recipe as it may travel: datasets and task files given as paths shrink to their last part."""

        def shrunk(part: Any) -> Any:
            path = None if part.dataset is None else Path(part.dataset)
            return part if path is None or not path.exists() else dataclasses.replace(part, dataset=path.name)

        tasks = self.evaluation.task_path
        folder = None if tasks is None else Path(tasks).resolve().name
        evaluation = dataclasses.replace(self.evaluation, task_path=folder)
        return dataclasses.replace(
            self,
            calibration=shrunk(self.calibration),
            healing=shrunk(self.healing),
            evaluation=shrunk(evaluation),
            measure_kwargs=options_without_paths(self.measure_kwargs),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build a config from JSON types.

        Raises:
            ConfigError: unknown keys ("Did you mean ...?"), wrong types, or values that mean nothing.
        """
        return serial.from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types."""
        return serial.to_dict(self)

    def to_json_string(self) -> str:
        """The config as JSON text, as it is saved."""
        return serial.dumps(self)

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> Self:
        """Read the recipe of a pruned model.

        Args:
            model_id: Hub id, folder, or JSON file.
            revision: branch, tag or commit.
            token: of the Hub; None takes the stored one.

        Raises:
            ConfigError: no recipe there, or one that cannot be read.
            HubError: the Hub cannot be reached or refuses.
        """
        path = Path(model_id)
        if path.is_dir():
            path = path / cls.CONFIG_NAME
        elif not path.is_file():
            from hf_prune.hub import download_file

            path = download_file(str(model_id), cls.CONFIG_NAME, revision=revision, token=token)
        return cls.from_dict(serial.read_json(path))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_kwargs: Any,
    ) -> Path:
        """Write `pruner_config.json` into a folder; with `push_to_hub` also into a repo.

        Args:
            save_directory: folder; made where it is missing.
            push_to_hub: whether to push as well.
            repo_id: repo to push to; the folder's name when None.
            push_kwargs: see `push_to_hub`.

        Returns:
            The file written.
        """
        path = Path(save_directory) / self.CONFIG_NAME
        serial.write_text(path, self.to_json_string())
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **push_kwargs)
        return path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Push `pruner_config.json` alone to a repo and return the commit's URL."""
        from hf_prune.hub import push_file

        return push_file(
            self.to_json_string().encode(),
            self.CONFIG_NAME,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message or "Add the pruning recipe",
            create_pr=create_pr,
        )


__all__ = ["PAPER", "SAME", "CalibrationConfig", "EvaluationConfig", "HealingConfig", "PrunerConfig"]
