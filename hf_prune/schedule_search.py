"""Judging slicing schedules: slice the original by one, and measure the loss on text held out from calibration."""

import logging
import time

from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import serial
from hf_prune.architecture import decoder_of
from hf_prune.config import PrunerConfig
from hf_prune.evaluation.perplexity import measure_text
from hf_prune.healing.budget import in_words
from hf_prune.models import Models
from hf_prune.planners.widths import MOST
from hf_prune.run_folder import RunFolder, digest
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.points import Widths
from hf_prune.surgery.slice import Text, slice_widths
from hf_prune.texts import Texts

logger = logging.getLogger(__name__)


class ScheduleJudge:
    """Tells how much a schedule loses; what was judged before, in this run folder, is not sliced again.

    Args:
        config: the recipe.
        models: hands out the original.
        texts: hands out calibration and selection text.
        tokenizer: of the model.
        run: where verdicts are kept.
        progress: whether to show bars.
    """

    def __init__(
        self,
        config: PrunerConfig,
        models: Models,
        texts: Texts,
        tokenizer: Tokenizer,
        run: RunFolder,
        progress: bool,
    ) -> None:
        self._config, self._models, self._texts = config.calibration, models, texts
        self._tokenizer, self._run, self._progress = tokenizer, run, progress

    def announce(self, seconds: float) -> None:
        """Say what the search will take, from the seconds that one pass over the calibration text took."""
        logger.info(
            "searching among up to %d schedules: each slices the whole model, which takes longer than the %s of one "
            "pass over the text; the first will tell how long", MOST, in_words(seconds),
        )  # fmt: skip

    def __call__(self, widths: Widths, options: SliceOptions) -> tuple[float, float]:
        """Loss in nats per token on the selection text, and its standard error.

        Args:
            widths: of the stream at each point.
            options: of the surgery, resolved.
        """
        calibration, selection = self._texts.calibration(), self._texts.selection()
        inputs = {
            "model": self._models.source.ref,
            "widths": widths,
            "options": options,
            "calibration": calibration.use,
            "selection": selection.use,
            "dtype": str(self._models.kwargs["dtype"]),
        }
        stage = f"schedule-{digest(inputs)[:12]}"
        path = self._run.path / f"{stage}.json"
        if not self._run.has(stage, inputs):
            started = time.perf_counter()
            text = Text(calibration.sequences, self._config.batch_size, self._run.path, self._progress)
            decoder = decoder_of(self._models.original(), self._models.source.ref.id)
            found = measure_text(
                slice_widths(decoder, widths, text, **vars(options)),
                self._tokenizer,
                selection,
                name="selection",
                window=selection.use.max_length,
                batch_size=self._config.batch_size,
            ).perplexity
            logger.info("this schedule took %s", in_words(time.perf_counter() - started))
            serial.write_text(path, serial.dumps([found.nll, found.standard_error]))
            self._run.finish(stage, inputs)
        loss, error = serial.read_json(path)
        return float(loss), float(error)
