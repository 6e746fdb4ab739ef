"""What benchmark tasks tell of cut models."""

from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.config import EvaluationConfig
from hf_prune.errors import ConfigError
from hf_prune.evaluation.harness import run_tasks
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.registry import measure
from hf_prune.selftext import model_limit


@measure(
    "task_accuracy",
    title="Accuracy on a benchmark task that is lost where each is left out",
    url="https://arxiv.org/abs/2407.16286",
    needs="tasks",
)
def task_accuracy(
    *,
    task: str = "",
    limit: int | None = 100,
    num_fewshot: int | None = None,
    task_path: str | None = None,
    batch_size: int = 4,
) -> "TaskDamage":
    """1 - accuracy on a task of lm-evaluation-harness, or on a group of tasks, without the unit.

    Accuracy is what the task is quoted by (see `hf_prune.evaluation.harness.run_tasks`); of a task that is quoted by
    something of which less is better, the damage is that. Of few questions, many cuts lose equally many: ties go to
    the lower layer, so let `limit` be well above the number of layers. What is chosen on a task is fit to that task:
    judge the result by others.

    Args:
        task: name of a task or group.
        limit: questions a task; None asks all.
        num_fewshot: examples before each question; None takes the task's own.
        task_path: folder of further task files (YAML) of the harness.
        batch_size: answers at once.

    Raises:
        ConfigError: no task is named, or an option means nothing.
    """
    if not task:
        raise ConfigError(
            "measure 'task_accuracy' has task=''; expected a task or group of lm-evaluation-harness, such as "
            "'arc_easy'"
        )
    return TaskDamage(
        EvaluationConfig(
            tasks=(task,), limit=limit, num_fewshot=num_fewshot, task_path=task_path, batch_size=batch_size
        )
    )


@dataclass(frozen=True)
class TaskDamage:
    """Asks models the questions of one task.

    Attributes:
        config: names the task.
    """

    config: EvaluationConfig

    def check(self, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        """Refuse a task that cannot be run, before any model is asked.

        Args:
            model: one of those that will be asked.
            tokenizer: its tokenizer.

        Raises:
            PruneError: see `hf_prune.evaluation.task_loading.check_tasks`.
        """
        check_tasks(self.config, tokenizer, model_limit(model.config))

    def __call__(self, model: PreTrainedModel, tokenizer: Tokenizer) -> float:
        """What a model loses on the task; lower is better.

        Args:
            model: whole or cut.
            tokenizer: its tokenizer.
        """
        results, _ = run_tasks(model, tokenizer, self.config)
        quoted = next(result for result in results if result.task == self.config.tasks[0] and result.main)
        return 1 - quoted.value if quoted.higher_is_better else quoted.value
