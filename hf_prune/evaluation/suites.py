"""Named sets of benchmark tasks, with the number of examples that each is asked with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_prune.figures import Perplexity, TaskResult

UIDL = "uidl"


@dataclass(frozen=True)
class Suite:
    """Tasks that belong together.

    Attributes:
        title: what it is, and where it is from.
        tasks: task or group of lm-evaluation-harness, and examples before each question; None takes the task's own.
    """

    title: str
    tasks: tuple[tuple[str, int | None], ...]


SUITES: dict[str, Suite] = {
    UIDL: Suite(
        "MMLU (5 examples), BoolQ (none), HellaSwag and GSM8K (the harness's own: none and 5): "
        "https://arxiv.org/abs/2403.17887",
        (("mmlu", 5), ("boolq", 0), ("hellaswag", None), ("gsm8k", None)),
    ),
    "slicegpt": Suite(
        "PIQA, WinoGrande, HellaSwag, ARC easy and challenge without examples: https://arxiv.org/abs/2401.15024",
        (("piqa", 0), ("winogrande", 0), ("hellaswag", 0), ("arc_easy", 0), ("arc_challenge", 0)),
    ),
    "quick": Suite(
        "three tasks of short questions without examples: a first look, not a paper's",
        (("arc_easy", 0), ("piqa", 0), ("winogrande", 0)),
    ),
}
"""By name.

`uidl`: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers" (https://arxiv.org/abs/2403.17887). MMLU
is asked with 5 examples, as its figures say (its appendix A.2 says none: give `num_fewshot=0` for that), BoolQ with
none. Its second version adds HellaSwag and GSM8K; the numbers of examples of these are the harness's, not known from
the paper. Its third figure, the loss on C4's validation split divided by log V, is `normalised_loss` of the evaluation
text, for which C4 has to be given as the dataset.

`slicegpt`: Ashkboos et al., "SliceGPT" (https://arxiv.org/abs/2401.15024), the five zero-shot tasks of its tables.

`quick`: ours.
"""


def expand(names: Sequence[str], num_fewshot: int | None = None) -> dict[str, int | None]:
    """Tasks that names stand for, in order, each once; of one that is named twice, the first counts.

    Args:
        names: tasks, groups or suites.
        num_fewshot: examples before each question of every task; None takes the suite's or the task's own.

    Returns:
        Task or group to its number of examples; None takes the task's own.
    """
    found: dict[str, int | None] = {}
    for name in names:
        for task, own in SUITES[name].tasks if name in SUITES else ((name, None),):
            found.setdefault(task, own if num_fewshot is None else num_fewshot)
    return found


def normalised_loss(text: Perplexity, vocabulary: int) -> TaskResult:
    """Loss divided by that of guessing every token alike: nll / ln V, 1 for a model that knows nothing.

    The third figure of "The Unreasonable Ineffectiveness of the Deeper Layers" (https://arxiv.org/abs/2403.17887,
    figure 1), where the text is C4's validation split; here it is the text that was evaluated on.

    Args:
        text: perplexity on the text.
        vocabulary: V, tokens that the model can predict.
    """
    return TaskResult(
        task=text.name,
        metric="loss / log V",
        filter="none",
        value=text.nll / math.log(vocabulary),
        standard_error=text.standard_error / math.log(vocabulary),
        higher_is_better=False,
        main=True,
        num_fewshot=None,
        samples=text.data.samples,
        limit=None,
        version="1",
        dataset=text.data.dataset,
        dataset_config=text.data.config,
        split=text.data.split,
    )
