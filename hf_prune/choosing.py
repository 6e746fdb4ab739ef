"""Measure and plan: which of a model's blocks go, and what stands in for them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.amounts import NOT_WEIGHED, check_amount, check_units
from hf_prune.architecture import decoder_of
from hf_prune.comparing.allowed import check_forwards
from hf_prune.config import PrunerConfig
from hf_prune.distributed import Group
from hf_prune.errors import ConfigError
from hf_prune.evaluation.task_loading import task_files
from hf_prune.fit import fit, fitted_is_there
from hf_prune.judging import CutJudge
from hf_prune.measure import check_alone, measure_model
from hf_prune.measures.magnitude import quantized_error
from hf_prune.methods import Method
from hf_prune.models import Models
from hf_prune.plan import make_plan, scores_digest
from hf_prune.records import Plan, Scores
from hf_prune.registry import WITHOUT_TEXT, fitted, measure, planner
from hf_prune.run_folder import RunFolder
from hf_prune.schedule_search import ScheduleJudge
from hf_prune.scored import check_scored
from hf_prune.slicing.plan import check_reachable, make_slicing_plan
from hf_prune.slicing.read_costs import costs_of_config
from hf_prune.slicing.slicer import check_tokens
from hf_prune.streaming import check_room, walkable
from hf_prune.task_judge import TaskJudge
from hf_prune.texts import Texts


@dataclass(frozen=True)
class Chooser:
    """Chooses by one recipe on one model; what was found lies in the run folder, and is found there again.

    Attributes:
        config: the recipe.
        models: of the run.
        texts: of the run.
        tokenizer: of the model.
        run: where finished stages are kept.
        text_config: of the model.
        limit: longest text that the model takes, in tokens.
        quantized: whether its weights are.
        progress: whether to show bars.
    """

    config: PrunerConfig
    models: Models
    texts: Texts
    tokenizer: Tokenizer
    run: RunFolder
    text_config: Any
    limit: int
    quantized: bool
    progress: bool

    def measure(self, group: Group) -> Scores:
        """Measure the distances that the recipe's planner chooses by, in one pass over the calibration text.

        Args:
            group: the processes that share the samples; all of them call this, and process 0 alone needs a run folder
                that lasts.

        Raises:
            ConfigError: the recipe measures nothing, or looks at weights, and they are quantized.
            DataError: the calibration text cannot be had.
            MeasureError: NaN or infinite hidden states.
        """
        recipe = self.config.recipe()
        if recipe.measure is None:
            raise ConfigError(f"method '{recipe.name}' measures nothing; give measure='angular' to measure anyway")
        needs = measure.get(recipe.measure).needs
        if needs != "pass":
            check_alone(recipe.measure, group)
        # Local copies may differ in their files' times, and so in their digests.
        group.agree("model", dataclasses.replace(self.models.source.ref, digest=""))
        if self.quantized and needs in ("gradients", "weights"):
            raise quantized_error(recipe.measure, self.models.source.ref.id)
        samples = group.share(self.texts.calibration) if needs not in WITHOUT_TEXT else None
        inputs = {
            "model": self.models.source.ref,
            "measure": recipe.measure,
            "options": self.config.options("measure"),
            "unit": recipe.unit,
            "text": None if samples is None else samples.use,
            "task files": self._task_files(),
            "dtype": str(self.models.kwargs["dtype"]),
        }
        scores = group.share(lambda: Scores.load(self.run.path) if self.run.has("measure", inputs) else None)
        if scores is None:
            batch_size = self.config.calibration.batch_size
            if needs != "pass":
                check_room(self.models, f"measure '{recipe.measure}'", "take one of a single pass")
            sequences = () if samples is None else samples.sequences
            decoder, weights = walkable(self.models, sequences, batch_size)
            scores = measure_model(
                decoder,
                samples,
                model=self.models.source.ref,
                name=recipe.measure,
                options=self.config.options("measure"),
                batch_size=batch_size,
                progress=self.progress,
                group=group,
                weights=weights,
                scratch=self.run.path,
                unit=recipe.unit,
                max_forwards=self.config.max_forwards,
                tokenizer=self.tokenizer,
            )
            if group.leads:
                self.run.begin("measure")
                scores.save(self.run.path)
                self.run.finish("measure", inputs)
        return scores

    def plan(self, measured: Callable[[], Scores]) -> Plan:
        """What goes, and what stands in for it; taken up again where it was found before.

        Args:
            measured: gives what the recipe's measure finds; asked where the planner needs it.

        Raises:
            ConfigError: no amount, or one that the model cannot lose; or the planner cannot choose by the measure.
        """
        check_amount(self.config, self.models.source.ref.num_layers, self.models.source.ref.id)
        if self.config.layers is None:
            check_scored(self.config.recipe())
            check_forwards(self.config, self.models.source.ref)
        if self.config.recipe().cuts == "width":
            return self._widths(measured)
        return self._units(measured)

    def _units(self, measured: Callable[[], Scores]) -> Plan:
        recipe, chosen = self.config.recipe(), self.config.layers is not None
        searches = not chosen and planner.get(recipe.planner).needs == "judge"
        fits = recipe.surgery in fitted
        if searches or fits:
            check_room(self.models, f"method '{recipe.name}'", "take one that measures in a single pass and drops")
        by_weight = self.config.sparsity is not None and self.config.amount_of not in ("layers", "weights")
        sizes = NOT_WEIGHED
        if by_weight or recipe.unit != "block":
            length = min(self.config.calibration.max_length, self.limit)
            sizes = self.models.sizes(length if self.config.amount_of == "flops" else None)
            check_units(self.config, self.models.source.ref, sizes)
        scores = measured() if recipe.measure is not None and not chosen and not searches else None
        if not searches and not fits:
            return make_plan(self.config, self.models.source.ref, sizes, scores)
        samples = self.texts.calibration() if self.config.calibrates else None
        inputs = {
            "model": self.models.source.ref,
            "config": {
                name: getattr(self.config, name)
                for name in ("method", "drop_layers", "layers", "sparsity", "protect", "max_forwards")
            },
            "amount of": self.config.amount_of,
            "recipe": recipe,
            "options": [self.config.options(kind) for kind in ("measure", "planner", "surgery")],
            "scores": None if scores is None else scores_digest(scores),
            "text": None if samples is None else samples.use,
            "task files": self._task_files(),
            "seed": self.config.calibration.seed,
            "dtype": str(self.models.kwargs["dtype"]),
        }
        if self.run.has("plan", inputs) and fitted_is_there(made := Plan.load(self.run.path)):
            return made
        sequences = () if samples is None else samples.sequences
        judge = self._cut_judge(recipe, sequences) if searches else None
        plan = make_plan(self.config, self.models.source.ref, sizes, scores, judge)
        if judge is not None:
            plan = dataclasses.replace(plan, forwards=judge.forwards)
        plan = dataclasses.replace(plan, data=None if samples is None else samples.use)
        self.run.begin("plan")
        if fits:
            plan = fit(
                plan,
                decoder_of(self.models.original(), self.models.source.ref.id),
                recipe.surgery,
                self.config.options("surgery"),
                self.run.path,
                sequences=sequences,
                batch_size=self.config.calibration.batch_size,
                seed=self.config.calibration.seed,
                progress=self.progress,
            )
        plan.save(self.run.path)
        self.run.finish("plan", inputs)
        return plan

    def _task_files(self) -> list[tuple[str, int, int]]:
        return task_files(self.config.options("measure").get("task_path"))

    def _cut_judge(self, recipe: Method, sequences: Sequence[torch.Tensor]) -> CutJudge | TaskJudge:
        if recipe.measure is None:
            raise ConfigError(
                f"planner '{recipe.planner}' tries cuts on the model and needs a measure to judge them by, such as "
                f"'kl'; method '{recipe.name}' names none (measure=..., --measure)"
            )
        if measure.get(recipe.measure).needs == "tasks":
            return TaskJudge(
                decoder_of(self.models.original(), self.models.source.ref.id),
                self.tokenizer,
                recipe.measure,
                self.config.options("measure"),
                progress=self.progress,
                limit=self.config.max_forwards,
            )
        return CutJudge(
            decoder_of(self.models.original(), self.models.source.ref.id),
            sequences,
            recipe.measure,
            self.config.options("measure"),
            batch_size=self.config.calibration.batch_size,
            scratch=self.run.path,
            progress=self.progress,
            limit=self.config.max_forwards,
        )

    def _widths(self, measured: Callable[[], Scores]) -> Plan:
        settings, width = self.config.calibration, self.text_config.hidden_size
        check_tokens(settings.samples * min(settings.max_length, self.limit), width, self.models.source.ref.id)
        costs = costs_of_config(self.text_config, self.models.source.ref.id)
        check_reachable(self.config, self.models.source.ref, costs)
        if self.config.searches:
            check_room(self.models, "slicing", "take a method that drops layers")
        scores = measured() if self.config.recipe().measure is not None else None
        judge = selection = None
        if self.config.searches:
            judge = ScheduleJudge(self.config, self.models, self.texts, self.tokenizer, self.run, self.progress)
            selection = self.texts.selection().use
            judge.announce(0.0 if scores is None else scores.seconds)
        return make_slicing_plan(
            self.config,
            self.models.source.ref,
            costs,
            scores,
            judge=judge,
            selection=selection,
            calibration=self.texts.calibration().use,
            scores_digest=None if scores is None else scores_digest(scores),
        )
