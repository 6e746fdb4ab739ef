"""The YAML front matter of a model card: checked values only, written by the YAML dumper only."""

import logging
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from hf_prune.markdown import one_line
from hf_prune.records import Healing, Plan, Scores, TextUse
from hf_prune.units import PARTS, Part

logger = logging.getLogger(__name__)

HUB = "https://huggingface.co"

SELF_GENERATED = "text sampled from the original model"
"""How data without a dataset is called."""

_FRONT_MATTER_LIMIT = 200_000
"""Characters of front matter that are parsed; real ones stay far below, and the parser is slow."""


@dataclass(frozen=True)
class Base:
    """The model that was pruned, as a card names it.

    Attributes:
        name: Hub id or bare folder name, on one line.
        on_hub: whether the name is a Hub id.
        revision: Hub commit, where it is known.
    """

    name: str
    on_hub: bool
    revision: str | None


def base_of(plan: Plan, base_model: str | None, base_revision: str | None) -> Base:
    """Which base a card names: the config's where it has one, else the plan's; a path shrinks to its last part."""
    given = base_model or plan.model.id
    revision = base_revision or (plan.model.revision if given == plan.model.id else None)
    name = one_line(bare_name(given), 200) or "model"
    return Base(name, is_hub_id(name, revision), revision)


def bare_name(name: str) -> str:
    """A model's name without the folders of this machine: paths shrink to their last part, Hub ids stay."""
    local = re.match(r"[/\\~.]|[A-Za-z]:[/\\]", name) or "\\" in name or name.strip("/").count("/") > 1
    parts = [part for part in re.split(r"[/\\]", name) if part.strip(". ")]
    return parts[-1] if local and parts else name if not local else "model"


def is_hub_id(name: str | None, revision: str | None) -> bool:
    """Whether a recorded name is a Hub id: well-formed, and with an owner or a Hub commit to tell it from a file."""
    if not name or not name.isascii() or ("/" not in name and not _commit(revision)):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def inherit(base_card: str | None) -> dict[str, Any]:
    """What a derived model takes over from its base's card: licence and language, and nothing else.

    Args:
        base_card: text of the base repo's README.md; untrusted.

    Returns:
        `license`, `license_name`, `license_link` and `language`, as far as they are there and well-formed.
    """
    inherited, notes = read_base_card(base_card)
    for note in notes:
        logger.warning(note)
    return inherited


