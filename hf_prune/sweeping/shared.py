"""What the points of a sweep share, each made once: the original, its figures, the texts, and each method's scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import calibration, environment, healing, loading, serial
from hf_prune.architecture.decoder import first_device
from hf_prune.config import EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.evaluation.stage import Judge, text_name
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.healable import healing_recipe
from hf_prune.loading import Source
from hf_prune.records import Environment, ModelEvaluation, TextUse
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples, digest
from hf_prune.sweeping.amounts import config_of
from hf_prune.sweeping.branch import Branch, SharedModels
from hf_prune.sweeping.further import check_apart, read_further
from hf_prune.sweeping.original import Original
from hf_prune.texts import Texts


class Shared:
    """Hands out what is made once.

    Attributes:
        folder: of the sweep.
        run: where all that is shared is kept.
        judged: where the original's figures and predictions are kept.
        tokenizer: of the model.
        further: texts to evaluate on beside the first, by name.

    Args:
        source: the base model.
        model_config: its config.
        config: what all points share.
        methods: recipe names.
        kwargs: of `loading.load_model`.
        folder: of the sweep.
        token: of the Hub.
        progress: whether to show bars.
        healing: recipe by which all are healed; None heals each by that of its method.
        also: further texts to evaluate on, as evaluation settings.
        first: the same for another seed: its original, figures and evaluation text are these ones' too.
        name: of the folder, below `folder`, where all that is shared is kept.
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
        *,
        healing: str | None = None,
        also: Sequence[EvaluationConfig] = (),
        first: Self | None = None,
        name: str = "shared",
    ) -> None:
        self.folder, self.run = folder, RunFolder(folder / name)
        self.judged: RunFolder = self.run if first is None else first.judged
        self.tokenizer: Tokenizer = (
            loading.load_tokenizer(source, trust_remote_code=kwargs["trust_remote_code"])
            if first is None
            else first.tokenizer
        )
        self._first, self._healing = first, healing
        self._source, self._kwargs, self._config, self._model_config = source, kwargs, config, model_config
        self._token, self._progress = token, progress
        self._limit = calibration.model_limit(model_config.get_text_config(decoder=True))
        check_tasks(config.evaluation, self.tokenizer, self._limit)
        self._base: Original = Original(source, kwargs) if first is None else first._base
        self._figures: ModelEvaluation | None = None
        self._trunks: dict[str, Branch] = {}
        self._settings: dict[str, HealingConfig] = {}
        self._healing_texts: dict[str, dict[str, Samples]] = {}
        # The text of the method that needs most is that of all: a search holds some out, others measure nothing.
        own = [config_of(config, method) for method in methods]
        self._lead = max(own, key=lambda recipe: (recipe.searches, recipe.calibrates))
        self._given, self._whole = self._read_texts()
        self.further: dict[str, Samples] = {} if first is None else first.further
        if also and first is None:
            self.further = read_further(
                also,
                dataclasses.replace(config, method=self._lead.method),
                self._given,
                tokenizer=self.tokenizer,
                limit=self._limit,
                run=self.run,
                token=token,
                progress=progress,
            )
        check_apart(self._given, self._judging)

    def original(self) -> PreTrainedModel:
        """The original; see `Original.get`."""
        return self._base.get()

    def check_untouched(self) -> None:
        """See `Original.check_untouched`."""
        self._base.check_untouched()

    def figures(self) -> tuple[ModelEvaluation, Environment]:
        """The original's figures, and where they were measured."""
        if self._first is not None:
            return self._first.figures()
        models = self.models(self.run)
        texts = self._texts(self.run, self._given)
        judge = Judge(
            self._config.evaluation,
            models,
            texts,
            self.tokenizer,
            self.run,
            self._limit,
            self._progress,
            further=self.further,
        )
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
        return SharedModels(self._source, self.tokenizer, run, self._kwargs, self._base)

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
            given |= self.healing_texts(self.healing_of(config))
        return Branch(self, config, models, run, self._model_config, given, self._token, self._progress)

    def trunk(self, method: str) -> Branch:
        """The branch that measures for all points of a method."""
        if method not in self._trunks:
            run = RunFolder(self.run.path / method)
            self._trunks[method] = self.branch(config_of(self._config, method), run, self.models(run))
        return self._trunks[method]

    def healing_of(self, config: PrunerConfig) -> str:
        """The recipe that a method is healed by."""
        return self._healing or healing_recipe(config)

    def texts(self, recipe: str | None) -> dict[str, TextUse]:
        """Which texts these are, by what they are for; those of healing where its recipe is given."""
        named = self._given | ({} if recipe is None else self.healing_texts(recipe))
        return {name: text.use for name, text in named.items()}

    def healing_settings(self, recipe: str) -> HealingConfig:
        """Healing settings of all points of a recipe: each gets as many tokens as the whole original would.

        Args:
            recipe: of healing.
        """
        if recipe not in self._settings and self._first is not None:
            # As many tokens with each seed, also where the machine tells how many.
            settings = self._first.healing_settings(recipe)
            self._settings[recipe] = dataclasses.replace(settings, seed=self._config.healing.seed)
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
            # The recipe's own are each point's to fit: what is cut may be narrower than they are.
            asked, settings = self._config.healing, self._settings[recipe]
            open_ = {name: getattr(asked, name) for name in ("rank", "alpha", "last_blocks")}
            self._settings[recipe] = dataclasses.replace(settings, **open_)
        return self._settings[recipe]

    def healing_texts(self, recipe: str) -> dict[str, Samples]:
        """Held-out and healing text of all points of a recipe.

        Args:
            recipe: of healing.
        """
        if recipe not in self._healing_texts:
            settings = self.healing_settings(recipe)
            texts = self._texts(self._healing_run(recipe), self._given_to(self._lead))
            found = {"held-out": texts.held_out(settings), "healing": texts.healing(settings)}
            check_apart(found, self._judging)
            self._healing_texts[recipe] = found
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

    @property
    def _judging(self) -> dict[str, Samples]:
        """Every text that models are judged on."""
        evaluation = self._given["evaluation"]
        return {text_name(evaluation.use): evaluation, **self.further}

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
        given: dict[str, Samples] = {}
        whole = None
        if self._first is not None:
            given["evaluation"] = self._first._given["evaluation"]
        texts = self._texts(self.run, given)
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
