"""A pruned model in 4 bits, as a checkpoint of its own."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune import environment, extras, loading
from hf_prune.checkpoint import weight_files
from hf_prune.errors import ConfigError, DataError
from hf_prune.exporting.output import weight_bytes, write_export
from hf_prune.exporting.record import Export
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from hf_prune.healing.nf4 import nf4_config
from hf_prune.loading import Source
from hf_prune.memory import give_back
from hf_prune.output import ADAPTER, Finished
from hf_prune.progress import tqdm
from hf_prune.records import TextUse
from hf_prune.reload import check_reload
from hf_prune.samples import Samples, digest
from hf_prune.saving import RECORDS, check_output, save_model, staged

EVALUATION_TOKENS = "evaluation_tokens.safetensors"
"""Token ids of an evaluation's text, where that was sampled from the model: no dataset has it."""


def export_nf4(
    folder: str | Path,
    output: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    max_shard_size: str = "5GB",
    dry_run: bool = False,
    progress: bool = True,
) -> Export | None:
    """Write the model of a finished folder with its linear maps in 4 bits (NF4, double quantized; the head stays).

    Before the output appears it is loaded back by stock Transformers in another process, and answers as the 4-bit
    model in memory, to the bit. What quantizing costs is measured on the text of the folder's own evaluation where its
    token ids lie in the folder, which they do where the text was sampled from the model.

    Args:
        folder: a finished folder with plain weights.
        output: new or empty folder.
        dtype: of what is not quantized, and of products; "auto" takes the checkpoint's.
        device_map: as in transformers.
        trust_remote_code: whether code from the folder may run.
        max_shard_size: largest weight file.
        dry_run: only check whether it can be; no weight is loaded.
        progress: whether to show a bar.

    Returns:
        What was written, how it was checked and what it costs; None for a dry run.

    Raises:
        ConfigError: the folder is not finished, holds an adapter, quantized weights or code of its own.
        DataError: the text of the evaluation is not the one of the records.
        OutputError: the output is not empty, or cannot be written.
        ReloadError: what was saved does not load back.
        MissingExtraError: bitsandbytes is not installed.
    """
    folder, output = Path(folder), Path(output)
    finished = Finished.load(folder)
    check_output(output)
    check_quantizable(folder, finished, trust_remote_code=trust_remote_code)
    extras.require("bitsandbytes", "heal", "a 4-bit model")
    text = evaluation_text(folder, finished)
    if dry_run:
        return None
    source = Source(finished.plan.model, folder, False)
    kwargs = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    tokenizer = loading.load_tokenizer(source, trust_remote_code=trust_remote_code)
    with staged(output) as stage, tqdm(total=3, desc="quantizing", unit="step", disable=not progress) as bar:
        plain = loading.load_model(source, **kwargs)
        quantization = nf4_config(folder, plain.dtype, trust_remote_code=trust_remote_code)
        before = None if text is None else held_out_loss(plain, text)
        del plain
        give_back()
        bar.update()
        model: PreTrainedModel = loading.load_model(source, quantization_config=quantization, **kwargs)
        after = None if text is None else held_out_loss(model, text)
        model.eval()
        save_model(
            model,
            tokenizer,
            stage,
            source=folder,
            keep=range(len(finished.plan.kept)),
            max_shard_size=max_shard_size,
        )
        bar.update()
        check_reload(model, stage, level="full", trust_remote_code=trust_remote_code)
        bar.update()
        export = Export(
            form="nf4",
            model=finished.plan.model,
            bytes=weight_bytes(*weight_files(stage)),
            source_bytes=weight_bytes(*weight_files(folder)),
            environment=environment.describe(model),
            difference=0.0,  # or `check_reload` had raised
            tolerance=0.0,
            loss_before=before,
            loss_after=after,
            loss_tokens=None if text is None else predicted_tokens(text),
            loss_data=None if text is None else text.use,
            base_card=finished.base_card,
        )
        write_export(stage, finished, export)
    return export


def check_quantizable(folder: Path, finished: Finished, *, trust_remote_code: bool = False) -> None:
    """Refuse what cannot become a 4-bit checkpoint that stock Transformers loads.

    Args:
        folder: a finished folder.
        finished: its records.
        trust_remote_code: whether code from the folder may run.

    Raises:
        ConfigError: names what it is, and what to do.
    """
    if (folder / ADAPTER).is_dir():
        raise ConfigError(
            f"'{folder}' holds an adapter beside pruned weights; expected plain weights. Heal the pruned folder again "
            "with --heal-output merged, or leave the adapter: PEFT puts it on 4-bit weights as well"
        )
    if finished.plan.ships_code:
        raise ConfigError(
            f"the model of '{folder}' ships its modeling code ({finished.plan.describe()}), and stock Transformers "
            "would not load it in 4 bits. Quantize a model that lost whole layers"
        )
    config = loading.read_config(folder, folder.name, trust_remote_code=trust_remote_code)
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ConfigError(f"the weights of '{folder}' are quantized already (quant_method {method!r})")


def evaluation_text(folder: Path, finished: Finished) -> Samples | None:
    """The text that a finished folder was evaluated on, where its token ids lie in the folder.

    Args:
        folder: a finished folder.
        finished: its records.

    Raises:
        DataError: they are not those of the records.
    """
    path = folder / RECORDS / EVALUATION_TOKENS
    uses = () if finished.evaluation is None else finished.evaluation.models[0].perplexity
    use: TextUse | None = next((text.data for text in uses if text.data.dataset is None), None)
    if use is None or not path.is_file():
        return None
    samples = Samples.load(path, use)
    if digest(samples.sequences) != use.sha256:
        raise DataError(
            f"{path.name} in '{folder}' has sha256 {digest(samples.sequences)[:16]}…; the evaluation's text has "
            f"{use.sha256[:16]}…. Evaluate the folder again"
        )
    return samples
