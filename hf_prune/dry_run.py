"""What a run would do, told without a forward pass."""

from pathlib import Path
from typing import Any

import torch

from hf_prune import calibration, documents, hub_pull
from hf_prune.amounts import NOT_WEIGHED, check_amount, check_units
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import parameter_bytes
from hf_prune.architecture.writes import can_rescale
from hf_prune.auto import AUTO, resolved
from hf_prune.comparing.allowed import check_forwards
from hf_prune.comparing.estimate import estimated_forwards
from hf_prune.config import PAPER, SAME, PrunerConfig
from hf_prune.dry_healing import preview_healing
from hf_prune.healable import check_healing, check_unquantized
from hf_prune.hub import check_push
from hf_prune.loading import Source, blank_model, check_verifiable, dtype_of, locate
from hf_prune.memory_budget import MaxMemory, budget_of
from hf_prune.models import name_given, sizes_of
from hf_prune.output import default_private
from hf_prune.placement import load_kwargs
from hf_prune.plan import make_plan
from hf_prune.planners.widths import MOST
from hf_prune.records import ModelRef, Plan, Scores
from hf_prune.registry import fitted, measure, planner
from hf_prune.rounds import check_rounds, counts_of
from hf_prune.run_folder import beside
from hf_prune.saving import check_output
from hf_prune.scored import check_scored
from hf_prune.shards import shard_limit
from hf_prune.slicing.costs import Costs
from hf_prune.slicing.plan import check_reachable, make_slicing_plan
from hf_prune.slicing.read_costs import costs_of_config
from hf_prune.slicing.slicer import check_tokens
from hf_prune.stage_configs import options_without_paths
from hf_prune.streaming import check_bound, check_size, has_room
from hf_prune.units import WORDS, parts_of


