"""The recipe that makes models like the embedded one: a small Llama, trained from scratch on any text.

python -m hf_prune.demo.train --text books/ --output my-llama
python -m hf_prune.demo.train --text roneneldan/TinyStories --output stories --tokens 50000000 --layers 8

The defaults are those of the embedded model: hours on two processor cores; a GPU is taken where there is one. A
killed run goes on where it was with the same command. How good the result is tells `python -m hf_prune.demo.score`.
"""

import argparse
import dataclasses
import hashlib
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from hf_prune import environment, serial
from hf_prune.documents import Source, open_stream
from hf_prune.errors import ConfigError, DataError, OutputError
from hf_prune.extras import require
from hf_prune.saving import check_output, save_model, staged

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
"""The one special token: stands before every document, and serves as start, end and pad."""

TRAINING_FILE = "training.json"
"""File of the finished folder that says how the model was made."""

# More of the text than this is not kept: English has about four characters a token.
_CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True)
class Recipe:
    """Size of the model and how it is trained.

    Attributes:
        layers: decoder blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        mlp: width of the MLP.
        vocabulary: tokens, the 256 bytes and the special token among them; text that is too short gives fewer.
        context: positions the model can take.
        tokens: training tokens, rounded down to whole batches; the text is repeated where it is shorter.
        length: tokens of a training sequence.
        batch: sequences of an optimizer step.
        learning_rate: peak; constant until half of the steps are done, then linear to 2 % of it.
        warmup: steps of linear warm-up, at most a quarter of all.
        seed: of initialisation and data order.
    """

    layers: int = 12
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 512
    vocabulary: int = 4096
    context: int = 512
    tokens: int = 26_000_000
    length: int = 256
    batch: int = 24
    learning_rate: float = 2e-3
    warmup: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together, before any work."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("warmup", "seed")):
                raise ConfigError(f"{field.name}={value}; expected more than 0")
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden={self.hidden}, heads={self.heads}, kv_heads={self.kv_heads}; expected hidden to be a "
                "multiple of twice the heads, and heads a multiple of kv_heads"
            )
        if not 2 <= self.length <= self.context:
            raise ConfigError(f"length={self.length} with context={self.context}; expected 2 <= length <= context")
        if self.vocabulary < 257:
            raise ConfigError(f"vocabulary={self.vocabulary}; expected at least 257: every byte and the special token")
        if self.steps < 4:
            raise ConfigError(
                f"tokens={self.tokens} make {self.steps} steps of {self.batch} x {self.length} tokens; expected at "
                "least 4 steps. Raise --tokens, or lower --batch or --length"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // (self.batch * self.length)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can spell any text.

    Args:
        texts: documents.
        vocabulary: tokens at most.
        context: positions of the model it is for.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        length=len(texts),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> torch.Tensor:
    """All documents in a row, each after the special token, cut into sequences of equal length.

    Args:
        tokenizer: of the model.
        texts: documents.
        length: tokens of a sequence.

    Returns:
        (sequences, length) int64; the tokens after the last whole sequence are left out.

    Raises:
        DataError: the text does not fill one sequence.
    """
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        ids.append(tokenizer.bos_token_id)
        ids.extend(encoding.ids)
    count = len(ids) // length
    if not count:
        raise DataError(f"the text has {len(ids)} tokens; expected at least {length} (one sequence). Give more text")
    return torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new model in float32.

    Weights are normal with deviation 0.02; the projections that write into the residual stream start at
    0.02 / sqrt(2 · layers), so that its size does not grow with depth.
    """
    set_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for block in model.model.layers:
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                projection.weight.mul_(1 / math.sqrt(2 * recipe.layers))
    return model


def fit(model: LlamaForCausalLM, rows: torch.Tensor, recipe: Recipe, folder: Path) -> list[float]:
    """Train with AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradients clipped at 1, bf16 compute.

    Args:
        model: in float32; trained in place.
        rows: (sequences, length) int64.
        recipe: see `Recipe`.
        folder: where checkpoints lie; the newest one there is gone on from.

    Returns:
        Training loss in nats per token, a hundred means over the run at most, from its start.
    """
    require("accelerate", "heal", "training")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        dataloader_drop_last=True,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": recipe.steps // 2, "decay_type": "linear", "min_lr_ratio": 0.02},
        warmup_steps=min(recipe.warmup, recipe.steps // 4),
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, recipe.steps // 100),
        save_steps=max(1, recipe.steps // 10),
        save_total_limit=1,
        report_to="none",
        seed=recipe.seed,
    )
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)  # type: ignore[arg-type]
    # The Trainer writes its state last: a checkpoint without it was cut off.
    whole = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: file.stat().st_mtime_ns)
    trainer.train(resume_from_checkpoint=str(whole[-1].parent) if whole else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def read(source: Source, seed: int, limit: int) -> tuple[list[str], str | None]:
    """The first documents of a source.

    Args:
        source: what to read.
        seed: of the order of a Hub dataset's files.
        limit: characters that are enough; the last document is cut there.

    Returns:
        The documents, and the Hub commit they are from (None for local files).
    """
    stream, revision = open_stream(source, seed=seed)
    texts: list[str] = []
    left = limit
    for text in stream:
        texts.append(text[:left])
        left -= len(texts[-1])
        if not left:
            break
    return texts, revision


def make(source: Source, output: Path, recipe: Recipe) -> dict[str, Any]:
    """Make a model: tokenizer, packed text, training, and a folder that appears whole.

    Args:
        source: the text.
        output: folder for the model, new or empty; checkpoints lie in `output`.run until it is there.
        recipe: see `Recipe`.

    Returns:
        How the model was made, as `training.json` in the folder says it.

    Raises:
        DataError: no text, or too little.
        OutputError: the folder is not empty, or its checkpoints are of another recipe or text.
    """
    check_output(output)
    texts, revision = read(source, recipe.seed, _CHARACTERS_PER_TOKEN * recipe.tokens)
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.context)
    rows = pack(tokenizer, texts, recipe.length)
    if len(rows) < recipe.batch:
        raise DataError(
            f"'{source.name}' makes {len(rows)} sequences of {recipe.length} tokens; expected at least {recipe.batch} "
            "(one batch). Give more text, or lower --batch or --length"
        )
    logger.info(
        "%d documents, %d tokens of text; %d steps of %d tokens",
        len(texts), rows.numel(), recipe.steps, recipe.batch * recipe.length,
    )  # fmt: skip
    inputs = {"recipe": dataclasses.asdict(recipe), "text_sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest()}
    working = output.with_name(output.name + ".run")
    _claim(working, inputs)
    model = build_model(recipe, tokenizer)
    losses = fit(model, rows, recipe, working)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    record = {
        **inputs,
        "text": dataclasses.asdict(source) | {"dataset": source.name, "revision": revision},
        "documents": len(texts),
        "text_tokens": rows.numel(),
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.batch * recipe.length,
        "losses": losses,
        "hardware": environment.hardware(model.device),
        "versions": environment.versions(),
    }
    with staged(output) as stage:
        save_model(model, tokenizer, stage, source=None, keep=range(recipe.layers))
        _let_transformers_4_read(stage)
        serial.write_text(stage / TRAINING_FILE, serial.dumps(record))
    shutil.rmtree(working)
    return record


def _claim(working: Path, inputs: dict[str, Any]) -> None:
    """Make the folder of checkpoints, or insist that the one that is there belongs to this very run."""
    file = working / "inputs.json"
    if file.is_file() and serial.read_json(file) != inputs:
        raise OutputError(
            f"'{working}' holds checkpoints of another recipe or text; expected those of this run. Remove it, or "
            "choose another output"
        )
    working.mkdir(parents=True, exist_ok=True)
    serial.write_text(file, serial.dumps(inputs))


def _let_transformers_4_read(folder: Path) -> None:
    # transformers 5 writes a class name that 4 does not know; both know this one.
    file = folder / "tokenizer_config.json"
    serial.write_text(file, serial.dumps(serial.read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m hf_prune.demo.train",
        description=first,
        epilog="examples:\n" + rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", required=True, help="Hub dataset, or a file or folder (.txt, .jsonl, .parquet, .gz)")
    parser.add_argument("--output", required=True, type=Path, help="folder for the model, new or empty")
    parser.add_argument("--dataset-config", help="the dataset's config name")
    parser.add_argument("--split", help="the dataset's split (train; of a folder: all files)")
    parser.add_argument("--text-column", default="text", help="column that holds the text (text)")
    for field in dataclasses.fields(Recipe):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default, help=f"({field.default})")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a model from the command line."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Recipe)})
    source = Source(given.text, given.dataset_config, given.split, given.text_column)
    record = make(source, given.output, recipe)
    logger.info("%s: %d tokens, last loss %.3f nats per token", given.output, record["tokens"], record["losses"][-1])


if __name__ == "__main__":
    main()
