"""Any causal language model, pruned or not: found, pinned and loaded, to be measured as it is."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import calibration, environment, hub_pull, loading
from hf_prune.architecture import check_causal, layer_count
from hf_prune.checkpoint import check_checkpoint, folder_digest, read_header, weight_files
from hf_prune.config import SAME, EvaluationConfig, PrunerConfig
from hf_prune.evaluation import evaluate
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.evaluation.timing import Contestant, take_turns
from hf_prune.healing.adapter import CONFIG
from hf_prune.memory import give_back
from hf_prune.output import ADAPTER
from hf_prune.placement import load_kwargs
from hf_prune.record_base import Record
from hf_prune.records import Evaluation, ModelEvaluation, ModelRef
from hf_prune.samples import Samples

logger = logging.getLogger(__name__)

_LOADED_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


LABEL = "model"
"""What tables call a model that is measured alone."""


@dataclass(frozen=True)
class Measured(Record):
    """One model and its figures.

    Attributes:
        model: which.
        evaluation: its figures, labelled "model".
    """

    FILE: ClassVar[str] = "measured.json"

    model: ModelRef
    evaluation: Evaluation


@dataclass(frozen=True)
class Subject:
    """A model that is going to be measured.

    Attributes:
        ref: what records call it, with its Hub commit.
        folder: its files.
        config: as transformers reads it.
        tokenizer: of the model.
        limit: longest sequence it can take, in tokens.
        kwargs: of `loading.load_model`.
    """

    ref: ModelRef
    folder: Path
    config: PretrainedConfig
    tokenizer: Tokenizer
    limit: int
    kwargs: dict[str, Any]

    def load(self) -> PreTrainedModel:
        """The model.

        Raises:
            CheckpointError: weights are missing or of another shape.
        """
        return loading.load_model(loading.Source(self.ref, self.folder, False), prunable=False, **self.kwargs)

    @property
    def vocabulary(self) -> int:
        """Tokens that its logits speak of."""
        return int(self.config.get_text_config(decoder=True).vocab_size)

    @property
    def bytes(self) -> int:
        """Bytes that the weights take once loaded, by the headers of their files."""
        loaded = _LOADED_BYTES.get(str(self.kwargs["dtype"]).removeprefix("torch."))  # None for "auto"
        total = 0
        for path in weight_files(self.folder):
            for tensor in read_header(path).values():
                stored = _STORED_BYTES.get(tensor.dtype)
                total += tensor.size if loaded is None or stored is None else tensor.size // stored * loaded
        return total


def find(
    model_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Pin a model of the Hub or a folder, download it, and refuse what is no causal language model.

    An adapter that hf-prune has put beside the weights is not loaded, and a warning says so.

    Args:
        model_id: Hub id or folder.
        revision: branch, tag or commit, on the Hub.
        token: of the Hub; None takes the stored one.
        dtype: of the weights; "auto" takes the checkpoint's.
        device_map: as in transformers; "auto" where a GPU is there and None is given.
        trust_remote_code: whether code from the repo may run.

    Raises:
        HubError: no such repo or revision, no access, or offline with nothing cached.
        CheckpointError: pickles only, broken files, no tokenizer, or weights that disagree with the config.
        ArchitectureError: it is no causal language model.
        ConfigError: there is no such dtype or device.
    """
    kwargs = load_kwargs(dtype, device_map, trust_remote_code)
    code = ("*.py",) if trust_remote_code else ()
    resolved = hub_pull.resolve(str(model_id), revision, token)
    folder, name = resolved.folder, loading.bare_name(str(model_id))
    if folder is None:
        assert resolved.commit is not None
        folder = hub_pull.pull(resolved.id, resolved.commit, token, weights=False, allow_patterns=code)
    config = loading.read_config(folder, name, trust_remote_code=trust_remote_code)
    check_causal(config, name)
    text = config.get_text_config(decoder=True)
    if resolved.commit is not None:
        folder = hub_pull.pull(resolved.id, resolved.commit, token, allow_patterns=(*code, f"{ADAPTER}/{CONFIG}"))
    if (folder / ADAPTER / CONFIG).is_file():
        logger.warning(
            "the weights of '%s' are measured without the adapter that heals them ('%s'); for its figures: "
            "hf-prune verify %s",
            name,
            ADAPTER,
            model_id,
        )
    check_checkpoint(folder, text, name)
    digest = resolved.commit or folder_digest(folder)
    ref = ModelRef(name, resolved.commit, text.model_type, layer_count(text), digest)
    tokenizer = loading.load_tokenizer(loading.Source(ref, folder, False), trust_remote_code=trust_remote_code)
    return Subject(ref, folder, config, tokenizer, calibration.model_limit(text), kwargs)