def read_base_card(base_card: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As `inherit`, with sentences about what could not be taken over."""
    look = "look the licence up there before using this model"
    if base_card is None:
        return {}, (f"The base model has no card to take the licence from; {look}.",)
    found, problem = _front_matter(base_card)
    if problem:
        return {}, (f"The metadata of the base model's card cannot be read ({problem}); {look}.",)
    inherited = {}
    notes = []
    for key, check in _INHERITED.items():
        if found.get(key) in (None, "", "null", "~", []):
            continue
        value = check(found[key])
        if value is None:
            notes.append(f"The base model's card has a malformed '{key}', which was left out; {look}.")
        else:
            inherited[key] = value
    if not inherited.keys() & {"license", "license_name"}:
        notes.append(f"The base model's card states no licence; {look}.")
    return inherited, tuple(notes)


def _front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Parsed front matter, and what is wrong with it."""
    match = REGEX_YAML_BLOCK.search(card.removeprefix("\ufeff"))
    if match is None:
        return {}, ""
    if len(match[2]) > _FRONT_MATTER_LIMIT:
        return {}, f"longer than {_FRONT_MATTER_LIMIT:,} characters"
    try:
        # BaseLoader makes strings, lists and dicts, whatever tags the text names, and reads `no` as Norwegian.
        found = yaml.load(match[2], Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        return {}, f"broken YAML: {one_line(getattr(error, 'problem', None) or 'unreadable', 100)}"
    except RecursionError:
        return {}, "nested too deeply"
    if not isinstance(found, dict):
        return {}, "" if found in (None, "") else f"a {type(found).__name__} instead of keys and values"
    return found, ""


def _one_or_list(pattern: str, limit: int) -> Callable[[Any], str | list[str] | None]:
    def check(value: Any) -> str | list[str] | None:
        items = value if isinstance(value, list) else [value]
        if not 1 <= len(items) <= limit or not all(isinstance(i, str) and re.fullmatch(pattern, i) for i in items):
            return None
        return list(dict.fromkeys(items)) if isinstance(value, list) else value

    return check


def _license_name(value: Any) -> str | None:
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= 100:
        return None
    # Letters, digits, punctuation and plain spaces: nothing invisible, no line breaks.
    return None if any(unicodedata.category(c)[0] in "CZ" and c != " " for c in value) else value.strip()


def _license_link(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > 300 or ".." in value:
        return None
    return value if re.fullmatch(r"(https?://)?[A-Za-z0-9][A-Za-z0-9._~/?=&%#-]*", value) else None


_INHERITED: dict[str, Callable[[Any], Any]] = {
    "license": _one_or_list(r"[a-z0-9][a-z0-9.+-]{0,63}", 10),
    "license_name": _license_name,
    "license_link": _license_link,
    "language": _one_or_list(r"code|multilingual|[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}", 300),
}


def metadata(
    plan: Plan,
    base: Base,
    inherited: dict[str, Any],
    *,
    name: str,
    scores: Scores | None,
    healing: Healing | None,
    results: list[EvalResult],
    base_files: tuple[str, ...],
    output: str,
) -> ModelCardData:
    """The front matter of the pruned model's card.

    Args:
        plan: what was cut.
        base: the model that was pruned.
        inherited: see `inherit`.
        name: of the pruned model, for the model index.
        scores: where the calibration dataset is named, unless the plan does, of a search or a fit.
        healing: where the healing dataset is named.
        results: figures of the weights that the card accompanies, see `hf_prune.eval_results`.
        base_files: licence files that lie beside the card.
        output: "merged" or "adapter".
    """
    used = [record.data for record in (healing, scores, plan) if record is not None]
    datasets = list(dict.fromkeys(str(d.dataset) for d in used if d is not None and is_hub_id(d.dataset, d.revision)))
    inherited = dict(inherited)
    link = inherited.get("license_link")
    if link and "://" not in link and link not in base_files:
        # The link points to a file of the base's repo that does not lie beside this card.
        if base.on_hub:
            inherited["license_link"] = f"{HUB}/{base.name}/blob/{_commit(base.revision) or 'main'}/{link}"
        else:
            del inherited["license_link"]
    family = plan.model.model_type
    families = [family] if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", family) else []
    return ModelCardData(
        base_model=base.name if base.on_hub else None,
        base_model_relation=("adapter" if output == "adapter" else "finetune") if base.on_hub else None,
        library_name="peft" if output == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["hf-prune", "pruned", *_kind(plan), plan.method, *families])),
        datasets=datasets or None,
        model_name=name if results else None,
        eval_results=results or None,
        **inherited,
    )


_TAGS: dict[Part, str] = {"block": "layer-pruning", "attention": "attention-pruning", "mlp": "mlp-pruning"}


def _kind(plan: Plan) -> list[str]:
    """Tags that say how the model was pruned; "custom_code" is the Hub's own for repositories that ship their code."""
    if plan.slicing is None:
        parts = {unit.part for unit in plan.removed}
        return [_TAGS[part] for part in PARTS if part in parts] + ["custom_code"] * plan.ships_code
    return ["slicing", "slicegpt"] + ([] if plan.slicing.plain else ["custom_code"])


def _commit(revision: str | None) -> str | None:
    return revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else None


def dataset_name(data: TextUse) -> str:
    """A text's dataset in plain words, on one line; never a path of this machine."""
    return SELF_GENERATED if data.dataset is None else one_line(bare_name(data.dataset), 200) or "unnamed"


def plain(text: str | None) -> str | None:
    """A name on one line; None where there is none."""
    return one_line(text or "", 100) or None
