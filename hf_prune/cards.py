"""Records to a model card: facts are gathered here, `model_cards/template.md` only places them."""

import dataclasses
import functools
import importlib.resources
import logging
import re
from typing import Any

import jinja2
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_prune import card_slicing
from hf_prune import card_tables as tables
from hf_prune.card_commands import ADAPTER_FOLDER, command, quick_start
from hf_prune.card_metadata import HUB, Base, base_of, inherit, metadata, read_base_card
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.markdown import Markdown, bullets, code, escape, fence, link, one_line, printable
from hf_prune.methods import get_method
from hf_prune.records import Evaluation, Healing, ModelEvaluation, Plan, Scores, ranges
from hf_prune.writing import REPEATED, collapse

logger = logging.getLogger(__name__)

MANY = 0.3
"""Share of removed layers above which a card warns."""

FEW_SAMPLES = 100
"""Calibration samples below which a card warns."""

FEW_TOKENS = 20_000
"""Predicted tokens of an evaluation below which a card warns."""

RELOAD = {
    "full": "After saving, the weights were loaded again by plain `AutoModelForCausalLM` in a process of its own. "
    "Logits and greedily generated tokens for fixed inputs were compared with the model in memory, and agree.",
    "streamed": "After saving, keys, shapes and dtypes were compared with the stock model class, kept tensors byte "
    "for byte with the base, and fixed inputs were run block by block. The whole model was not loaded at once.",
    "none": "The saved weights were not loaded again before this card was written.",
}
"""What each level of the reload check did."""

CITATIONS = {
    "https://arxiv.org/abs/2403.17887": """@inproceedings{gromov2025unreasonable,
  title     = {The Unreasonable Ineffectiveness of the Deeper Layers},
  author    = {Gromov, Andrey and Tirumala, Kushal and Shapourian, Hassan and Glorioso, Paolo and Roberts, Daniel A.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2403.17887}
}""",
    **card_slicing.CITATIONS,
}
"""BibTeX of the methods' papers, by URL."""


def generate(
    config: PrunerConfig,
    plan: Plan,
    *,
    repo_id: str | None = None,
    scores: Scores | None = None,
    healing: Healing | None = None,
    evaluation: Evaluation | None = None,
    base_card: str | None = None,
    base_files: tuple[str, ...] = (),
    output: str = "merged",
    reload_level: str = "none",
    plot: str | None = None,
    widths_plot: str | None = None,
) -> ModelCard:
    """Write the model card of a pruned model from finished records.

    Args:
        config: the recipe, as resolved.
        plan: which layers were dropped, or how all were sliced.
        repo_id: where the model goes; None for a folder.
        scores: what was measured.
        healing: how it was healed; None when it was not.
        evaluation: original, pruned and healed side by side.
        base_card: text of the base repo's README.md; untrusted, only licence and language are read from it.
        base_files: names of the licence files that were carried over.
        output: "merged" (plain weights) or "adapter" (pruned weights with an adapter beside them).
        reload_level: "full", "streamed" or "none": how the saved weights were checked.
        plot: name of the heat map that lies beside the card.
        widths_plot: name of the drawing of a sliced model's widths that lies beside the card.

    Returns:
        The card; its text is `str(card)`.

    Raises:
        ConfigError: records that contradict each other, or a value that the card needs is missing.
        MeasureError: a figure that is not finite.
    """
    _check(plan, repo_id, scores, healing, evaluation, output, reload_level, (plot, widths_plot))
    base = base_of(plan, config.base_model, config.base_revision)
    title = repo_id.split("/")[-1] if repo_id else f"{base.name.split('/')[-1]}-pruned"
    inherited, notes = read_base_card(base_card)
    for note in notes:
        logger.warning(note)
    shipped = _shipped(healing, evaluation)
    data = metadata(
        plan,
        base,
        inherited,
        name=title,
        scores=scores,
        healing=healing,
        shipped=shipped,
        base_files=base_files,
        output=output,
    )
    method = get_method(plan.method)
    slicing = plan.slicing
    own_code = slicing is not None and not slicing.plain
    model_type = f"sliced_{plan.model.model_type}" if own_code else plan.model.model_type
    recorded = dataclasses.replace(config, base_model=base.name, base_revision=base.revision)
    warned = [*_warnings(plan, base, scores, healing, evaluation, shipped), *notes]
    text = _template().render(
        card_data=Markdown(data.to_yaml()),
        title=title,
        base=link(base.name, f"{HUB}/{base.name}") if base.on_hub else code(base.name),
        base_revision=code(base.revision) if base.revision else Markdown(""),
        warnings=bullets(warned, prefix="> - ") if warned else Markdown(""),
        quick_start=quick_start(repo_id, output, "shipped" if own_code else "stock"),
        package_start=quick_start(repo_id, output, "package") if own_code else Markdown(""),
        model_type=code(model_type),
        plan=plan,
        slicing=card_slicing.facts(plan, slicing) if slicing is not None else {},
        described=plan.describe(),
        reason=_sentence(plan.reason),
        layer_map=tables.layer_map(plan) if slicing is None else Markdown(""),
        method=link(method.title, method.paper),
        method_name=code(plan.method),
        choice=_choice(plan) if slicing is None else Markdown(""),
        calibration=tables.text_use(scores.data) if scores else Markdown(""),
        calibration_seconds=tables.duration(scores.seconds) if scores else "",
        plot=Markdown(plot or ""),
        widths_plot=Markdown(widths_plot or ""),
        evaluation=_evaluation_facts(evaluation) if evaluation else {},
        healing=_healing_facts(healing, output) if healing else {},
        command=fence(
            command(
                recorded,
                heal=healing is not None,
                heal_tokens=healing.tokens if healing and config.healing.tokens is None else None,
                recipe=repo_id or PrunerConfig.CONFIG_NAME,
            ),
            "bash",
        ),
        reload=_reload(plan, reload_level),
        licence=_licence(base, data.get("license_name") or data.get("license"), base_files),
        environments=_environments(scores, healing, evaluation),
        citation=_citation(plan, method.paper),
    )
    card = ModelCard(text)
    if card.data.to_dict() != data.to_dict():
        raise ConfigError(f"the card's metadata does not read back as written: {data.to_dict()!r}")
    return card


