"""Records to a model card: facts are gathered here, `model_cards/template.md` only places them."""

import dataclasses
import functools
import importlib.resources
import logging
from collections.abc import Sequence
from typing import Any

import jinja2
from huggingface_hub import ModelCard

from hf_prune import (
    card_choice,
    card_consistency,
    card_healing,
    card_slicing,
    card_tasks,
    card_warnings,
    card_worse,
    eval_results,
)
from hf_prune import card_tables as tables
from hf_prune.card_commands import command, quick_start
from hf_prune.card_metadata import HUB, Base, base_of, inherit, metadata, read_base_card
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.licences import Duty, duties
from hf_prune.markdown import Markdown, bullets, code, escape, fence, link, one_line, printable
from hf_prune.methods import get_method
from hf_prune.pictures import (
    COMPARISON_FILE,
    IMPORTANCE_FILE,
    LAYERS_FILE,
    PLOT_FILE,
    RECOVERY_FILE,
    WIDTHS_FILE,
)
from hf_prune.pictures import pictures as all_pictures
from hf_prune.records import Evaluation, Healing, ModelEvaluation, Plan, Scores

logger = logging.getLogger(__name__)

_STREAMED = (
    "After saving, keys, shapes and dtypes were compared with the stock model class, {}, and fixed inputs were run "
    "block by block. The whole model was not loaded at once."
)

RELOAD = {
    "full": "After saving, the weights were loaded again by plain `AutoModelForCausalLM` in a process of its own. "
    "Logits and greedily generated tokens for fixed inputs were compared with the model in memory, and agree.",
    "streamed": _STREAMED.format("kept tensors byte for byte with the base"),
    "none": "The saved weights were not loaded again before this card was written.",
}
"""What each level of the reload check did."""

_STREAMED_PARTS = (
    "After saving, keys, shapes and dtypes were compared with the stock model class, and fixed inputs were run block "
    "by block. The whole model was not loaded at once. Kept tensors were not compared with the base, of which only "
    "their own bytes had been fetched."
)
_PATCHED = {
    "full": "After saving, the modeling code that is shipped was loaded by `AutoModelForCausalLM` with "
    "`trust_remote_code=True` in a process of its own. Logits and greedily generated tokens for fixed inputs were "
    "compared with the model in memory, and agree.",
    "streamed": "After saving, keys, shapes and dtypes were compared with the modeling code that is shipped, and "
    "every tensor byte for byte with what was saved. The whole model was not loaded at once.",
}
_FETCHED = {
    "whole": "",
    "verified": "The sha256 of every weight file of the base was compared with the Hub's, and agrees.",
    "ranges": "For the cut only what stayed of its weights was fetched, by range, not hash-verified: that it is the "
    "base's rests on the connection, on the number of bytes, and on the hash that the Hub named with each answer.",
}

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