def preview(
    model_id: str,
    config: PrunerConfig,
    output: Path,
    *,
    heal: bool,
    evaluate: bool = True,
    push: str | None,
    push_kwargs: dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    max_memory: MaxMemory | None = None,
    max_shard_size: str = "5GB",
    verify_hash: bool = False,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Check everything that can be checked, and say what each stage would do.

    The layers are named where no forward pass is needed for that: where they were given, where the method measures
    nothing, or where an interrupted run has left its scores.

    Returns:
        Facts of the model, and (stage, what would be done) rows.

    Raises:
        PruneError: whatever a real run would refuse before work.
    """
    device_map = load_kwargs(dtype, device_map, trust_remote_code)["device_map"]
    shard_limit(max_shard_size)
    budget_of(max_memory)
    if heal:
        check_healing(config)
    run_folder = beside(output)
    source, model_config = locate(
        model_id,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        base_model=name_given(config, model_id),
        weights=False,
    )
    check_verifiable(source, model_id, verify_hash)
    if heal:
        check_unquantized(source.ref, getattr(model_config, "quantization_config", None) is not None)
    config = _resolved(config, source, model_config, dtype, trust_remote_code)
    ref, recipe = source.ref, config.recipe()
    check_amount(config, ref.num_layers, ref.id)
    if config.layers is None:
        check_scored(recipe)
    check_rounds(config, heal)
    rounds = counts_of(config, ref.num_layers) if config.rounds > 1 else ()
    check_forwards(config, ref)
    check_output(output)
    for stage in (config.calibration, config.healing, config.evaluation):
        if stage.dataset not in (None, PAPER, SAME):
            documents.Source(str(stage.dataset)).check_there()
    measured = recipe.measure is not None and config.layers is None
    scores = _scores(run_folder, ref, config) if measured else None
    whole = [("evaluating", "evaluate nothing (--no-evaluate)")] * evaluate + [("healing", "prune alone")] * heal
    if recipe.cuts == "width":
        whole.append(("slicing", "take a method that drops layers"))
    elif config.ships_code:
        whole.append(("taking parts out of blocks", "let them fall silent (surgery 'drop', export='soft')"))
    elif measured and config.calibrates and scores is None and config.calibration.dataset is None:
        whole.append(("sampling text from the model", "give a text (--dataset)"))
    if recipe.cuts != "width":
        whole += _in_memory(config, measured)
    plain = getattr(model_config, "quantization_config", None) is None
    check_bound(max_memory, not plain, ref.id)
    loaded = not plain or bool(whole)
    if plain and (whole or measured) and source.folder is not None:
        blank = blank_model(source.folder, ref.id, dtype_of(dtype), trust_remote_code=trust_remote_code)
        size = parameter_bytes(blank)
        if whole:
            check_size(size, ref.id, max_memory, device_map, *whole[0])
        loaded = loaded or (scores is None and has_room(size, max_memory, device_map))
    if push is not None:
        given = push_kwargs or {}
        checked = {name: given[name] for name in ("revision", "create_pr", "overwrite") if name in given}
        private = given.get("private")
        private = default_private(ref, token) if private is None else private
        push = check_push(push, token=token, private=private, **checked)
    limit = calibration.model_limit(model_config.get_text_config(decoder=True))
    most = config.calibration.samples * min(config.calibration.max_length, limit)
    costs = None
    if recipe.cuts == "width":
        text_config = model_config.get_text_config(decoder=True)
        costs = costs_of_config(text_config, ref.id)
        check_tokens(most, text_config.hidden_size, ref.id)
        check_reachable(config, ref, costs)
    steps: list[tuple[str, str]] = []
    if measured:
        amount = f"{config.calibration.samples} samples, at most {most:,} tokens"
        how = "" if loaded or scores is not None else "; block by block, not loaded as a whole"
        text = f"{amount}, {_text(config)}{how}" if config.calibrates else "without calibration text"
        steps.append(("measure", f"{recipe.measure}: {text}{_forwards(config, ref) if scores is None else ''}"))
    by_weight = costs is None and config.sparsity is not None and config.amount_of not in ("layers", "weights")
    sizes = NOT_WEIGHED
    if plain and source.folder is not None and (by_weight or recipe.unit != "block"):
        blank = blank_model(source.folder, ref.id, dtype_of(dtype), trust_remote_code=trust_remote_code)
        length = min(config.calibration.max_length, limit) if config.amount_of == "flops" else None
        sizes = sizes_of(blank, ref.id, length)
        check_units(config, ref, sizes)
    unknown = sizes is NOT_WEIGHED and (by_weight or recipe.unit != "block")
    plan: Plan | None = None
    if rounds:
        shares = f"{' + '.join(map(str, rounds))} of {ref.num_layers} layers in {len(rounds)} rounds"
        steps.append(("plan", f"{recipe.planner}: {shares}, each on what the one before has healed"))
    elif costs is not None:
        steps.append(("plan", _widths(config, ref, costs, scores)))
    elif not unknown and (scores is not None or not measured):
        plan = make_plan(config, ref, sizes, scores)
        steps.append(("plan", plan.describe()))
    else:
        when = "the blocks are weighed" if by_weight else "they are measured"
        units = ref.num_layers * len(parts_of(recipe.unit))
        steps.append(("plan", f"{recipe.planner}: {_amount(config)} of {units} {WORDS[recipe.unit]}, once {when}"))
    text = f", calibrated on at most {most:,} tokens, {_text(config)}" if costs is not None else ""
    steps.append(("prune", f"{recipe.surgery}{text}{_way(source, loaded, measured, verify_hash)}"))
    if heal:
        assert source.folder is not None
        blank = blank_model(source.folder, ref.id, dtype_of(dtype), trust_remote_code=trust_remote_code)
        drops = plan if plan is not None and plan.only_drops and plan.slicing is None else None
        told = preview_healing(config, blank, drops, base_model=ref.id, limit=limit, device_map=device_map)
        steps.append(("heal", told.text + (f"; so in each of {len(rounds)} rounds" if rounds else "")))
    if evaluate:
        models = "original, pruned and healed" if heal else "original and pruned"
        tasks = f", and benchmark tasks: {', '.join(config.evaluation.tasks)}" if config.evaluation.tasks else ""
        steps.append(("evaluate", f"{models} on {config.evaluation.samples} documents{tasks}"))
    steps.append(("write", str(output)))
    if push is not None:
        steps.append(("push", push))
    facts = {"model": ref.id, "commit": ref.revision, "model_type": ref.model_type, "layers": ref.num_layers}
    return facts, steps


def _in_memory(config: PrunerConfig, measured: bool) -> list[tuple[str, str]]:
    """What of choosing and fitting needs the whole model, and what would do without."""
    recipe = config.recipe()
    if (measured and planner.get(recipe.planner).needs == "judge") or recipe.surgery in fitted:
        return [(f"method '{recipe.name}'", "take one that measures in a single pass and drops")]
    if measured and measure.get(str(recipe.measure)).needs != "pass":
        return [(f"measure '{recipe.measure}'", "take one of a single pass")]
    return []


def _forwards(config: PrunerConfig, ref: ModelRef) -> str:
    """How often the text passes through the model, where that is more than once."""
    found = estimated_forwards(config, ref) if config.recipe().cuts == "layers" else 1.0
    if found is None:
        return f"; at most {config.max_forwards} forwards of it"
    return f"; about {found:.0f} forwards of it" if found > 1 else ""


def _way(source: Source, loaded: bool, measured: bool, verify_hash: bool) -> str:
    """How the cut is made, and proved."""
    if loaded:
        return "; the result is loaded again and compared"
    commit = source.ref.revision
    in_part = commit is not None and not (measured or verify_hash or hub_pull.cached_weights(source.ref.id, commit))
    way = " from file to file: nothing is loaded as a whole"
    if in_part:
        return f"{way}, and only what is kept is fetched; the result is run block by block"
    return f"{way}; the result is held against the base"


def _widths(config: PrunerConfig, ref: ModelRef, costs: Costs, scores: Scores | None) -> str:
    """The widths where they are known without a forward pass, else how they will be chosen."""
    recipe = config.recipe()
    if config.searches:
        return f"{recipe.planner}: {_amount(config)}, the best of at most {MOST} schedules, each sliced and judged"
    if recipe.measure is not None and scores is None:
        return f"{recipe.planner}: {_amount(config)}, once layers are measured"
    return make_slicing_plan(config, ref, costs, scores).describe()


def _resolved(
    config: PrunerConfig, source: Source, model_config: Any, dtype: str, trust_remote_code: bool
) -> PrunerConfig:
    """The recipe without "auto" in it, by the config alone."""
    if config.method != AUTO or source.folder is None:
        return config
    rescales = getattr(model_config, "quantization_config", None) is None
    if rescales:
        blank = blank_model(source.folder, source.ref.id, dtype_of(dtype), trust_remote_code=trust_remote_code)
        rescales = blank is not None and can_rescale(decoder_of(blank, source.ref.id))
    return resolved(config, source.ref.num_layers, gpu=torch.cuda.is_available(), rescales=rescales)


def _scores(run_folder: Path, ref: ModelRef, config: PrunerConfig) -> Scores | None:
    """What an interrupted run of this very measure on this very model has found."""
    found = Scores.load(run_folder) if (run_folder / Scores.FILE).is_file() else None
    asked = config.recipe().measure, options_without_paths(config.options("measure"))
    return found if found is not None and found.model == ref and (found.measure, found.options) == asked else None


def _text(config: PrunerConfig) -> str:
    dataset = config.calibration.dataset
    if dataset is None:
        return "sampled from the model itself"
    return "the paper's dataset" if dataset == PAPER else f"from {dataset}" if dataset != SAME else "the calibration's"


def _amount(config: PrunerConfig) -> str:
    if config.drop_layers is not None:
        return str(config.drop_layers)
    return f"{config.sparsity} of the {config.amount_of}"
