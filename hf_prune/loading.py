"""A Hub id or a folder in, a checked model with tokenizer and pedigree out."""

import json
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_prune import hub_pull
from hf_prune.architecture import check_prunable, decoder_of, layer_count
from hf_prune.architecture.decoder import keep_quantized_bits
from hf_prune.checkpoint import check_checkpoint, folder_digest, stored_dtype
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError
from hf_prune.records import ModelRef

logger = logging.getLogger(__name__)

LOADING = threading.RLock()
"""Held while transformers builds a model: it sets torch's default dtype meanwhile, for all threads of the process."""

Fetched = Literal["whole", "verified", "ranges"]
"""How weights came here: as whole files, as whole files held against their hashes, or only the bytes that are kept."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        ref: what records call it.
        folder: its files; None for a model that was handed over in memory.
        on_hub: whether `ref.id` is an id on the Hub.
    """

    ref: ModelRef
    folder: Path | None
    on_hub: bool

    @property
    def card(self) -> str | None:
        """Text of the base's README.md (untrusted), where it has one."""
        path = None if self.folder is None else self.folder / "README.md"
        return path.read_text(encoding="utf-8", errors="replace") if path is not None and path.is_file() else None


def locate(
    model_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    base_model: str | None = None,
    weights: bool = True,
) -> tuple[Source, PretrainedConfig]:
    """Find a model, pin it, download what is needed and refuse what cannot be pruned; no weight is loaded.

    Args:
        model_id: Hub id or folder.
        revision: branch, tag or commit, on the Hub.
        token: of the Hub; None takes the stored one.
        trust_remote_code: whether code from the repo may run.
        base_model: Hub id that a folder stands for.
        weights: whether to download the weights too.

    Raises:
        HubError: no such repo or revision, no access, or offline with nothing cached.
        CheckpointError: pickles only, broken files, or a layer count that disagrees with the config.
        ArchitectureError: the model cannot lose blocks.
    """
    code = ("*.py",) if trust_remote_code else ()
    resolved = hub_pull.resolve(str(model_id), revision, token)
    if resolved.folder is not None:
        folder, name, on_hub = resolved.folder, *_name_of_folder(resolved.folder, base_model)
    else:
        assert resolved.commit is not None
        folder = hub_pull.pull(resolved.id, resolved.commit, token, weights=False, allow_patterns=code)
        hub_pull.check_weights(resolved.id, resolved.commit, folder, token)
        name, on_hub = resolved.id, True
    config = read_config(folder, name, trust_remote_code=trust_remote_code)
    check_prunable(config, name)
    text = config.get_text_config(decoder=True)
    if layer_count(text) < 2:
        raise ArchitectureError(f"'{name}' has num_hidden_layers={layer_count(text)}; expected at least 2 to drop one")
    if resolved.commit is not None and weights:
        folder = hub_pull.pull(resolved.id, resolved.commit, token, allow_patterns=code)
    if weights or resolved.commit is None:
        check_checkpoint(folder, text, name)
    digest = resolved.commit or folder_digest(folder)
    ref = ModelRef(name, resolved.commit, text.model_type, layer_count(text), digest)
    return Source(ref, folder, on_hub), config


def check_verifiable(source: Source, given: str | Path, verify_hash: bool) -> None:
    """Refuse to verify what has no hashes.

    Args:
        source: what `locate` returned.
        given: what it was asked for.
        verify_hash: whether files are to be held against the Hub's hashes.

    Raises:
        ConfigError: it is a folder.
    """
    if verify_hash and source.ref.revision is None:
        raise ConfigError(
            f"verify_hash=True (--verify-hash) of the folder '{given}': only files on the Hub have hashes to compare "
            "with; leave it out"
        )


def fetch_weights(
    source: Source,
    config: PretrainedConfig,
    *,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    verify_hash: bool = False,
) -> Fetched:
    """Download the weights of a model that `locate` has found without them, and check them; a folder has them.

    Args:
        source: what `locate` returned.
        config: likewise.
        token: of the Hub.
        trust_remote_code: whether code from the repo may run.
        verify_hash: whether each file is held against the hash that the Hub has of it.

    Returns:
        How they came here.

    Raises:
        HubError: the download failed, or a file has another hash.
        CheckpointError: they are broken, or disagree with the config.
    """
    assert source.folder is not None
    if source.ref.revision is None:
        return "whole"
    code = ("*.py",) if trust_remote_code else ()
    pull = hub_pull.pull_verified if verify_hash else hub_pull.pull
    folder = pull(source.ref.id, source.ref.revision, token, allow_patterns=code)
    check_checkpoint(folder, config.get_text_config(decoder=True), source.ref.id)
    return "verified" if verify_hash else "whole"


def read_config(folder: Path, name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder.

    Raises:
        ArchitectureError: transformers does not know the architecture.
        CheckpointError: `config.json` is missing or broken, or holds values that transformers refuses.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"'{name}' has no config.json; expected a model saved by transformers") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"config.json of '{name}' is not JSON: {error}") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ArchitectureError(
            f"config.json of '{name}' names no model_type; expected a causal language model saved by transformers "
            "(not a diffusion pipeline or another library's checkpoint)"
        )
    if "auto_map" in raw and not trust_remote_code and not is_known(raw["model_type"]):
        raise ArchitectureError(
            f"'{name}' (model_type '{raw['model_type']}') needs code from its repo to load; read that code, then pass "
            "trust_remote_code=True (--trust-remote-code)"
        )
    if "auto_map" not in raw and not is_known(raw["model_type"]):
        raise ArchitectureError(
            f"'{name}' has model_type '{raw['model_type']}', which this version of transformers doesn't know; "
            "expected a causal language model"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"config.json of '{name}' holds what transformers refuses: {' '.join(str(error).split())[:300]}; repair "
            "it, or download it again"
        ) from error


