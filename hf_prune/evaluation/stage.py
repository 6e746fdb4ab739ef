"""Original, pruned and healed model of one run, each measured once and remembered in the run folder."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import serial
from hf_prune.config import EvaluationConfig
from hf_prune.evaluation.fidelity import Reference
from hf_prune.evaluation.report import evaluate, evaluate_original
from hf_prune.evaluation.stability import Answers, AnswerSheet
from hf_prune.evaluation.task_loading import task_files
from hf_prune.evaluation.timing import Contestant, Timing, take_turns
from hf_prune.models import LABELS, Label, Models
from hf_prune.records import Healing, ModelEvaluation, Plan, TextUse
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples
from hf_prune.texts import Texts

logger = logging.getLogger(__name__)


class Judge:
    """Measures the models of a run on the same text.

    Args:
        config: what to measure.
        models: hands out the models.
        texts: hands out the text.
        tokenizer: of the models.
        run: where figures are kept.
        limit: positions that the models can take.
        progress: whether to show bars.
        shared: where the original's figures and logits are kept, so that several runs measure it once; `run` when
            None.
        further: texts to measure on beside the first, by name.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        models: Models,
        texts: Texts,
        tokenizer: Tokenizer,
        run: RunFolder,
        limit: int,
        progress: bool = False,
        shared: RunFolder | None = None,
        further: Mapping[str, Samples] | None = None,
    ) -> None:
        self._further = further or {}
        self._shared = run if shared is None else shared
        self._asked, self._config = config, dataclasses.replace(config, max_length=min(config.max_length, limit))
        self._models, self._texts, self._tokenizer, self._run = models, texts, tokenizer, run
        self._progress = progress
        self._made: dict[Label, ModelEvaluation] = {}

    @property
    def figures(self) -> tuple[ModelEvaluation, ...]:
        """What was measured so far: original, pruned, healed."""
        return tuple(self._made[label] for label in LABELS if label in self._made)

    def measure(self, label: Label, plan: Plan | None, healing: Healing | None) -> ModelEvaluation:
        """Measure one of the models, the original before the others.

        Args:
            label: which.
            plan: what was cut; None for the original.
            healing: how it was healed; None unless it was.
        """
        if label in self._made:
            return self._made[label]
        if label != "original":
            self.measure("original", None, None)
        inputs = {
            "label": label,
            "model": self._models.source.ref,
            "plan": plan,
            "healing": healing,
            "config": self._config,
            "text": self._texts.evaluation().use,
            "dtype": str(self._models.kwargs["dtype"]),
            "task files": task_files(self._config.task_path),
            "further": {name: text.use for name, text in self._further.items()},
        }
        stage = f"evaluation-{label}"
        run = self._shared if label == "original" else self._run
        path = run.path / f"{stage}.json"
        if run.has(stage, inputs):
            found = serial.from_dict(ModelEvaluation, serial.read_json(path))
        else:
            run.begin(stage)
            found = self._measure(label, plan)
            serial.write_text(path, serial.dumps(found))
            run.finish(stage, inputs)
        self._made[label] = found
        return found

    def time(self, labels: Sequence[Label], plan: Plan | None, healing: Healing | None) -> None:
        """Add speed, load time and what else `take_turns` gives to figures that are there.

        Args:
            labels: the models that take turns; all are measured already.
            plan: what was cut; None where only the original is there.
            healing: how it was healed; None unless it was.
        """
        if not self._config.speed or all(self._made[label].speed is not None for label in labels):
            return
        inputs = {
            "labels": list(labels),
            "model": self._models.source.ref,
            "plan": plan,
            "healing": healing,
            "config": self._config,
            "dtype": str(self._models.kwargs["dtype"]),
        }
        path = self._run.path / "speed.json"
        if self._run.has("speed", inputs):
            found = tuple(serial.from_dict(Timing, timing) for timing in serial.read_json(path))
        else:
            logger.info("timing %s in turns", ", ".join(labels))
            self._run.begin("speed")
            found = take_turns(self._contestants(labels, plan), self._config, progress=self._progress)
            serial.write_text(path, serial.dumps(found))
            self._run.finish("speed", inputs)
        for label, timing in zip(labels, found, strict=True):
            self._made[label] = timing.added_to(self._made[label])

    def _contestants(self, labels: Sequence[Label], plan: Plan | None) -> list[Contestant]:
        stored = {label: self._models.stored(label, plan) for label in labels}
        if stored[self._models.stage] is not None:
            self._models.release()
        return [
            Contestant(label, functools.partial(self._model, label, plan))
            if files is None
            else Contestant(label, files.load, files.files())
            for label, files in stored.items()
        ]

    def _measure(self, label: Label, plan: Plan | None) -> ModelEvaluation:
        samples = self._texts.evaluation()
        logger.info("evaluating the %s model on %d tokens", label, samples.tokens)
        if label == "original" and self._asked.max_length > self._config.max_length:
            logger.warning(
                "evaluation.max_length=%d is above the model's limit; using %d",
                self._asked.max_length,
                self._config.max_length,
            )
        texts = {text_name(samples.use): samples, **self._further}
        reference = self._shared.path / "reference.safetensors"
        answers = self._shared.path / "reference-answers.json"
        if label == "original":
            sheet = AnswerSheet()
            figures, kept = evaluate_original(
                self._models.original(), self._tokenizer, texts, self._config, sheet=sheet, progress=self._progress
            )
            kept.save(reference)
            if sheet.answers is not None:
                serial.write_text(answers, serial.dumps(sheet.answers))
            return figures
        sheet = AnswerSheet(serial.from_dict(Answers, serial.read_json(answers)) if self._config.tasks else None)
        model = self._model(label, plan)
        return evaluate(
            model,
            self._tokenizer,
            texts,
            self._config,
            label=label,
            reference=Reference.load(reference),
            sheet=sheet,
            progress=self._progress,
        )

    def _model(self, label: Label, plan: Plan | None) -> PreTrainedModel | Any:
        if label == "original":
            return self._models.original()
        if label == self._models.stage:
            return self._models.current()
        assert plan is not None
        return self._models.pruned(plan)


def text_name(use: TextUse) -> str:
    """What tables call a text."""
    return use.dataset or "sampled from the original"
