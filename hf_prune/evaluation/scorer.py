"""The model as lm-evaluation-harness asks it. This module imports the harness: call `import_harness()` before it."""

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.errors import DataError
from hf_prune.evaluation.task_loading import new_tokens


class Scorer(HFLM):
    """The harness's model, which also counts tokens: of answers, and of questions that are too long.

    Log-probabilities are computed in float32: summed in bfloat16, those of long answers tie.

    Args:
        model: the causal LM in memory; neither its config nor its generation config is changed.
        tokenizer: its tokenizer, which is copied: the harness gives it a padding token.
        batch_size: sequences at once.
        limit: positions that the model can take.

    Attributes:
        answer_tokens: tokens of each scored answer, by question and answer.
        truncated: by task, the numbers of the questions whose beginning was cut off to make the rest fit.

    Raises:
        DataError: the tokenizer has no token to begin a text with.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, batch_size: int, limit: int) -> None:
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has neither a start nor an end token; benchmark tasks need one of them")
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=limit,
            softmax_dtype="float32",
        )
        self.answer_tokens: dict[tuple[str, str], int] = {}
        self.truncated: dict[str, set[int]] = {}
        self._asked: list[Any] = []

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score answers as the harness does, and remember which questions they are to."""
        self._asked = requests
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if override_bs is None:  # else windows of a long text, which fit
            for asked, (texts, context, answer) in zip(self._asked, requests, strict=True):
                self._note(asked, len(context), len(answer))
                self.answer_tokens[texts] = len(answer)
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Write answers as the harness does."""
        for asked in requests:
            question, options = asked.args
            if len(self.tok_encode(question)) > self.max_length - new_tokens(options):
                self.truncated.setdefault(asked.task_name, set()).add(asked.doc_id)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _note(self, asked: Any, context: int, answer: int) -> None:
        """The last token of an answer is predicted and never read, so one more than the limit fits."""
        if not 0 < answer <= self.max_length:
            raise DataError(
                f"task '{asked.task_name}', question {asked.doc_id}: an answer of {answer} tokens, and the model "
                f"takes 1 to {self.max_length}; leave the task out, or set a limit that stops before it"
            )
        if context + answer > self.max_length + 1:
            self.truncated.setdefault(asked.task_name, set()).add(asked.doc_id)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the records say what the model is, and the harness would ask the Hub."""
        return {}
