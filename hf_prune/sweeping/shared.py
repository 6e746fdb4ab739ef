"""What the points of a sweep share, each made once: the original, its figures, the texts, and each method's scores."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import calibration, environment, healing, loading, serial
from hf_prune.architecture.decoder import first_device, parameter_bytes, structural_copy
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.evaluation.stage import Judge
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.loading import Source
from hf_prune.records import Environment, ModelEvaluation
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples, digest
from hf_prune.sweeping.amounts import config_of
from hf_prune.sweeping.branch import Branch, SharedModels
from hf_prune.texts import Texts

_ROOM = 4.0
"""The original stays in memory where what is free is this many times its size: points need room beside it."""


class Shared:
    """Hands out what is made once.

    Attributes:
        folder: of the sweep.
        run: where all that is shared is kept.
        tokenizer: of the model.

    Args:
        source: the base model.
        model_config: its config.
        config: what all points share.
        methods: recipe names.
        kwargs: of `loading.load_model`.
        folder: of the sweep.
        token: of the Hub.
        progress: whether to show bars.
    """

    def __init__(
        self,
        source: Source,
        model_config: PretrainedConfig,
        config: PrunerConfig,
        methods: tuple[str, ...],
        kwargs: dict[str, Any],
        folder: Path,
        token: str | bool | None,
        progress: bool,
    ) -> None:
        self.folder, self.run = folder, RunFolder(folder / "shared")
        self.tokenizer: Tokenizer = loading.load_tokenizer(source, trust_remote_code=kwargs["trust_remote_code"])
        self._source, self._kwargs, self._config, self._model_config = source, kwargs, config, model_config
        self._token, self._progress = token, progress
        self._limit = calibration.model_limit(model_config.get_text_config(decoder=True))
        check_tasks(config.evaluation, self.tokenizer, self._limit)
        self._original: PreTrainedModel | None = None
        self._figures: ModelEvaluation | None = None
        self._trunks: dict[str, Branch] = {}
        self._settings: dict[str, HealingConfig] = {}
        self._healing_texts: dict[str, dict[str, Samples]] = {}
        # The text of the method that needs most is that of all: a search holds some out, others measure nothing.
        own = [config_of(config, method) for method in methods]
        self._lead = max(own, key=lambda recipe: (recipe.searches, recipe.calibrates))
        self._given, self._whole = self._read_texts()

    def original(self) -> PreTrainedModel:
        """The original, of tensors that stay in memory where there is room; cutting what is returned changes nothing.

        Returns:
            A model that shares its tensors with the next one returned, or one loaded for this call.
        """
        if self._original is not None:
            return structural_copy(self._original)
        model = loading.load_model(self._source, **self._kwargs)
        if not _has_room(model):
            return model
        self._original = model
        return structural_copy(model)

    def figures(self) -> tuple[ModelEvaluation, Environment]:
        """The original's figures, and where they were measured."""
        models = self.models(self.run)
        texts = self._texts(self.run, self._given)
        judge = Judge(
            self._config.evaluation, models, texts, self.tokenizer, self.run, self._limit, self._progress
        )  # fmt: skip
        self._figures = judge.measure("original", None, None)
        inputs, path = {"figures": self._figures}, self.run.path / "environment.json"
        if not self.run.has("environment", inputs):
            serial.write_text(path, serial.dumps(environment.describe(models.original())))
            self.run.finish("environment", inputs)
        models.release()
        return self._figures, serial.from_dict(Environment, serial.read_json(path))

    def models(self, run: RunFolder) -> SharedModels:
        """The models of one recipe, which begin with the original.

        Args:
            run: where the pruned checkpoint is kept.
        """
        return SharedModels(self._source, self.tokenizer, run, self._kwargs, self.original)

    def branch(self, config: PrunerConfig, run: RunFolder, models: SharedModels, *, heal: bool = False) -> Branch:
        """The stages of one recipe, on the texts of all.

        Args:
            config: the recipe.
            run: where its own stages are kept.
            models: from `models`.
            heal: whether it will be healed.
        """
        given = self._given_to(config)
        if heal:
            given |= self.healing_texts(config.recipe().healing)
        return Branch(self, config, models, run, self._model_config, given, self._token, self._progress)

    def trunk(self, method: str) -> Branch:
        """The branch that measures for all points of a method."""
        if method not in self._trunks:
            run = RunFolder(self.run.path / method)
            self._trunks[method] = self.branch(config_of(self._config, method), run, self.models(run))
        return self._trunks[method]

    def healing_settings(self, recipe: str) -> HealingConfig:
        """Healing settings of all points of a recipe: each gets as many tokens as the whole original would.

        Args:
            recipe: of healing.
        """
        if recipe not in self._settings:
            assert self._figures is not None
            self._settings[recipe] = healing.resolve(
                self._config.healing,
                recipe=recipe,
                base_model=self._source.ref.id,
                limit=self._limit,
                parameters=self._figures.parameters,
                device=first_device(self.original()),
                run_folder=self._healing_run(recipe).path,
            )
        return self._settings[recipe]

    def healing_texts(self, recipe: str) -> dict[str, Samples]:
        """Held-out and healing text of all points of a recipe.

        Args:
            recipe: of healing.
        """
        if recipe not in self._healing_texts:
            settings = self.healing_settings(recipe)
            texts = self._texts(self._healing_run(recipe), self._given_to(self._lead))
            self._healing_texts[recipe] = {"held-out": texts.held_out(settings), "healing": texts.healing(settings)}
        return self._healing_texts[recipe]

    def original_loss(self, recipe: str) -> float:
        """Loss of the original on the held-out text, nats per token.

        Args:
            recipe: of healing.
        """
        held_out, run = self.healing_texts(recipe)["held-out"], self._healing_run(recipe)
        inputs = {"model": self._source.ref, "text": held_out.use, "dtype": str(self._kwargs["dtype"])}
        path = run.path / "original_loss.json"
        if not run.has("original-loss", inputs):
            run.begin("original-loss")
            size = self.healing_settings(recipe).micro_batch_size or 1
            serial.write_text(path, serial.dumps(healing.held_out_loss(self.original(), held_out, batch_size=size)))
            run.finish("original-loss", inputs)
        return float(serial.read_json(path))

    def _healing_run(self, recipe: str) -> RunFolder:
        return RunFolder(self.run.path / f"healing-{recipe}")

    def _given_to(self, config: PrunerConfig) -> dict[str, Samples]:
        return self._given | ({} if self._whole is None or not config.searches else {"calibration": self._whole})

    def _texts(self, run: RunFolder, given: Mapping[str, Samples]) -> Texts:
        ref = self._source.ref
        texts = Texts(
            self._lead, self.tokenizer, self._limit, ref.digest, run, self.original, self._token, self._progress
        )
        for name, samples in given.items():
            texts.take(name, samples)
        return texts

    def _read_texts(self) -> tuple[dict[str, Samples], Samples | None]:
        """Texts by name, and the calibration text together with what a search holds out from it."""
        texts, given, whole = self._texts(self.run, {}), {}, None
        if self._lead.calibrates:
            given["calibration"] = texts.calibration()
            if self._lead.searches:
                whole = _joined(texts.calibration(), texts.selection())
        given["evaluation"] = texts.evaluation()
        return given, whole


def _joined(first: Samples, second: Samples) -> Samples:
    """The text that was parted into these two."""
    sequences = (*first.sequences, *second.sequences)
    use = dataclasses.replace(
        first.use, samples=len(sequences), tokens=sum(map(len, sequences)), sha256=digest(sequences)
    )
    return Samples(sequences, use)


def _has_room(model: PreTrainedModel) -> bool:
    """Whether the model may stay in memory: small beside what is free, on one device, and not quantized."""
    placed = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(placed) > 1 or getattr(model, "hf_quantizer", None) is not None:
        return False
    device = first_device(model)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return _ROOM * parameter_bytes(model) < free
