"""Further texts to judge models on, beside the one that a recipe names; and the proof that no text is in another."""

import dataclasses
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import calibration
from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.errors import ConfigError, DataError
from hf_prune.evaluation.stage import text_name
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples
from hf_prune.texts import Texts


def read_further(
    also: Sequence[EvaluationConfig],
    config: PrunerConfig,
    given: Mapping[str, Samples],
    *,
    tokenizer: Tokenizer,
    limit: int,
    run: RunFolder,
    token: str | bool | None,
    progress: bool,
) -> dict[str, Samples]:
    """Read the texts, or find them read.

    Args:
        also: of each text, evaluation settings that name its dataset.
        config: the recipe whose texts are there already.
        given: these texts; none of their sequences comes up again.
        tokenizer: of the model.
        limit: positions that the model can take.
        run: where token ids are kept.
        token: of the Hub.
        progress: whether to show bars.

    Returns:
        Each text by the name that tables call it.

    Raises:
        ConfigError: two texts have one name.
        DataError: a text cannot be had.
    """
    found: dict[str, Samples] = {}
    for number, settings in enumerate(also, 1):
        own = dataclasses.replace(config, evaluation=settings)
        shared = calibration.shares(own, "evaluation")
        used = frozenset[str]().union(*(text.hashes() for text in (*given.values(), *found.values())))
        inputs = {"config": settings, "calibration": config.calibration, "limit": limit, "used": sorted(used)}
        inputs |= {"files": Texts.local_files(own, "evaluation"), "shared": shared}
        text = run.load_samples(f"further-{number}", inputs)
        if text is None:
            text = calibration.load(
                settings,
                stage="evaluation",
                method=own.recipe(),
                tokenizer=tokenizer,
                limit=limit,
                exclude=used,
                token=token,
                calibration=config.calibration,
                shared=shared,
                progress=progress,
            )
            run.save_samples(f"further-{number}", text, inputs)
        name = text_name(text.use)
        if name in {text_name(given["evaluation"].use), *found}:
            raise ConfigError(
                f"two texts to evaluate on are called '{name}'; give each a name of its own, so that figures tell "
                "which text they are of"
            )
        found[name] = text
    return found


def check_apart(texts: Mapping[str, Samples], judging: Mapping[str, Samples]) -> None:
    """Prove that what models are judged on is in no other text.

    Args:
        texts: by what they are for.
        judging: what models are judged on, by name; may be among the texts.

    Raises:
        DataError: a sequence is in both.
    """
    for name, text in texts.items():
        for other, judged in judging.items():
            if text is not judged and (repeated := text.hashes() & judged.hashes()):
                raise DataError(
                    f"the {name} text (seed {text.use.seed}) shares {len(repeated)} of {len(text.sequences)} "
                    f"sequences with '{other}', which models are judged on; expected disjoint texts. Take another "
                    "seed or dataset"
                )