def _check(
    plan: Plan,
    repo_id: str | None,
    scores: Scores | None,
    healing: Healing | None,
    evaluation: Evaluation | None,
    output: str,
    reload_level: str,
    plots: tuple[str | None, ...],
) -> None:
    """Refuse records that do not belong together, before anything is written."""
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ConfigError(f"repo_id={one_line(repo_id)!r} is no Hub id; expected owner/name") from error
    if output not in ("merged", "adapter"):
        raise ConfigError(f"output={output!r}; expected 'merged' or 'adapter'")
    if reload_level not in RELOAD:
        raise ConfigError(f"reload_level={reload_level!r}; expected one of: {', '.join(RELOAD)}")
    for plot in plots:
        if plot is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png", plot):
            raise ConfigError(f"plot={plot!r}; expected the plain name of a .png file beside the card")
    if plan.slicing is not None:
        card_slicing.check(plan, plan.slicing)
    elif not plan.dropped:
        raise ConfigError(
            f"the plan of method '{plan.method}' removes no layer and slices none; there is nothing to write a card "
            "about"
        )
    elif plan.dropped[-1] >= plan.model.num_layers or plan.dropped[0] < 0:
        raise ConfigError(f"the plan drops layers {ranges(plan.dropped)}; the model has {plan.model.num_layers}")
    if (output == "adapter") != (healing is not None and healing.output == "adapter"):
        raise ConfigError(
            f"output={output!r}, but the healing record says {healing.output if healing else 'nothing was healed'!r}"
        )
    if scores is not None and scores.model.num_layers != plan.model.num_layers:
        raise ConfigError(
            f"the scores are of a model with {scores.model.num_layers} layers, the plan of one with "
            f"{plan.model.num_layers}; expected records of one model"
        )
    for model in evaluation.models if evaluation else ():
        if model.label not in ("original", "pruned", "healed"):
            raise ConfigError(
                f"the evaluation has a model {one_line(model.label)!r}; expected original, pruned or healed"
            )
        expected = plan.model.num_layers if model.label == "original" else len(plan.kept)
        if model.layers != expected:
            raise ConfigError(
                f"the evaluation's {model.label} model has {model.layers} layers; the plan says {expected}"
            )
        if plan.slicing is not None and model.label != "healed":  # an adapter beside the weights would count as well
            card_slicing.check_parameters(plan.slicing, model)
    if evaluation is not None:
        tables.check_same_texts(evaluation)


def _shipped(healing: Healing | None, evaluation: Evaluation | None) -> ModelEvaluation | None:
    label = "healed" if healing else "pruned"
    return next((m for m in evaluation.models if m.label == label), None) if evaluation else None


