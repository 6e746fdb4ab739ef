"""One point's stages, which take from the sweep what all points share."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.distributed import ALONE, Group
from hf_prune.evaluation.stage import Judge
from hf_prune.loading import Source
from hf_prune.models import Models
from hf_prune.records import Plan, Scores
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples
from hf_prune.stages import Stages
from hf_prune.surgery.slice import Text
from hf_prune.sweeping.original import Original
from hf_prune.texts import Texts

if TYPE_CHECKING:
    from hf_prune.sweeping.shared import Shared


class SharedModels(Models):
    """The models of one recipe; the original comes from the sweep, which need not load it again.

    Args:
        source: the base model.
        tokenizer: of all of them.
        run: where the pruned checkpoint is kept.
        kwargs: of `loading.load_model`.
        original: hands out the original.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        run: RunFolder,
        kwargs: dict[str, Any],
        original: Original,
    ) -> None:
        super().__init__(source, tokenizer, run, kwargs)
        self._base = original

    def current(self) -> PreTrainedModel:
        """The model as it is now."""
        if self._current is None and self.stage == "original":
            self._current = self._base.get()
        return super().current()

    def cut(self, plan: Plan, text: Callable[[], Text]) -> None:
        """See `Models.cut`; surgery that writes into weights gets weights of its own to write into."""
        left = self._current is None and self._run.has("pruned", self._inputs(plan))  # by a call that was killed
        if self._base.kept and not left and not plan.only_drops and plan.slicing is None:
            self._current = copy.deepcopy(self.current())
        super().cut(plan, text)

    @property
    def untouched(self) -> bool:
        """Never: points share one original, which a sweep has in memory."""
        return False

    def original(self) -> PreTrainedModel:
        """The uncut model."""
        return self.current() if self.stage == "original" else self._base.get()


class Branch(Stages):
    """The stages of one recipe of a sweep. See `Stages`.

    Args:
        shared: what all points share.
        config: the recipe.
        models: hands out the model as it was and as it becomes.
        run: where its own stages are kept.
        model_config: of the model.
        given: texts that are there already.
        token: of the Hub.
        progress: whether to show bars.
    """

    def __init__(
        self,
        shared: "Shared",
        config: PrunerConfig,
        models: SharedModels,
        run: RunFolder,
        model_config: Any,
        given: Mapping[str, Samples],
        token: str | bool | None,
        progress: bool,
    ) -> None:
        self._shared, self._given = shared, given
        self._trunk: Branch | None = None
        super().__init__(config, models, shared.tokenizer, run, model_config, token, progress)

    @property
    def further(self) -> Mapping[str, Samples]:
        """Texts to evaluate on beside the first, by name."""
        return self._shared.further

    def grow_from(self, trunk: "Branch") -> "Branch":
        """Take scores from another branch, which measures once for all amounts."""
        self._trunk = trunk
        return self

    def measure(self, group: Group = ALONE) -> Scores:
        """The scores of the method, measured once for all amounts."""
        if self._trunk is not None:
            return self._trunk.measure(group)
        if self._scores is not None:
            return self._scores
        try:
            return super().measure(group)
        finally:
            self.models.release()  # where there is little room, no point has any beside a second original

    def _read(self) -> None:
        source, limit, progress = self.source.ref, self._limit, self._progress
        self.texts = Texts(
            self.config, self.tokenizer, limit, source.digest, self.run, self.models.original, self._token, progress
        )
        for name, samples in self._given.items():
            self.texts.take(name, samples)
        self.judge = Judge(
            self.config.evaluation,
            self.models,
            self.texts,
            self.tokenizer,
            self.run,
            limit,
            progress,
            shared=self._shared.judged,
            further=self._shared.further,
        )

    def _resolve_healing(self) -> HealingConfig:
        return self._shared.healing_settings(self._shared.healing_of(self.config))

    def _original_loss(self, settings: HealingConfig) -> float | None:
        return self._shared.original_loss(self._shared.healing_of(self.config))
