"""Original, pruned and healed model of one run, each measured once and remembered in the run folder."""

import dataclasses
import logging
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import serial
from hf_prune.config import EvaluationConfig
from hf_prune.evaluation.fidelity import Reference
from hf_prune.evaluation.report import evaluate, evaluate_original
from hf_prune.models import LABELS, Label, Models
from hf_prune.records import Healing, ModelEvaluation, Plan, TextUse
from hf_prune.run_folder import RunFolder
from hf_prune.texts import Texts

logger = logging.getLogger(__name__)


class Judge:
    """Measures the models of a run on the same text.

    Args:
        config: what to measure.
        models: hands out the models.
        texts: hands out the text.
        tokenizer: of the models.
        run: where figures and the original's logits are kept.
        limit: positions that the models can take.
        progress: whether to show bars.
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
    ) -> None:
        self._config = dataclasses.replace(config, max_length=min(config.max_length, limit))
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
        }
        stage = f"evaluation-{label}"
        path = self._run.path / f"{stage}.json"
        if self._run.has(stage, inputs):
            found = serial.from_dict(ModelEvaluation, serial.read_json(path))
        else:
            self._run.begin(stage)
            found = self._measure(label, plan)
            serial.write_text(path, serial.dumps(found))
            self._run.finish(stage, inputs)
        self._made[label] = found
        return found

    def _measure(self, label: Label, plan: Plan | None) -> ModelEvaluation:
        samples = self._texts.evaluation()
        logger.info("evaluating the %s model on %d tokens", label, samples.tokens)
        texts, reference = {text_name(samples.use): samples}, self._run.path / "reference.safetensors"
        if label == "original":
            figures, kept = evaluate_original(
                self._models.original(), self._tokenizer, texts, self._config, progress=self._progress
            )
            kept.save(reference)
            return figures
        model = self._model(label, plan)
        return evaluate(
            model,
            self._tokenizer,
            texts,
            self._config,
            label=label,
            reference=Reference.load(reference),
            progress=self._progress,
        )

    def _model(self, label: Label, plan: Plan | None) -> PreTrainedModel | Any:
        if label == self._models.stage:
            return self._models.current()
        assert plan is not None
        return self._models.pruned(plan)


def text_name(use: TextUse) -> str:
    """What tables call a text."""
    return use.dataset or "sampled from the original"