def load_model(
    source: Source,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    prunable: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load the model of a source, in the checkpoint's dtype by default, and insist that every weight was there.

    Args:
        source: where it is.
        dtype: of the weights.
        device_map: as in transformers.
        trust_remote_code: whether code from the repo may run.
        prunable: whether it has to be a decoder that this package can walk through; to be measured it need not.
        kwargs: as in transformers.

    Raises:
        CheckpointError: weights are missing or of another shape.
    """
    assert source.folder is not None
    with LOADING:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed, and refused below
            **kwargs,
        )
    model, info = loaded
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "mismatched_keys") if info[kind]}
    if wrong:
        listed = "; ".join(
            f"{kind.replace('_keys', '')}: {', '.join(keys[:3])} ({len(keys)})" for kind, keys in wrong.items()
        )
        raise CheckpointError(
            f"the weights of '{source.ref.id}' do not fit its config: {listed}. transformers would make them up; "
            "repair the checkpoint"
        )
    if prunable:
        decoder_of(model, source.ref.id)
    keep_quantized_bits(model)
    return model.eval()


def blank_model(
    folder: Path, name: str, dtype: str | torch.dtype = "auto", *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that a folder's config describes, without any weight (on the meta device); no weight file is needed.

    Args:
        folder: of the config.
        name: what the model is called in errors.
        dtype: of the weights; "auto" takes the config's, where it names none that of the weights, and float32 where
            they are not here.
        trust_remote_code: whether code from the repo may run.

    Raises:
        ArchitectureError: transformers does not know the architecture.
        CheckpointError: the config is missing or broken.
    """
    config = read_config(folder, name, trust_remote_code=trust_remote_code)
    wanted = (config.dtype or stored_dtype(folder) or torch.float32) if dtype == "auto" else dtype
    with LOADING, torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=trust_remote_code)
    for pattern, kept in model._get_dtype_plan(wanted).items():  # what loading keeps in a wider dtype
        for name, parameter in model.named_parameters():
            if re.search(pattern.replace("*", ".*"), name):
                parameter.data = parameter.data.to(kept)
    return model


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a source.

    Raises:
        CheckpointError: there is none.
    """
    assert source.folder is not None
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"'{source.ref.id}' has no tokenizer that transformers can load ({str(error).splitlines()[0][:120]}); add "
            "its tokenizer files to the model folder"
        ) from error


def find_original(original: str | Path | None, ref: ModelRef, token: str | bool | None) -> Path | None:
    """The files of the model that a folder was pruned from, where they can be found.

    Args:
        original: folder or Hub id; the recorded Hub commit when None.
        ref: the record of that model.
        token: of the Hub.

    Returns:
        Its folder; None where the record names none that can be fetched.

    Raises:
        ConfigError: `original` is another model.
    """
    if original is None and ref.revision is None:
        return None
    revision = ref.revision if original is None else None
    base_model = ref.id if "/" in ref.id and original is not None and Path(original).is_dir() else None
    found, _ = locate(original or ref.id, revision=revision, token=token, base_model=base_model)
    if (found.ref.model_type, found.ref.num_layers) != (ref.model_type, ref.num_layers):
        raise ConfigError(
            f"'{original}' is {found.ref.model_type} with {found.ref.num_layers} blocks; the folder was made from "
            f"'{ref.id}', {ref.model_type} with {ref.num_layers}. Name the model that was pruned"
        )
    return found.folder


def dtype_of(name: str) -> str | torch.dtype:
    """A dtype by its name in torch; "auto" stays.

    Raises:
        ConfigError: there is no such floating dtype.
    """
    allowed = ("auto", "float32", "bfloat16", "float16")
    if name not in allowed:
        raise ConfigError(f"dtype='{name}'; expected one of: {', '.join(allowed)}")
    return name if name == "auto" else getattr(torch, name)


def is_known(model_type: Any) -> bool:
    """Whether transformers, or this package for its sliced models, has the architecture without code from a repo."""
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _name_of_folder(folder: Path, base_model: str | None) -> tuple[str, bool]:
    """What records call a folder, and whether that is a Hub id: the given id, else its card's, else its bare name."""
    if base_model is not None:
        if not _HUB_ID.fullmatch(base_model):
            raise ConfigError(f"base_model={base_model!r}; expected a Hub id such as org/name")
        return base_model, True
    named = _name_in_card(folder / "README.md")
    if named is not None:
        return named, True
    bare = bare_name(str(folder.resolve()))
    logger.warning(
        "'%s' is a folder: its records and card will call the base model '%s', which nobody can look up; name the one "
        'it stands for with base_model="org/name" (--base-model)', bare, bare,
    )  # fmt: skip
    return bare, False


def bare_name(name: str) -> str:
    """A Hub id as it is, a path as its last part: records never hold paths."""
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else Path(name).name


def _name_in_card(path: Path) -> str | None:
    """The Hub id that a card gives as its own model's name, if it gives one."""
    if not path.is_file():
        return None
    try:
        data = ModelCard(path.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("the card of the base model cannot be read (%s); it is passed by", type(error).__name__)
        return None
    name = getattr(data, "model_name", None)
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) else None
