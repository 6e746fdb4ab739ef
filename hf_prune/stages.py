"""The stages on one model, in order, each done once and remembered in the run folder."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import hf_prune
from hf_prune import calibration, environment, healing, serial
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.auto import AUTO, resolved
from hf_prune.choosing import Chooser
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import ConfigError
from hf_prune.evaluation.stage import Judge
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.fit import check_fitted
from hf_prune.healable import check_healing, check_unquantized, fitted_to, healing_recipe
from hf_prune.healing.choice import fitted
from hf_prune.healing.early import why_original
from hf_prune.healing.optimizer import check_optimizer
from hf_prune.healing.origin import Origin
from hf_prune.healing.settings import for_model
from hf_prune.models import LABELS, Label, Models
from hf_prune.origins import origin_of
from hf_prune.plan import carried_out_by, check_single_round
from hf_prune.records import Evaluation, Healing, ModelEvaluation, Plan, Scores
from hf_prune.run_folder import RunFolder
from hf_prune.soundness import check_blocks, check_plan
from hf_prune.streaming import check_room, must_stream
from hf_prune.surgery import apply_plan
from hf_prune.surgery.slice import Text
from hf_prune.texts import Texts


class Stages:
    """Measure, plan, prune, heal and evaluate one model. `Pruner` makes it from what people have.

    Args:
        config: the recipe.
        models: hands out the model as it was and as it becomes.
        tokenizer: of the model.
        run: where finished stages are kept.
        model_config: of the model, for its limits.
        token: of the Hub.
        progress: whether to show bars.

    Raises:
        ArchitectureError: the model cannot lose blocks.
    """

    def __init__(
        self,
        config: PrunerConfig,
        models: Models,
        tokenizer: Tokenizer,
        run: RunFolder,
        model_config: Any,
        token: str | bool | None,
        progress: bool,
    ) -> None:
        self.source = models.source
        self._quantized = getattr(model_config, "quantization_config", None) is not None
        self.config = dataclasses.replace(
            self._resolved(config, models),
            base_model=self.source.ref.id,
            base_revision=self.source.ref.revision,
            hf_prune_version=hf_prune.__version__,
        )
        self.tokenizer, self.models, self.run = tokenizer, models, run
        self._text_config = model_config.get_text_config(decoder=True)
        self._limit = calibration.model_limit(self._text_config)
        self._progress, self._token = progress, token
        self._scores: Scores | None = None
        self._plan: Plan | None = None
        self._healing: Healing | None = None
        self._adapter: Path | None = None
        self._healed_here = False
        self._saved: Path | None = None
        self._read()

    def _resolved(self, config: PrunerConfig, models: Models) -> PrunerConfig:
        """The recipe without "auto" in it."""
        if config.method != AUTO:
            return config
        streams = must_stream(models)
        rescales = not streams and not self._quantized and models.can_rescale()
        gpu = torch.cuda.is_available() and not streams
        return resolved(config, self.source.ref.num_layers, gpu=gpu, rescales=rescales)

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now: original, pruned or healed; loaded when it is not in memory."""
        return self.models.current()

    def measure(self, group: Group = ALONE) -> Scores:
        """Measure what the recipe's planner chooses by.

        Args:
            group: the processes that share the samples; all of them call this, and process 0 alone needs a run folder
                that lasts.

        Raises:
            ConfigError: the recipe measures nothing, or looks at weights, and they are quantized.
            DataError: the calibration text cannot be had.
            MeasureError: NaN or infinite hidden states.
        """
        if self._scores is None:
            self._scores = self._chooser().measure(group)
        return self._scores

    def plan(self) -> Plan:
        """Choose the layers that go; measures first where the recipe needs it.

        Raises:
            ConfigError: no amount, or one that the model cannot lose; or it is lost in rounds, which `run` does.
        """
        if self._plan is None:
            check_single_round(self.config)
            self._plan = self._chooser().plan(self.measure)
            self._plan.save(self.run.path)
        return self._plan

    def _chooser(self) -> Chooser:
        return Chooser(
            self.config,
            self.models,
            self.texts,
            self.tokenizer,
            self.run,
            self._text_config,
            self._limit,
            self._quantized,
            self._progress,
        )

    def _text(self) -> Text:
        """Calibration text as slicing takes it."""
        samples = self.texts.calibration()
        return Text(samples.sequences, self.config.calibration.batch_size, self.run.path, self._progress)

    def use_plan(self, plan: Plan) -> None:
        """Carry out a plan that was made before, instead of choosing.

        Raises:
            ConfigError: it was made for another model, contradicts itself, or its file of fitted tensors is not there.
            CheckpointError: that file is another plan's.
        """
        check_plan(plan)
        check_blocks(plan)
        if not plan.removed and plan.slicing is None and plan.sparsity is None:
            raise ConfigError(f"the plan of method '{plan.method}' removes nothing; plan again")
        if (plan.model.num_layers, plan.model.model_type, plan.model.digest) != (
            self.source.ref.num_layers, self.source.ref.model_type, self.source.ref.digest,
        ):  # fmt: skip
            commit = plan.model.revision
            raise ConfigError(
                f"the plan was made for '{plan.model.id}' ({plan.model.num_layers} {plan.model.model_type} blocks, "
                f"digest {plan.model.digest[:12]}); '{self.source.ref.id}' has {self.source.ref.num_layers} "
                f"{self.source.ref.model_type} blocks and digest {self.source.ref.digest[:12]}. Plan again"
                + ("" if commit is None else f", or name the plan's commit (--revision {commit})")
            )
        check_fitted(plan)
        self._plan = plan
        self.config = carried_out_by(self.config, plan)
        self._read()  # which texts there are, and which must not repeat which, follows from the recipe

    def _read(self) -> None:
        """Texts and figures of this recipe; what lies in the run folder is taken up again."""
        source, tokenizer, limit = self.source.ref, self.tokenizer, self._limit
        self.texts = Texts(
            self.config, tokenizer, limit, source.digest, self.run, self._to_sample, self._token, self._progress
        )
        self.judge = Judge(self.config.evaluation, self.models, self.texts, tokenizer, self.run, limit, self._progress)

    def _to_sample(self) -> PreTrainedModel:
        """The original, to sample text from."""
        check_room(self.models, "sampling text from the model", "give a text (--dataset)")
        return self.models.original()

    def check_cut(self) -> None:
        """Refuse, before any work, a cut that needs the whole model where it must not be in memory as one.

        Raises:
            ConfigError: it is such a cut.
        """
        if self.config.recipe().cuts == "width":
            check_room(self.models, "slicing", "take a method that drops layers")
        if self.config.ships_code:
            check_room(
                self.models, "taking parts out of blocks", "let them fall silent (surgery 'drop', export='soft')"
            )

    def prune(self) -> PreTrainedModel:
        """Cut the model in memory, planning first where that was not done.

        A model that was handed over in memory is cut in place. Its removed blocks stay in memory with this object, so
        that the original can still be measured, and text sampled from it.

        Returns:
            The pruned model.

        Raises:
            ConfigError: it is pruned already, or must not be in memory as a whole.
        """
        if self.models.stage != "original":
            raise ConfigError(f"the model is {self.models.stage} already; make a new Pruner to prune it further")
        self.check_cut()
        plan = self.plan()
        check_room(self.models, "pruning in memory", "save it right away (save_pretrained), which copies what is kept")
        if plan.slicing is not None and plan.slicing.calibration != self.texts.calibration().use:
            # A plan that was made elsewhere: the record tells the text that is used here.
            slicing = dataclasses.replace(plan.slicing, calibration=self.texts.calibration().use)
            self._plan = plan = dataclasses.replace(plan, slicing=slicing)
        self.models.cut(plan, self._text)
        return self.model

    def prepare_healing(self) -> None:
        """Get the healing text now: early, so that a missing dataset is told before hours of work, or while the
        original is there that it is sampled from.

        Raises:
            DataError: the text cannot be had.
        """
        self.check_healing()  # what was not known before the plan
        settings = self._resolve_healing()
        self._original_loss(settings)
        self.texts.healing(settings)

    def check_healing(self) -> None:
        """Refuse what cannot be healed, before any work.

        Raises:
            MissingExtraError: a package is not installed that healing, or its optimizer or logger, needs.
            CheckpointError: the weights are quantized already.
            ConfigError: settings that cannot be, or not for this model; the original is needed and not at hand; or the
                model must not be in memory as a whole.
            HubError: the original is needed and cannot be fetched.
        """
        settings = check_healing(self.config, self._plan, original=self.models.has_original)
        check_room(self.models, "healing", "prune alone")
        check_unquantized(self.source.ref, self._quantized)
        self._check_trained(for_model(self.config.healing, str(settings.method), self.source.ref.id))
        check_optimizer(str(settings.optimizer), self.models.device)
        if why_original(settings):
            self.models.find_original()

    def _check_trained(self, settings: HealingConfig) -> None:
        """Refuse targets, losses and prefixes that cannot be had of this model, as far as the cut is known."""
        decoder, plan = decoder_of(self.models.outline(), self.source.ref.id), self._plan
        cut = self.models.stage != "original" and plan is not None
        if self.models.stage == "original" and plan is not None and plan.only_drops and plan.slicing is None:
            decoder = apply_plan(decoder_of(structural_copy(decoder.model), decoder.name), plan)
            cut = True
        fitted_to(self.config, decoder, settings, self._healing_origin() if cut else None)

    def _original_loss(self, settings: HealingConfig) -> float | None:
        """Loss of the original on the held-out text, where it was or can be measured without loading it again."""
        held_out = self.texts.held_out(settings)
        inputs = {"model": self.source.ref, "text": held_out.use, "dtype": str(self.models.kwargs["dtype"])}
        path = self.run.path / "original_loss.json"
        if not self.run.has("original-loss", inputs):
            if self.models.stage != "original":
                return None
            loss = healing.held_out_loss(self.model, held_out, batch_size=settings.micro_batch_size or 1)
            self.run.begin("original-loss")
            serial.write_text(path, serial.dumps(loss))
            self.run.finish("original-loss", inputs)
        return float(serial.read_json(path))

    def heal(self, group: Group = ALONE) -> Healing:
        """Heal the pruned model by LoRA or QLoRA, pruning first where that was not done.

        An interrupted run goes on from its last checkpoint when the same call is made with the same run folder.

        Args:
            group: the processes that train together; all of them call this, and process 0 alone needs a run folder
                that lasts.

        Raises:
            MissingExtraError: peft or accelerate is not installed.
            DataError: the healing text cannot be had.
        """
        if self.models.stage == "healed":
            raise ConfigError("the model is healed already; make a new Pruner to heal it again")
        self.check_healing()
        if self.models.stage == "original":
            self.prune()
        settings = group.share(self._resolve_healing)
        held_out, samples = group.share(lambda: (self.texts.held_out(settings), self.texts.healing(settings)))
        decoder = decoder_of(self.models.outline(), self.source.ref.id)
        # Only now: what slicing leaves of the maps is not known before, and no text depends on it.
        settings = fitted(decoder, settings, self.config.healing, self._healing_origin())
        folder, device = self.models.checkpoint(self.plan()).folder, self.models.device
        assert folder is not None
        self.models.release()  # the trainer loads its own copy, quantized where asked
        result = healing.heal(
            folder,
            samples,
            held_out,
            settings,
            run_folder=group.share(lambda: self.run.path / "healing"),
            base_model=self.source.ref.id,
            device=device,
            original_loss=group.share(lambda: self._original_loss(settings)),
            progress=self._progress,
            trust_remote_code=self.models.kwargs["trust_remote_code"],
            origin=self._healing_origin(),
            group=group,
        )
        self.models.replace(result.model, result.adapter if settings.output == "adapter" else None)
        self._adapter, self._healing, self._healed_here = result.adapter, result.record, True
        self.config = dataclasses.replace(self.config, healing=settings)
        self._saved = None  # what was saved before is another model
        self._healing.save(self.run.path)
        return self._healing

    def _healing_origin(self) -> Origin:
        """Where the pruned model comes from, as far as healing has to know."""
        key = f"{self.source.ref.digest} {self.models.kwargs['dtype']}"
        original = self.models.original if self.models.has_original else None
        return origin_of(self.plan(), original, key, self.models.original_source)

    def _resolve_healing(self) -> HealingConfig:
        return healing.resolve(
            self.config.healing,
            recipe=healing_recipe(self.config, self.plan(), original=self.models.has_original),
            base_model=self.source.ref.id,
            limit=self._limit,
            parameters=self.models.pruned_parameters(self.plan()),
            device=self.models.device,
            run_folder=self.run.path,
        )

    def check_evaluation(self) -> None:
        """Refuse benchmark tasks that cannot be run on this model, before any work.

        Raises:
            MissingExtraError: lm-evaluation-harness is not installed.
            ConfigError: an unknown task, or a chat template that is not there.
            DataError: the questions of a task cannot be had, or leave no room for an answer.
        """
        check_tasks(self.config.evaluation, self.tokenizer, self._limit)

    def evaluate(self) -> Evaluation:
        """Measure original, pruned and (where healed) healed model, as far as that was not done yet.

        Of a healed folder that was taken up, merging has taken the pruned weights: original and healed are measured.

        Speed comes last: all models are timed in turns. For that each lies in a folder (the pruned and the healed one
        in the run folder) and is loaded for its turn alone; the model in memory is dropped before, and `model` loads
        it again. Models that were handed over in memory stay there, and are timed as they are.
        """
        self.check_evaluation()
        labels = self._labels()
        for label in labels:
            self.evaluate_as(label)
        place = environment.describe(self.model)
        self.judge.time(labels, self._plan, self._healing)
        self._saved = None  # what was saved before lacks the figures
        record = Evaluation(tuple(self.evaluate_as(label) for label in labels), place)
        record.save(self.run.path)
        return record

    def evaluate_as(self, label: Label) -> ModelEvaluation:
        """Measure one of the three models; the original is best measured before surgery, while it is in memory.

        All but speed, which only `evaluate` measures.

        Raises:
            ConfigError: there is no such model yet, or not any more; or it must not be in memory as a whole.
        """
        there = self._labels()
        if label not in there:
            raise ConfigError(
                f"evaluate_as('{label}'): the model is {self.models.stage}; expected one of {', '.join(there)}. Prune "
                "or heal first; what a healed folder was before is not in it"
            )
        check_room(self.models, "evaluating", "evaluate nothing (--no-evaluate)")
        plan = None if label == "original" else self.plan()
        return self.judge.measure(label, plan, self._healing if label == "healed" else None)

    def _labels(self) -> list[Label]:
        """The models that are there; of a healed folder that was taken up, merging has taken the pruned weights."""
        labels = list(LABELS[: LABELS.index(self.models.stage) + 1])
        if self.models.stage == "healed" and self._adapter is None and not self._healed_here:
            labels.remove("pruned")
        return labels
