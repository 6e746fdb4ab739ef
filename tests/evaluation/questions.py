"""Made-up questions in the schemas of real datasets, and what a model answers to them by our own count."""

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

COUNT = 6
_NOUNS = ("cat", "boat", "king", "river", "stone", "lamp")

ANSWERED: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"passage": f"The {noun} is old.", "question": f"is the {noun} old", "label": int(i % 3 != 0)}
        for i, noun in enumerate(_NOUNS)
    ],
    "piqa": [
        {"goal": f"Clean the {noun}", "sol1": "Use water.", "sol2": f"Burn it with {'oil ' * i}.", "label": i % 2}
        for i, noun in enumerate(_NOUNS)
    ],
    "hellaswag": [
        {
            "ind": i,
            "activity_label": "Sailing",
            "ctx_a": f"A man has a {noun}.",
            "ctx_b": "he",
            "ctx": f"A man has a {noun}. he",
            "endings": [f"sells the {noun}.", "[title] sings", "runs  away from it.", "sleeps all day long."],
            "label": str(i % 4),
        }
        for i, noun in enumerate(_NOUNS)
    ],
    "winogrande": [
        {
            "sentence": f"The {noun} fell on the _ because it was near.",
            "option1": "floor",
            "option2": f"old {noun}",
            "answer": str(1 + i % 2),
        }
        for i, noun in enumerate(_NOUNS)
    ],
    "arc_easy": [
        {
            "id": str(i),
            "question": f"What is a {noun}?",
            "choices": {"text": ["A thing.", "An idea of somebody.", "Nothing", "A place"], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i, noun in enumerate(_NOUNS)
    ],
    "mmlu_anatomy": [
        {
            "question": f"Where is the {noun}? ",
            "subject": "anatomy",
            "choices": ["in", "on", "by", "at"],
            "answer": i % 4,
        }
        for i, noun in enumerate(_NOUNS)
    ],
    "gsm8k": [
        {"question": f"How many {noun}s are {i} {noun}s?", "answer": f"#### {i}"} for i, noun in enumerate(_NOUNS)
    ],
}
"""Rows by stock task."""
EXAMPLES = [
    {"question": f"Is {n} a number?", "subject": "anatomy", "choices": ["yes", "no", "so", "if"], "answer": n % 4}
    for n in range(5)
]
"""MMLU's `dev` split."""
_SPLITS = {
    "boolq": ("train", "validation"),
    "piqa": ("train", "validation"),
    "hellaswag": ("train", "validation"),
    "winogrande": ("train", "validation"),
    "arc_easy": ("train", "validation", "test"),
    "mmlu_anatomy": ("test",),
    "gsm8k": ("train", "test"),
}
_FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}


def stock_tasks() -> Path:
    """The folder of the harness's own task files, found without importing it, which changes the environment."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "tasks"


def rows_of(task: str) -> dict[str, list[dict[str, Any]]]:
    """Every split that the stock task names, with its rows."""
    splits = dict.fromkeys(_SPLITS[task], ANSWERED[task])
    return splits | ({"dev": EXAMPLES} if task == "mmlu_anatomy" else {})


def write_task(folder: Path, task: str, rows: dict[str, list[dict[str, Any]]] | None = None, **changes: Any) -> str:
    """A task file that is the stock one, but reads its questions from files beside it; returns the new task's name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, found in (rows or rows_of(task)).items():
        files[split] = str(folder / f"{task}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    config = {
        "task": f"{task}_local",
        "include": str(stock_tasks() / _FILES[task]),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        **changes,
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return config["task"]


def options_of(task: str, row: dict[str, Any], shots: int = 0) -> tuple[list[tuple[str, str]], list[str], int]:
    """Prompt and continuation of each option as the stock task has them, the bare options, and which is right."""
    if task == "boolq":
        prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        options, right = ["no", "yes"], row["label"]
    elif task == "piqa":
        prompt = f"Question: {row['goal']}\nAnswer:"
        options, right = [row["sol1"], row["sol2"]], row["label"]
    elif task == "hellaswag":
        prompt = f"Sailing: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        options = [ending.replace("[title]", "").replace("  ", " ") for ending in row["endings"]]
        right = int(row["label"])
    elif task == "arc_easy":
        prompt = f"Question: {row['question']}\nAnswer:"
        options, right = row["choices"]["text"], "ABCD".index(row["answerKey"])
    elif task == "mmlu_anatomy":
        asked = [_lettered(example) + f" {'ABCD'[example['answer']]}" for example in EXAMPLES[:shots]]
        head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
        prompt = head + "\n\n".join([*asked, _lettered(row)])
        options, right = list("ABCD"), row["answer"]
    else:
        before, after = row["sentence"].split("_")
        options, right = [before + row["option1"], before + row["option2"]], int(row["answer"]) - 1
        return [(option, f" {after.strip()}") for option in options], options, right
    return [(prompt, f" {option}") for option in options], options, right


def _lettered(row: dict[str, Any]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


@torch.inference_mode()
def log_likelihood(model: Any, tokenizer: Any, prompt: str, continuation: str) -> tuple[float, int]:
    """Σ log p of the continuation's tokens after the prompt, one sequence at a time, and how many they are."""
    ids = tokenizer(prompt + continuation)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    log_probs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return math.fsum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids))), len(ids) - start


def counted(model: Any, tokenizer: Any, task: str, shots: int = 0) -> dict[str, list[Any]]:
    """Question by question: whether the likeliest option, and the likeliest per character, is right; and σ."""
    found: dict[str, list[Any]] = {"acc": [], "acc_norm": [], "spread": []}
    for row in ANSWERED[task]:
        asked, options, right = options_of(task, row, shots)
        scores, tokens = zip(*(log_likelihood(model, tokenizer, *texts) for texts in asked), strict=True)
        found["acc"].append(_best(scores) == right)
        found["acc_norm"].append(_best([s / len(o) for s, o in zip(scores, options, strict=True)]) == right)
        losses = [-s / n for s, n in zip(scores, tokens, strict=True)]
        mean = sum(losses) / len(losses)
        found["spread"].append(math.sqrt(sum((x - mean) ** 2 for x in losses) / len(losses)))
    return found


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def greedy(model: Any, tokenizer: Any, prompt: str, count: int, stop: Callable[[str], bool]) -> str:
    """What the model writes, taking the likeliest token at each step."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + count and not stop(tokenizer.decode(ids[start:])):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)