def text_for(
    subject: Subject,
    model: PreTrainedModel,
    config: EvaluationConfig,
    *,
    limit: int,
    token: str | bool | None = None,
    progress: bool = False,
) -> Samples:
    """The text that a model is measured on: all of a dataset's, or sampled from the model itself where none is named.

    Args:
        subject: whose tokenizer cuts it.
        model: it is sampled from this one.
        config: which text, how much of it; `dataset="calibration"` means that none was named.
        limit: longest sequence, in tokens.
        token: of the Hub.
        progress: whether to show a bar.

    Raises:
        DataError: no text, no usable text, or no way to get it.
    """
    if config.dataset == SAME:
        config = dataclasses.replace(config, dataset=None)
    return calibration.load(
        config,
        stage="evaluation",
        method=PrunerConfig().recipe(),
        tokenizer=subject.tokenizer,
        model=model if config.dataset is None else None,
        limit=limit,
        token=token,
        shared=False,
        progress=progress,
    )


def measure_alone(
    subject: Subject,
    config: EvaluationConfig | None = None,
    *,
    token: str | bool | None = None,
    progress: bool = False,
) -> Measured:
    """Measure one model without any other.

    Args:
        subject: the model.
        config: which text, and what to measure.
        token: of the Hub.
        progress: whether to show bars.

    Raises:
        DataError: no text, too little of it, or prompts that don't fit.
        MeasureError: NaN or infinity in the logits, or weights that can't be counted.
    """
    config = config or EvaluationConfig()
    check_tasks(config, subject.tokenizer, subject.limit)
    config = dataclasses.replace(config, max_length=min(config.max_length, subject.limit))
    model = subject.load()
    samples = text_for(subject, model, config, limit=subject.limit, token=token, progress=progress)
    name = samples.use.dataset or f"sampled from the {LABEL}"
    figures = evaluate(model, subject.tokenizer, {name: samples}, config, label=LABEL, progress=progress)
    place = environment.describe(model)
    del model
    give_back()
    return Measured(subject.ref, Evaluation(timed((figures,), (subject,), config, progress), place))


def timed(
    figures: Sequence[ModelEvaluation], subjects: Sequence[Subject], config: EvaluationConfig, progress: bool = False
) -> tuple[ModelEvaluation, ...]:
    """Add speed, load time and what else `take_turns` gives, where it is asked for; no model may be in memory."""
    if not config.speed:
        return tuple(figures)
    turns = take_turns(
        [
            Contestant(made.label, subject.load, tuple(weight_files(subject.folder)))
            for made, subject in zip(figures, subjects, strict=True)
        ],
        config,
        progress=progress,
    )
    return tuple(timing.added_to(made) for made, timing in zip(figures, turns, strict=True))


def fit_together(one: Subject, other: Subject) -> bool:
    """Whether two models fit in free memory: 1.3 times their weights, and 1 GB for what a pass needs."""
    device = one.kwargs["device_map"]
    on_gpu = torch.cuda.is_available() and device not in (None, "cpu", "mps")
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    return 1.3 * (one.bytes + other.bytes) + 1e9 < free
