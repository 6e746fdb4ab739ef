"""A healed model as a small adapter on the original's own repo: PEFT leaves layers out as it loads."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from hf_prune import environment, extras, hub_pull, loading, serial
from hf_prune.architecture import decoder_of
from hf_prune.architecture.families import layer_count
from hf_prune.architecture.layer_config import changed_keys
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, ReloadError
from hf_prune.exporting.output import compared, weight_bytes, write_export
from hf_prune.exporting.record import Export
from hf_prune.healing.adapter import CONFIG, WEIGHTS
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.loading import Source
from hf_prune.memory import give_back
from hf_prune.output import ADAPTER, Finished
from hf_prune.probe import probe
from hf_prune.progress import tqdm
from hf_prune.records import Plan
from hf_prune.saving import check_output, licence_files, staged
from hf_prune.stored import Stored
from hf_prune.verify import find_base

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Difference of logits allowed, as a share of the largest one: the same products in the same order."""

TOLERANCE_OF_16_BITS = 1e-2


def export_base_adapter(
    folder: str | Path,
    output: str | Path,
    *,
    original: str | Path | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Export | None:
    """Write the adapter of a healed folder as one on the original model, which loses the layers as it is loaded.

    The same tensors do: PEFT numbers the layers that are left from 0, as pruning does. Before the output appears, the
    original with this adapter and the pruned weights with theirs are both loaded, and their logits compared.

    Args:
        folder: a finished folder, healed with output="adapter".
        output: new or empty folder.
        original: folder or Hub id of the base model; the commit that the records name when None.
        token: of the Hub.
        dtype: to compare in; "auto" takes the checkpoint's.
        device_map: as in transformers.
        trust_remote_code: whether code from the base's repo may run.
        dry_run: only check whether it can be; no weight is loaded.
        progress: whether to show a bar.

    Returns:
        What was written and how it was checked; None for a dry run.

    Raises:
        ConfigError: the folder is not finished or not healed, or its plan or adapter cannot be told this way.
        ArchitectureError: PEFT does not find the model's layers, or they are not all alike to its config.
        HubError: the base cannot be had.
        OutputError: the output is not empty, or cannot be written.
        ReloadError: the two models answer differently.
        MissingExtraError: peft is not installed.
    """
    folder, output = Path(folder), Path(output)
    finished = Finished.load(folder)
    check_output(output)
    check_expressible(folder, finished)
    extras.require("peft", "heal", "an adapter on the original")
    plan = finished.plan
    check_layers(_base_config_folder(plan, original, token), plan, trust_remote_code=trust_remote_code)
    if dry_run:
        return None
    base, commit = find_base(plan.model, original, token)
    if commit not in (None, plan.model.revision):
        raise ConfigError(
            f"original={str(original)!r} is at commit {commit}; the model was pruned from '{plan.model.id}' at "
            f"{plan.model.revision}. Leave it out, or name a folder that holds that commit"
        )
    kwargs = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    with staged(output) as stage, tqdm(total=2, desc="comparing", unit="model", disable=not progress) as bar:
        write_adapter(folder / ADAPTER, stage, plan)
        for name in licence_files(folder):
            shutil.copyfile(folder / name, stage / name)
        pruned = Stored(Source(plan.model, folder, False), folder / ADAPTER, kwargs)
        wanted = _answer(pruned)
        bar.update()
        adapted = Stored(Source(plan.model, base, True), stage, kwargs)
        found = _answer(adapted)
        bar.update()
        largest = float(wanted["logits"].float().abs().max())
        share = TOLERANCE.get(wanted["logits"].dtype, TOLERANCE_OF_16_BITS)
        difference = float((wanted["logits"].float() - found["logits"].float()).abs().max())
        if difference == 0 and not torch.equal(wanted["greedy"], found["greedy"]):
            raise ReloadError(f"'{output}' writes other tokens from its cache than the pruned model. It was not kept")
        export = compared(
            Export(
                form="base-adapter",
                model=plan.model,
                bytes=weight_bytes(stage / WEIGHTS),
                source_bytes=weight_bytes(*pruned.files()),
                environment=found["environment"],
                difference=difference,
                tolerance=share * max(1.0, largest),
                base_card=finished.base_card,
            ),
            output,
        )
        write_export(stage, finished, export)
    return export


def check_expressible(folder: Path, finished: Finished) -> None:
    """Refuse what no adapter on the original can say.

    Args:
        folder: a finished folder.
        finished: its records.

    Raises:
        ConfigError: names what it is, and what to do.
    """
    plan, healing = finished.plan, finished.healing
    if healing is None:
        raise ConfigError(f"'{folder}' was not healed: there is no adapter. Run: hf-prune heal {folder}")
    if healing.kind != "adapters":
        raise ConfigError(
            f"'{folder}' was healed by training weights themselves (target {healing.settings.get('target')!r}), which "
            "no adapter holds. Heal with target 'mlp' or 'all' and --heal-output adapter"
        )
    if healing.output != "adapter" or not (folder / ADAPTER / WEIGHTS).is_file():
        raise ConfigError(
            f"the adapter of '{folder}' was merged into its weights (output {healing.output!r}). Heal the pruned "
            "folder again with --heal-output adapter"
        )
    if plan.slicing is not None or not plan.only_drops or not plan.dropped:
        kinds = sorted({operation.kind for operation in plan.operations})
        raise ConfigError(
            f"'{folder}' was made by more than dropping layers (operations: {', '.join(kinds)}), and what the base's "
            "weights do not hold, an adapter on them cannot either. Ship the folder itself"
        )
    if finished.config.rounds > 1:
        raise ConfigError(
            f"'{folder}' was pruned and healed in {finished.config.rounds} rounds: its weights hold what the earlier "
            "ones learned, and the adapter the last one alone. Ship the folder itself"
        )
    if plan.model.revision is None:
        raise ConfigError(
            f"the base of '{folder}' was the folder '{plan.model.id}': an adapter has to name a repo on the Hub and "
            "its commit. Prune the model from the Hub, or ship the folder itself"
        )


def check_layers(base: Path, plan: Plan, *, trust_remote_code: bool = False) -> None:
    """Refuse a base whose layers PEFT cannot leave out, or would leave out wrongly.

    PEFT keeps the config as it is, but for the number of layers: a setting such as `layer_types`, one entry a layer,
    then speaks of other layers than those that are left. That is harmless only where the entries agree.

    Args:
        base: folder of the base's config.
        plan: which layers go.
        trust_remote_code: whether code from the base's repo may run.

    Raises:
        ArchitectureError: names what stands in the way.
    """
    from peft.tuners.tuners_utils import replicate_layers

    config = loading.read_config(base, plan.model.id, trust_remote_code=trust_remote_code)
    _check_settings(config.get_text_config(decoder=True), plan)
    blank = loading.blank_model(base, plan.model.id, trust_remote_code=trust_remote_code)
    path = decoder_of(blank, plan.model.id).blocks_path
    try:
        replicate_layers(blank, _tuples(plan))
        left = len(blank.get_submodule(path))  # type: ignore[arg-type]
    except ValueError as error:
        raise ArchitectureError(
            f"PEFT does not find the layers of '{plan.model.id}' (model_type '{plan.model.model_type}'), so that no "
            f"adapter can leave any out: {error} Ship the pruned folder itself"
        ) from error
    if left != len(plan.kept):
        raise ArchitectureError(
            f"PEFT finds other layers in '{plan.model.id}' (model_type '{plan.model.model_type}') than those that "
            f"were pruned ({left} of {len(plan.kept)} are left at '{path}'). Ship the pruned folder itself"
        )


def layer_ranges(kept: Sequence[int]) -> list[list[int]]:
    """Runs of layers that stay, as PEFT's `layer_replication` has them: first one, and the one behind the last.

    Args:
        kept: original indices, ascending.
    """
    runs: list[list[int]] = []
    for layer in kept:
        if runs and runs[-1][1] == layer:
            runs[-1][1] += 1
        else:
            runs.append([layer, layer + 1])
    return runs


def write_adapter(adapter: Path, folder: Path, plan: Plan) -> None:
    """Write an adapter of the pruned weights as one of the base.

    Args:
        adapter: folder of the trained adapter.
        folder: where the new one goes.
        plan: which layers stay.

    Raises:
        CheckpointError: it replicates layers already.
    """
    config = serial.read_json(adapter / CONFIG)
    if config.get("layer_replication"):
        raise CheckpointError(
            f"{CONFIG} of '{adapter}' sets 'layer_replication'; expected an adapter of pruned weights"
        )
    config |= {
        "base_model_name_or_path": plan.model.id,
        "revision": plan.model.revision,
        "layer_replication": layer_ranges(plan.kept),
    }
    serial.write_text(folder / CONFIG, serial.dumps(config))
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)


