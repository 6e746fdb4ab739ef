"""How good a small language model is: bits per byte of a text, and accuracy on minimal pairs.

python -m hf_prune.demo.score --text gutenberg/validation.jsonl.gz --blimp blimp/
python -m hf_prune.demo.score --model my-llama --text books/validation.txt
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.demo import model_folder
from hf_prune.documents import Source, open_stream
from hf_prune.errors import DataError
from hf_prune.evaluation.perplexity import perplexity
from hf_prune.progress import tqdm
from hf_prune.records import Perplexity, TextUse
from hf_prune.samples import Samples, batches, digest


def text_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    name: str,
    window: int = 256,
    tokens: int | None = None,
) -> Perplexity:
    """Loss on a text, in windows that do not overlap.

    Args:
        model: the causal LM.
        tokenizer: its tokenizer.
        documents: the text; each starts anew, after the start token.
        name: of the text.
        window: tokens seen at once.
        tokens: read this many of each document at most; None reads all.
    """
    sequences = tuple(_ids(tokenizer, document)[:tokens] for document in documents)
    count = sum(len(ids) for ids in sequences)
    use = TextUse(name, None, None, None, len(sequences), count, max(map(len, sequences)), 0, digest(sequences))
    return perplexity(model, tokenizer, Samples(sequences, use), name=name, window=window, stride=window)


@torch.inference_mode()
def blimp_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], batch_size: int = 32
) -> float:
    """Share of minimal pairs whose good sentence is the likelier one, by summed log-probability (ties count as wrong).

    Warstadt et al., "BLiMP: The Benchmark of Linguistic Minimal Pairs for English" (https://arxiv.org/abs/1912.00582).

    Args:
        model: the causal LM.
        tokenizer: its tokenizer.
        pairs: good sentence, bad sentence.
        batch_size: sentences at once.
    """
    sequences = [_ids(tokenizer, sentence) for pair in pairs for sentence in pair]
    totals = []
    for batch in batches(sequences, batch_size):
        batch = batch.to(model.device)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        targets = batch.input_ids[:, 1:, None]
        log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, targets)[..., 0].double()
        totals.append((log_probs * batch.attention_mask[:, 1:]).sum(-1).cpu())
    good, bad = torch.cat(totals).view(-1, 2).unbind(-1)
    return (good > bad).double().mean().item()


def read_pairs(folder: Path, limit: int | None) -> dict[str, list[tuple[str, str]]]:
    """The minimal pairs of a folder of BLiMP's files, by paradigm (a file each).

    Args:
        folder: of .jsonl files with `sentence_good` and `sentence_bad`.
        limit: first pairs of each file; None reads all.

    Raises:
        DataError: there are none.
    """
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            found[file.stem] = [(row["sentence_good"], row["sentence_bad"]) for row in rows[:limit]]
        except KeyError as error:
            raise DataError(f"{file} lacks {error}; expected rows with sentence_good and sentence_bad") from error
    if not found:
        raise DataError(f"'{folder}' holds no .jsonl files; expected one for each paradigm of BLiMP")
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    start = tokenizer.bos_token_id
    if start is None:
        raise DataError("the tokenizer has no start token; expected one, so that the first word is predicted too")
    return torch.tensor([start, *tokenizer(text, add_special_tokens=False, verbose=False).input_ids])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m hf_prune.demo.score",
        description=first,
        epilog="examples:\n" + rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=model_folder(), help="model folder (the embedded one)")
    parser.add_argument("--text", required=True, help="file, folder, or dataset on the Hub")
    parser.add_argument("--split", help="split of the dataset (train; of a folder: all files)")
    parser.add_argument("--window", type=int, default=256, help="tokens seen at once (256)")
    parser.add_argument("--tokens", type=int, help="read this many tokens of each document at most (all)")
    parser.add_argument("--blimp", type=Path, help="folder of BLiMP's .jsonl files")
    parser.add_argument("--pairs", type=int, default=20, help="first pairs of each paradigm (20)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score a model from the command line; JSON on stdout."""
    given = parse(arguments)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    source = Source(given.text, split=given.split)
    documents = list(open_stream(source, seed=0)[0])
    text = text_score(model, tokenizer, documents, name=source.name, window=given.window, tokens=given.tokens)
    scores = {
        "text": source.name,
        "tokens": text.tokens,
        "bytes": text.bytes,
        "nats_per_token": text.nll,
        "standard_error": text.standard_error,
        "bits_per_byte": text.bits_per_byte,
    }
    if given.blimp is not None:
        pairs = read_pairs(given.blimp, given.pairs)
        by_paradigm = {
            paradigm: blimp_accuracy(model, tokenizer, found) for paradigm, found in tqdm(pairs.items(), desc="BLiMP")
        }
        counts = {paradigm: len(found) for paradigm, found in pairs.items()}
        total = sum(counts.values())
        scores["blimp_pairs"] = total
        scores["blimp_accuracy"] = sum(by_paradigm[paradigm] * counts[paradigm] for paradigm in pairs) / total
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
