"""The texts of one run: calibration, evaluation, held-out and healing text, disjoint and kept in the run folder."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import calibration
from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.errors import DataError
from hf_prune.methods import Method
from hf_prune.records import TextUse
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples

logger = logging.getLogger(__name__)

MOST_SAMPLED = 4 * 2**20
"""Tokens of healing text that the model writes at most: sampling is slow, and a longer budget reads it again."""

Stage = Literal["calibration", "evaluation", "healing"]


def was_sampled(use: TextUse) -> bool:
    """Whether a model wrote the text or the answers in it, so that nobody can look it up elsewhere."""
    return use.dataset is None or use.answers == "original"


class Texts:
    """Loads or samples each text once.

    Args:
        config: the recipe.
        tokenizer: of the model.
        limit: positions that the model can take.
        digest: of the base model's weights.
        run: where token ids are kept.
        original: gives the uncut model; called only where text is sampled from it.
        token: of the Hub.
        progress: whether to show bars.
    """

    def __init__(
        self,
        config: PrunerConfig,
        tokenizer: Tokenizer,
        limit: int,
        digest: str,
        run: RunFolder,
        original: Callable[[], PreTrainedModel],
        token: str | bool | None = None,
        progress: bool = True,
    ) -> None:
        self._config, self._tokenizer, self._limit, self._digest = config, tokenizer, limit, digest
        self._run, self._original, self._token, self._progress = run, original, token, progress
        self._method: Method = config.recipe()
        self._made: dict[str, Samples] = {}

    def take(self, name: str, samples: Samples) -> None:
        """Use a text that is there already, such as one that a finished folder ships.

        Args:
            name: "calibration", "evaluation", "held-out" or "healing".
            samples: the text.
        """
        self._made[name] = samples

    def calibration(self) -> Samples:
        """Text that the model is measured, and sliced, on."""
        return self._calibration()[0]

    def selection(self) -> Samples:
        """Text that schedules are chosen on: as the calibration text, and held out from it.

        Raises:
            DataError: the dataset holds too little for both.
        """
        held = self._calibration()[1]
        if held is None:
            raise DataError(
                "there is one calibration sequence alone, and none to choose a schedule on; expected at least 2. Give "
                "more text, or a slice_base instead of the search"
            )
        return held

    def evaluation(self) -> Samples:
        """Text that models are judged on."""
        return self._get("evaluation", "evaluation", self._config.evaluation, None)

    def held_out(self, config: HealingConfig) -> Samples:
        """Text like the healing text, that healing never sees.

        Args:
            config: resolved healing settings.
        """
        config = dataclasses.replace(config, seed=config.seed + 1)
        return self._get("held-out", "healing", config, config.held_out_samples)

    def healing(self, config: HealingConfig) -> Samples:
        """Text to train on.

        Args:
            config: resolved healing settings (steps, tokens, batch_size and max_length are set).
        """
        assert config.steps and config.batch_size and config.tokens and config.max_length
        self.held_out(config)
        wanted, budget = config.steps * config.batch_size, config.tokens
        batch = config.batch_size * config.max_length
        if self._samples_itself(config.dataset):
            # Sampled text is exactly max_length long, so that the budget tells how much of it is worth sampling.
            return self._get(
                "healing", "healing", config, min(wanted, -(-min(budget, MOST_SAMPLED) // config.max_length))
            )
        if config.self_distill:
            budget = min(budget, MOST_SAMPLED)
        if config.packing:
            # Steps count rows then, each of which holds up to max_length tokens in sequences of two and more.
            budget = min(budget, config.steps * batch)
            wanted = budget + batch
        # One batch more than the budget, so that no sequence comes twice before all have come once.
        return self._get("healing", "healing", config, wanted, budget + batch)

    def samples_itself(self, stage: Stage) -> bool:
        """Whether the text of a stage is sampled from the original model."""
        return self._samples_itself(getattr(self._config, stage).dataset)

    def files(self) -> dict[str, list[tuple[str, int, int]]]:
        """Of each stage that reads local text: names, sizes and times of the files, to tell when they have changed."""
        return {stage: self.local_files(self._config, stage) for stage in ("calibration", "evaluation", "healing")}

    def sampled_files(self) -> list[Path]:
        """Token files of the texts that were sampled from the model: nobody can look those up elsewhere."""
        return [self._run.tokens(name) for name, made in self._made.items() if was_sampled(made.use)]

    def _calibration(self) -> tuple[Samples, Samples | None]:
        """Calibration text, and what is held out from it where a search needs that: one fifth of what was read."""
        wanted = self._config.calibration.samples
        held = max(1, wanted // 4) if self._config.searches else 0
        found = self._get("calibration", "calibration", self._config.calibration, wanted + held if held else None)
        if not held:
            return found, None
        held = max(1, len(found.sequences) // 5)
        kept = len(found.sequences) - held
        if kept < 1:
            return found, None
        return found.part(0, kept), found.part(kept, len(found.sequences))

    @staticmethod
    def local_files(config: PrunerConfig, stage: Stage) -> list[tuple[str, int, int]]:
        """Names, sizes and times of the files that a stage reads; none where its text does not lie here.

        Args:
            config: the recipe.
            stage: whose text.
        """
        source = calibration.resolve(getattr(config, stage), stage, config.recipe(), config.calibration)
        path = None if source is None else source.path
        if path is None:
            return []
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def _samples_itself(self, dataset: str | None) -> bool:
        if dataset == calibration.SAME:
            dataset = self._config.calibration.dataset
        return dataset is None

    def _get(
        self,
        name: str,
        stage: Stage,
        config: CalibrationConfig | EvaluationConfig | HealingConfig,
        samples: int | None,
        tokens: int | None = None,
    ) -> Samples:
        if name in self._made:
            return self._made[name]
        others, shared = self._others(name, stage), calibration.shares(self._config, stage)
        inputs = {
            "model": self._digest,
            "stage": name,
            "config": config,
            "calibration": self._config.calibration,
            "dataset": self._method.dataset,
            "files": self.local_files(self._config, stage),
            "shared": shared,
            "limit": self._limit,
            "samples": samples,
            "tokens": tokens,
            "others": {key: value.use.sha256 for key, value in others.items()},
        }
        found = self._run.load_samples(name, inputs)
        if found is None:
            exclude = frozenset().union(*(value.hashes() for value in others.values()))
            distilled = isinstance(config, HealingConfig) and config.self_distill
            if distilled:
                exclude = exclude.union(*(value.prompts() for value in others.values()))
            found = calibration.load(
                config,
                stage=stage,
                method=self._method,
                tokenizer=self._tokenizer,
                model=self._original() if distilled or self._samples_itself(config.dataset) else None,
                limit=self._limit,
                samples=samples,
                tokens=tokens,
                exclude=exclude,
                token=self._token,
                calibration=self._config.calibration,
                shared=shared,
                progress=self._progress,
            )
            repeated = (found.hashes() | (found.prompts() if distilled else frozenset())) & exclude
            if repeated:
                raise DataError(
                    f"the {name} text shares {len(repeated)} of {len(found.sequences)} sequences with other text of "
                    "this run; expected disjoint texts. Take another --seed or dataset"
                )
            self._run.save_samples(name, found, inputs)
        self._made[name] = found
        return found

    def _others(self, name: str, stage: Stage) -> dict[str, Samples]:
        """The texts that this one must not repeat: those that come before it, in the order in which texts are made.

        Text of a dataset and text that the model writes are never the same.
        """
        itself = self.samples_itself(stage)
        earlier: dict[str, Samples] = {}
        if name != "calibration" and self._config.calibrates and self.samples_itself("calibration") == itself:
            self.calibration()
            earlier["calibration"] = self._made["calibration"]
        if name == "calibration" and "evaluation" in self._made and self.samples_itself("evaluation") == itself:
            earlier["evaluation"] = self._made["evaluation"]
        if name in ("held-out", "healing") and self.samples_itself("evaluation") == itself:
            earlier["evaluation"] = self.evaluation()
        if name == "healing":
            earlier["held-out"] = self._made["held-out"]
        return earlier