def _tuples(plan: Plan) -> list[tuple[int, int]]:
    return [(first, behind) for first, behind in layer_ranges(plan.kept)]


def _check_settings(config: PretrainedConfig, plan: Plan) -> None:
    """Refuse lists of one entry a layer that would speak of other layers; other settings are done with by then.

    Counts and indices (`first_k_dense_replace`, `mlp_only_layers`) are read as layers are built, before PEFT picks.
    """
    depth, left = layer_count(config), len(plan.kept)
    before = config.to_dict()
    for key, wanted in changed_keys(config, plan.kept).items():
        value = before.get(key)
        if isinstance(value, list | tuple) and len(value) == depth and list(value[:left]) != wanted:
            raise ArchitectureError(
                f"the layers of '{plan.model.id}' are not all alike: config key '{key}' has one entry a layer and "
                f"would have to change with '{plan.describe()}', which an adapter cannot do to the base's config. "
                "Ship the pruned folder itself"
            )


def _base_config_folder(plan: Plan, original: str | Path | None, token: str | bool | None) -> Path:
    if original is not None and Path(original).is_dir():
        return Path(original)
    assert plan.model.revision is not None
    return hub_pull.pull(plan.model.id, plan.model.revision, token, weights=False)


def _answer(stored: Stored) -> dict[str, Any]:
    with quiet_peft():
        model: Any = stored.load()
        answer: dict[str, Any] = probe(model) | {"environment": environment.describe(model)}
    del model
    give_back()
    return answer
