"""A real byte-level tokenizer, and texts, small enough for tests."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_prune.records import TextUse
from hf_prune.samples import Samples, digest

SPECIAL = ["<pad>", "<s>", "</s>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ã", "©")]
VOCAB = len(SPECIAL) + 256 + len(MERGES)

POEM = (
    "The sea is calm to-night, the tide is full.",
    "Café and thé: the naïve façade in the rain — “quoted”.",
    "in",
    "Nothing in the whole wide world was there but the wind in the thin grass, and then the wind was gone.",
)


def byte_tokenizer(pad: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """Every byte is a token, and a few pairs are merged; no special token in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *(a + b for a, b in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>"} | ({"pad_token": "<pad>"} if pad else {}) | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def samples_of(sequences: list[torch.Tensor], seed: int = 0) -> Samples:
    """Samples of these ids."""
    use = TextUse(
        dataset="poem",
        config=None,
        split=None,
        revision=None,
        samples=len(sequences),
        tokens=sum(len(s) for s in sequences),
        max_length=max(len(s) for s in sequences),
        seed=seed,
        sha256=digest(sequences),
    )
    return Samples(tuple(sequences), use)


def poem(lines: tuple[str, ...] = POEM, bos: bool = True) -> Samples:
    """The lines, tokenised, each with the start token in front."""
    tokenizer = byte_tokenizer()
    front = [tokenizer.bos_token_id] if bos else []
    return samples_of([torch.tensor(front + tokenizer(line)["input_ids"]) for line in lines])