def _warnings(
    plan: Plan,
    base: Base,
    scores: Scores | None,
    healing: Healing | None,
    evaluation: Evaluation | None,
    shipped: ModelEvaluation | None,
) -> list[str]:
    """What a reader should know before anything else."""
    found = list(healing.warnings) if healing else []
    share = len(plan.dropped) / plan.model.num_layers
    if plan.slicing is not None:
        found += card_slicing.warnings(plan.slicing, MANY)
    elif share > MANY:
        found.append(
            f"{len(plan.dropped)} of {plan.model.num_layers} layers ({share:.0%}) are gone. Free generation and "
            "reasoning in several steps suffer first and most, before perplexity shows it."
        )
    if not healing:
        found.append("The model was not trained after the cut.")
    if shipped is None:
        found.append("The weights in this repository were not evaluated.")
    if not base.on_hub:
        found.append(f"The base was a local model named {one_line(base.name)}, so no base model is linked.")
    if plan.gap is not None and plan.gap_standard_error is not None and plan.gap < 2 * plan.gap_standard_error:
        found.append("The runner-up lies within two standard errors: other layers could have been chosen as well.")
    if scores is not None and scores.data.samples < FEW_SAMPLES:
        decided = "which layers go" if plan.slicing is None else "how wide each layer is"
        found.append(f"Only {scores.data.samples} samples decided {decided}.")
    for text in shipped.perplexity if shipped else ():
        if text.tokens < FEW_TOKENS:
            found.append(f"The figures on {one_line(text.name)} rest on {text.tokens:,} tokens only.")
        if text.data.dataset is None:
            found.append(
                f"{one_line(text.name)} is text that the original model wrote itself: a low perplexity there means "
                "closeness to the original, not quality."
            )
    original = next((m for m in evaluation.models if m.label == "original"), None) if evaluation else None
    if original is not None and shipped is not None and (fall := collapse(original, shipped)) is not None:
        before, after = map(tables.percent, fall)
        found.append(
            f"Free generation has collapsed: {after} of the {REPEATED}-grams in the completions below are repeats, "
            f"{before} in the original's."
        )
    if evaluation is not None and (evaluation.recovered or 0) < 0:
        found.append("Healing made the loss worse on the evaluation text.")
    return found


def _choice(plan: Plan) -> Markdown:
    """Distance, runner-up and gap, as far as the planner had them."""
    parts = []
    if plan.distance is not None:
        parts.append(f"The distance across the removed layers is {tables.number(plan.distance)}.")
    if plan.runner_up is not None:
        runner_up = f"The next best choice was layers {ranges(plan.runner_up)}"
        if plan.gap is not None:
            runner_up += f", {tables.number(plan.gap, plan.gap_standard_error)} farther"
        parts.append(f"{runner_up}.")
    return Markdown(" ".join(parts))


def _evaluation_facts(evaluation: Evaluation) -> dict[str, Any]:
    recovered = evaluation.recovered
    return {
        "table": tables.results_table(evaluation),
        "notes": tables.results_notes(evaluation),
        "generations": tables.generations(evaluation),
        "recovered": f"{recovered:.1%}" if recovered is not None else "",
    }


def _healing_facts(healing: Healing, output: str) -> dict[str, Any]:
    share = healing.merge_loss_share
    merge = ""
    if output == "merged" and share is not None:
        merge = f"Merging the adapter {'lost' if share >= 0 else 'added'} {abs(share):.1%} of what healing had gained."
    return {
        "name": "QLoRA" if healing.quantization else "LoRA",
        "quantization": healing.quantization or "not quantized",
        "settings": tables.settings_table(healing),
        "targets": Markdown(", ".join(code(name) for name in healing.target_modules)),
        "parameters": f"{healing.trained_parameters:,}",
        "steps": f"{healing.steps:,}",
        "tokens": f"{healing.tokens:,}",
        "duration": tables.duration(healing.seconds),
        "hardware": healing.environment.hardware,
        "train_loss": tables.number(healing.train_loss),
        "data": tables.text_use(healing.data),
        "held_out": tables.held_out_table(healing),
        "held_out_tokens": f"{healing.held_out.tokens:,}",
        "held_out_data": tables.text_use(healing.held_out_data),
        "merge": merge,
        "adapter_folder": code(ADAPTER_FOLDER + "/") if output == "adapter" else Markdown(""),
    }


def _licence(base: Base, name: str | list[str] | None, files: tuple[str, ...]) -> Markdown:
    named = ", ".join([name] if isinstance(name, str) else name or [])
    text = f"Same licence as the base model: {escape(named)}." if named else "The licence of the base model applies."
    if files:
        text += f" Carried over from it: {', '.join(code(file) for file in files)}."
    return Markdown(text)


def _environments(scores: Scores | None, healing: Healing | None, evaluation: Evaluation | None) -> Markdown:
    stages = (("layers measured", scores), ("healed", healing), ("evaluated", evaluation))
    return tables.environments({name: record.environment for name, record in stages if record is not None})


def _reload(plan: Plan, level: str) -> Markdown:
    """What was done to check the saved weights; of sliced ones not all of it can be."""
    if plan.slicing is None or level == "none":
        return Markdown(RELOAD[level])
    return card_slicing.reload_sentence(level, plan.slicing)


def _citation(plan: Plan, paper: str) -> Markdown:
    """The method's paper, and what it builds on."""
    papers = dict.fromkeys([paper] if plan.slicing is None else [paper, card_slicing.SLICEGPT])
    known = [CITATIONS[url] for url in papers if url in CITATIONS]
    return fence("\n\n".join(known), "bibtex") if paper in CITATIONS else link(paper, paper)


def _sentence(text: str) -> Markdown:
    """A recorded sentence with a capital and a full stop."""
    text = one_line(text, 1000)
    return escape(text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else "."))


@functools.cache
def _template() -> jinja2.Template:
    source = importlib.resources.files("hf_prune.model_cards").joinpath("template.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(source)


__all__ = ["RELOAD", "command", "generate", "inherit"]