_PICTURES = {
    "layers": LAYERS_FILE,
    "widths": WIDTHS_FILE,
    "distances": PLOT_FILE,
    "importance": IMPORTANCE_FILE,
    "comparison": COMPARISON_FILE,
    "recovery": RECOVERY_FILE,
}
"""What the template calls a picture, and its file."""


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
    fetched: str = "whole",
    pictures: bool = False,
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
        fetched: "whole", "verified" or "ranges": how the base's weights came from the Hub.
        pictures: whether the pictures that the records make lie beside the card.

    Returns:
        The card; its text is `str(card)`.

    Raises:
        ConfigError: records that contradict each other, or a value that the card needs is missing.
        MeasureError: a figure that is not finite.
    """
    card_consistency.check(plan, repo_id, scores, healing, evaluation, output, reload_level, fetched)
    base = base_of(plan, config.base_model, config.base_revision)
    title = repo_id.split("/")[-1] if repo_id else f"{base.name.split('/')[-1]}-pruned"
    inherited, notes = read_base_card(base_card)
    for note in notes:
        logger.warning(note)
    shipped = shipped_model(healing, evaluation)
    tasks, parts = card_tasks.quoted(evaluation) if evaluation else ([], [])
    asked = duties(inherited, repo_id) if inherited.keys() & {"license", "license_name"} else ()
    data = metadata(
        plan,
        base,
        inherited,
        name=title,
        scores=scores,
        healing=healing,
        results=eval_results.results(shipped, tasks) if shipped is not None else [],
        base_files=base_files,
        output=output,
    )
    method = get_method(plan.method)
    slicing = plan.slicing
    own_code, kind = plan.ships_code, "patched" if plan.hard else "sliced"
    model_type = f"{kind}_{plan.model.model_type}" if own_code else plan.model.model_type
    recorded = dataclasses.replace(config, base_model=base.name, base_revision=base.revision)
    warned = [
        *card_warnings.warnings(plan, base, scores, healing, evaluation, shipped),
        *(duty.text for duty in asked if duty.flag),
        *notes,
    ]
    images = all_pictures(plan, scores, healing, evaluation) if pictures else {}
    text = _template().render(
        card_data=Markdown(data.to_yaml()),
        title=title,
        base=_base_link(base),
        base_revision=code(base.revision) if base.revision else Markdown(""),
        warnings=bullets(warned, prefix="> - ") if warned else Markdown(""),
        quick_start=quick_start(repo_id, output, "shipped" if own_code else "stock"),
        package_start=quick_start(repo_id, output, "package", kind) if own_code else Markdown(""),
        model_type=code(model_type),
        plan=plan,
        slicing=card_slicing.facts(plan, slicing) if slicing is not None else {},
        described=card_choice.in_a_sentence(plan),
        reason=_sentence(plan.reason),
        layer_map=tables.layer_map(plan) if slicing is None else Markdown(""),
        method=link(method.title, method.paper),
        method_name=code(plan.method),
        choice=card_choice.facts(plan, config, scores, healing is not None and output == "merged")
        if slicing is None
        else {},
        calibration=tables.text_use(scores.data) if scores else Markdown(""),
        calibration_seconds=tables.duration(scores.seconds) if scores else "",
        pictures={
            name: Markdown(f"![{escape(images[file].alt, 4000)}](./{file})") if file in images else Markdown("")
            for name, file in _PICTURES.items()
        },
        evaluation=_evaluation_facts(config, evaluation, shipped, tasks, parts) if evaluation else {},
        healing=card_healing.facts(healing, output) if healing else {},
        command=fence(
            command(
                recorded,
                heal=healing is not None,
                heal_tokens=healing.tokens if healing and config.healing.tokens is None else None,
                recipe=repo_id or PrunerConfig.CONFIG_NAME,
            ),
            "bash",
        ),
        fetched=Markdown(_FETCHED[fetched]),
        reload=_reload(plan, reload_level, fetched),
        licence=_licence(base, data.get("license_name") or data.get("license"), base_files, asked),
        environments=_environments(scores, healing, evaluation),
        citation=_citation(plan, method.paper),
    )
    card = ModelCard(text)
    if card.data.to_dict() != data.to_dict():
        raise ConfigError(f"the card's metadata does not read back as written: {data.to_dict()!r}")
    return card


def shipped_model(healing: Healing | None, evaluation: Evaluation | None) -> ModelEvaluation | None:
    """The figures of the weights that are shipped: of the healed model where there is one, else of the pruned one."""
    label = "healed" if healing else "pruned"
    return next((m for m in evaluation.models if m.label == label), None) if evaluation else None


def _evaluation_facts(
    config: PrunerConfig,
    evaluation: Evaluation,
    shipped: ModelEvaluation | None,
    tasks: Sequence[card_tasks.Key],
    parts: Sequence[card_tasks.Key],
) -> dict[str, Any]:
    recovered = evaluation.recovered
    original = next((m for m in evaluation.models if m.label == "original"), None)
    worse = None
    if original is not None and shipped is not None:
        worse = card_worse.sentence(card_worse.losses(original, shipped, tasks))
    return {
        "table": tables.results_table(evaluation),
        "notes": tables.results_notes(evaluation),
        "tasks": card_tasks.tasks_table(evaluation, tasks, tables.number) if tasks else Markdown(""),
        "tasks_notes": card_tasks.notes(evaluation, config.evaluation.chat_template) if tasks else Markdown(""),
        "parts": card_tasks.tasks_table(evaluation, parts, tables.number) if parts else Markdown(""),
        "parts_count": len(parts),
        "worse": worse or Markdown(""),
        "worse_rule": card_worse.RULE,
        "generations": tables.generations(evaluation),
        "recovered": f"{recovered:.1%}" if recovered is not None else "",
    }


def _licence(base: Base, name: str | list[str] | None, files: tuple[str, ...], asked: tuple[Duty, ...]) -> Markdown:
    """The inherited licence, whose work this is, and what the licence asks for."""
    named = ", ".join([name] if isinstance(name, str) else name or [])
    text = f"Same licence as the base model: {escape(named)}." if named else "The licence of the base model applies."
    text += f" The base model is the work of the authors of {_base_link(base)}; it was changed as described above."
    if files:
        text += f" Carried over from it: {', '.join(code(file) for file in files)}."
    return Markdown("\n\n".join([text, bullets([duty.text for duty in asked])]) if asked else text)


def _base_link(base: Base) -> Markdown:
    return link(base.name, f"{HUB}/{base.name}") if base.on_hub else code(base.name)


def _environments(scores: Scores | None, healing: Healing | None, evaluation: Evaluation | None) -> Markdown:
    """What ran where, and for how long as far as that is on record."""
    stages = {}
    if scores is not None:
        stages[f"layers measured in {tables.duration(scores.seconds)}"] = scores.environment
    if healing is not None:
        stages[f"healed in {tables.duration(healing.seconds)}"] = healing.environment
    if evaluation is not None:
        stages["evaluated"] = evaluation.environment
    return tables.environments(stages)


def _reload(plan: Plan, level: str, fetched: str) -> Markdown:
    """What was done to check the saved weights; where they were sliced or came in parts, not all of it can be."""
    if plan.hard and level != "none":
        return Markdown(_PATCHED[level])
    if level == "streamed" and fetched == "ranges":
        return Markdown(_STREAMED_PARTS)
    if level == "streamed" and plan.slicing is None and not plan.only_drops:
        return Markdown(_STREAMED.format("every tensor byte for byte with what the plan makes of the base's"))
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
