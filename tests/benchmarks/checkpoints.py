"""Checkpoints of any size, of random weights, written shard by shard without holding them."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

from tests.evaluation.text import VOCAB, byte_tokenizer

_POOL = 2**25
"""Random numbers that all weights are cut from: 64 MB."""
_STEP = 1_000_003
"""Numbers between the starts of two tensors in the pool; a prime, so that no two start at the same place."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a Llama, and how it lies on disk.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: blocks.
        heads: attention heads.
        vocabulary: rows of the embedding and of the head, which are not tied.
        shards: files.
        key_heads: heads of keys and values; as many as attention heads when None.
    """

    hidden: int = 4096
    intermediate: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32000
    shards: int = 4
    key_heads: int | None = None

    def config(self, layers: int | None = None) -> LlamaConfig:
        """The config of such a model, or of one with fewer layers."""
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads or self.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            dtype="bfloat16",
        )

    def block(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one block's tensors."""
        wide, inner = self.hidden, self.intermediate
        narrow = wide // self.heads * (self.key_heads or self.heads)
        prefix = f"model.layers.{layer}."
        return {
            **{f"{prefix}self_attn.{name}_proj.weight": (wide, wide) for name in "qo"},
            **{f"{prefix}self_attn.{name}_proj.weight": (narrow, wide) for name in "kv"},
            **{f"{prefix}mlp.{name}_proj.weight": (inner, wide) for name in ("gate", "up")},
            f"{prefix}mlp.down_proj.weight": (wide, inner),
            f"{prefix}input_layernorm.weight": (wide,),
            f"{prefix}post_attention_layernorm.weight": (wide,),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, in the order in which they are written."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            found |= self.block(layer)
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return sum(map(_bytes, self.block(0).values()))

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(map(_bytes, self.tensors().values()))

    def describe(self) -> dict[str, int]:
        """What a figure says about the model."""
        return {
            "parameters": self.bytes // 2,
            "bytes": self.bytes,
            "layers": self.layers,
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "shards": self.shards,
        }


SEVEN_B = Shapes()
"""Llama-7B: 13.5 GB in bf16."""
EIGHT_B = Shapes(4096, 14336, 32, 32, 128256, key_heads=8)
"""Llama-3-8B: 16.1 GB in bf16."""
SMALL = Shapes(hidden=1024, intermediate=2816, layers=12, heads=16, vocabulary=2048)
"""A tenth of a gigabyte or three: 316 MB in bf16."""


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def write_checkpoint(shapes: Shapes, folder: Path) -> None:
    """Write a bf16 checkpoint that stock transformers load: weights as of a fresh model, each block its own.

    Args:
        shapes: of the model.
        folder: new or empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes.config().save_pretrained(folder)
    assert shapes.vocabulary >= VOCAB
    byte_tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(_POOL, generator=generator) * 0.02).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    start = 0
    for number, part in enumerate(_shards(shapes), 1):
        name = f"model-{number:05}-of-{shapes.shards:05}.safetensors"
        _write_shard(folder / name, part, pool, start)
        start += len(part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": shapes.bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


@contextmanager
def checkpoint(shapes: Shapes, scratch: Path | None) -> Iterator[Path]:
    """A checkpoint in a folder of its own, which goes again whatever happens.

    Args:
        shapes: of the model.
        scratch: where there is room for it; the system's temporary folder when None.
    """
    with tempfile.TemporaryDirectory(prefix="hf-prune-bench-", dir=scratch) as folder:
        write_checkpoint(shapes, Path(folder) / "model")
        yield Path(folder) / "model"


def _shards(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each shard: about as many bytes in each, none of them empty."""
    limit = shapes.bytes / shapes.shards
    part: dict[str, tuple[int, ...]] = {}
    done = 0
    for name, shape in shapes.tensors().items():
        part[name] = shape
        done += _bytes(shape)
        if done >= limit:
            yield part
            part, limit = {}, limit + shapes.bytes / shapes.shards
    if part:
        yield part


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], pool: torch.Tensor, first: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + _bytes(shape)]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    numbers = pool.view(torch.uint8).numpy()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number, shape in enumerate(tensors.values(), first):
            if len(shape) == 1:
                file.write(torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy())
                continue
            at, left = 2 * (number * _STEP % _POOL), _bytes(shape)
            while left:
                piece = numbers[at : at + left]
                file.write(piece)
                at, left = 0, left - len(piece)
        file.flush()
        os.fsync(file.fileno())
