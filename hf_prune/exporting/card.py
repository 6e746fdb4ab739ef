"""The model card of an export: what it is made of, code that loads it, and how it was checked."""

from huggingface_hub import ModelCard

from hf_prune import card_choice
from hf_prune import card_tables as tables
from hf_prune.card_metadata import HUB, Base, base_of, metadata, read_base_card
from hf_prune.errors import ConfigError
from hf_prune.exporting.record import Export
from hf_prune.licences import duties
from hf_prune.markdown import Markdown, bullets, code, escape, fence, link, table
from hf_prune.records import Healing, Plan
from hf_prune.recovery import shipped_loss

_HERE = "path/to/this/folder"


def export_card(
    export: Export, plan: Plan, healing: Healing | None, base_files: tuple[str, ...] = (), repo_id: str | None = None
) -> str:
    """README.md of an export.

    Args:
        export: its record.
        plan: what was cut.
        healing: how it was healed.
        base_files: licence files that lie beside it.
        repo_id: a checked Hub id; None for a folder.

    Raises:
        ConfigError: the base has no commit, and an adapter is to be loaded on it.
        MeasureError: a figure is not finite.
    """
    base = base_of(plan, None, None)
    adapter = export.form == "base-adapter"
    inherited, notes = read_base_card(export.base_card)
    data = metadata(
        plan,
        base,
        inherited,
        name=repo_id or base.name,
        scores=None,
        healing=healing,
        results=[],
        base_files=base_files,
        output="adapter" if adapter else "merged",
    )
    if base.on_hub and not adapter:
        data["base_model_relation"] = "quantized"
    data.tags = [*(data.tags or []), *(["lora"] if adapter else ["bitsandbytes", "4-bit"])]
    asked = duties(inherited, repo_id) if inherited.keys() & {"license", "license_name"} else ()
    title = repo_id.split("/")[-1] if repo_id else f"{base.name.split('/')[-1]}-pruned-{export.form}"
    warned = [*(healing.warnings if healing else ()), *(d.text for d in asked if d.flag), *notes]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {escape(title)}",
        _lead(export, base, healing),
        *(["> [!WARNING]\n" + bullets(warned, prefix="> - ")] if warned else []),
        "## Quick start",
        _adapter_start(base, repo_id) if adapter else _start(repo_id),
        *_limits(export, plan),
        "## What was removed",
        f"{escape(card_choice.in_a_sentence(plan))}.",
        *([] if healing is None else ["## Healing", _healed(healing)]),
        "## Checked",
        _checked(export),
        "## Licence",
        _licence(base, data.get("license_name") or data.get("license"), base_files),
        *([bullets([duty.text for duty in asked])] if asked else []),
    ]
    text = "\n\n".join(map(str, parts)) + "\n"
    if ModelCard(text).data.to_dict() != data.to_dict():
        raise ConfigError(f"the card's metadata does not read back as written: {data.to_dict()!r}")
    return text


def _lead(export: Export, base: Base, healing: Healing | None) -> Markdown:
    named = link(base.name, f"{HUB}/{base.name}") if base.on_hub else code(base.name)
    healed = "" if healing is None else " and healed"
    if export.form == "base-adapter":
        return Markdown(
            f"An adapter of {tables.size(export.bytes)} that makes {named} a model pruned{healed} by `hf-prune`: it "
            f"leaves layers out as it is loaded (PEFT's `layer_replication`). It stands for {_size(export)} of pruned "
            "weights and adapter."
        )
    return Markdown(
        f"{named}, pruned{healed} by `hf-prune`, in 4 bits (NF4, double quantized, bitsandbytes): "
        f"{tables.size(export.bytes)} of weights in place of {_size(export)}."
    )


def _size(export: Export) -> str:
    return tables.size(export.source_bytes)


def _adapter_start(base: Base, repo_id: str | None) -> Markdown:
    if base.revision is None:
        raise ConfigError(f"the plan names no commit of '{base.name}'; an adapter on it has to name one")
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base, commit = "{base.name}", "{base.revision}"',
        f'name = "{repo_id or _HERE}"',
        "tokenizer = AutoTokenizer.from_pretrained(base, revision=commit)",
        'model = AutoModelForCausalLM.from_pretrained(base, revision=commit, dtype="auto")',
        "model = PeftModel.from_pretrained(model, name)",
        *_WRITE,
    ]
    return fence("\n".join(lines), "python")


def _start(repo_id: str | None) -> Markdown:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'name = "{repo_id or _HERE}"',
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        "model = AutoModelForCausalLM.from_pretrained(name)",
        *_WRITE,
    ]
    return fence("\n".join(lines), "python")


_WRITE = (
    'inputs = tokenizer("Once upon a time", return_tensors="pt")',
    "tokens = model.generate(**inputs, max_new_tokens=40)",
    "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
)


def _limits(export: Export, plan: Plan) -> list[str]:
    if export.form == "nf4":
        return [
            "`pip install bitsandbytes` first. Nothing more can be merged into 4-bit weights. Figures of "
            "`pruning/healing.json` are of the weights before they were quantized."
        ]
    return [
        "Load the base at that commit, as above. `AutoModelForCausalLM.from_pretrained` with the name of this "
        "repository alone does not pin the base: it takes whatever the base's repository holds by then.",
        f"The whole base is downloaded, and all its {plan.model.num_layers} layers are in memory for a moment as it "
        "is loaded. PEFT does not mean to merge an adapter that leaves layers out (`merge_and_unload`).",
    ]


def _healed(healing: Healing) -> Markdown:
    return Markdown(
        f"{healing.tokens:,} tokens of {tables.text_use(healing.data)}. Held-out loss: "
        f"{tables.number(healing.held_out.pruned)} nats per token pruned, {tables.number(shipped_loss(healing))} "
        "healed. `pruning/healing.json` holds every setting and figure."
    )


def _checked(export: Export) -> Markdown:
    where = export.environment
    what = {
        "base-adapter": "the base with this adapter, loaded from here, and the pruned weights with the adapter that "
        "was trained on them",
        "nf4": "these weights, loaded from here by stock Transformers and bitsandbytes, and the 4-bit model that was "
        "written",
    }[export.form]
    said = [
        f"Logits for fixed inputs of {what} differ by at most {tables.number(export.difference)} "
        f"({tables.number(export.tolerance)} was allowed; {escape(where.dtype)} on {escape(where.hardware)})."
    ]
    if export.form == "nf4" and export.loss_before is None:
        said.append(
            "What quantizing costs was not measured: the text of the evaluation does not lie beside the model."
        )
    if export.loss_before is None or export.loss_after is None:
        return Markdown(" ".join(said))
    rows = [["before", tables.number(export.loss_before)], ["in 4 bits", tables.number(export.loss_after)]]
    said.append(
        f"Loss over {export.loss_tokens or 0:,} tokens of {tables.text_use(export.loss_data)}, on which the model was "
        "evaluated before:"
    )
    return Markdown(" ".join(said) + "\n\n" + table(["weights", "nats per token"], rows))


def _licence(base: Base, name: str | list[str] | None, files: tuple[str, ...]) -> Markdown:
    named = ", ".join([name] if isinstance(name, str) else name or [])
    text = f"Same licence as the base model: {escape(named)}." if named else "The licence of the base model applies."
    text += f" The base model is the work of the authors of {code(base.name)}; it was changed as described above."
    if files:
        text += f" Carried over from it: {', '.join(code(file) for file in files)}."
    return Markdown(text)
