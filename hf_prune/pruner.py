"""`Pruner`: what people call. It takes a Hub id, a folder or a model in memory, and saves and pushes what is made."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import environment, loading
from hf_prune.amounts import check_amount
from hf_prune.architecture import check_prunable, decoder_of
from hf_prune.config import PrunerConfig
from hf_prune.file_to_file import file_to_file
from hf_prune.hub import PushResult
from hf_prune.loading import Fetched, Source, bare_name
from hf_prune.memory_budget import MaxMemory, budget_of
from hf_prune.models import Models, name_given, weights_digest
from hf_prune.output import ADAPTER, Finished, push_output, write_output
from hf_prune.patching.families import check_patchable
from hf_prune.placement import load_kwargs
from hf_prune.records import Evaluation, ModelRef, Plan
from hf_prune.run_folder import RunFolder, remove
from hf_prune.saving import RECORDS
from hf_prune.shards import shard_limit
from hf_prune.slicing.families import check_sliceable
from hf_prune.stages import Stages
from hf_prune.streaming import check_bound
from hf_prune.writers import Writer, from_memory


class Pruner(Stages):
    """Prunes one causal language model.

    Args:
        model: the model in memory; it is cut in place.
        tokenizer: its tokenizer.
        config: the recipe.
        run_folder: where finished stages are kept, so that the same calls go on after a kill; a temporary folder when
            None.
        progress: whether to show bars.

    Raises:
        ArchitectureError: the model cannot lose blocks.
        ConfigError: the recipe does not fit the model.

    Example:
        ```python
        pruner = Pruner.from_pretrained("org/model", PrunerConfig(method="uidl", drop_layers=8))
        pruner.prune()
        pruner.heal()
        pruner.evaluate()
        pruner.save_pretrained("out")
        ```
    """

    _taken_up: tuple[Path, Finished] | None = None
    _came: str | None = None
    """How the weights of what was cut from file to file came here."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        config: PrunerConfig | None = None,
        *,
        run_folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        decoder = decoder_of(model)
        check_prunable(model.config, decoder.name)
        digest = weights_digest(model)
        ref = ModelRef(bare_name(decoder.name), None, decoder.config.model_type, decoder.num_layers, digest)
        config, run = config or PrunerConfig(), RunFolder(run_folder)
        check_recipe(config, decoder.config, ref.num_layers, ref.id)
        models = Models(Source(ref, None, False), tokenizer, run, load_kwargs(model.dtype, None, False), model)
        super().__init__(config, models, tokenizer, run, model.config, None, progress)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        config: PrunerConfig | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        trust_remote_code: bool = False,
        run_folder: str | Path | None = None,
        progress: bool = True,
        max_memory: MaxMemory | None = None,
        verify_hash: bool = False,
    ) -> Self:
        """Pin and check a model of the Hub or a folder; its weights are fetched and loaded when they are first needed.

        Some never are: a plan that drops blocks is carried out from file to file where nothing has loaded the model,
        of a model on the Hub by fetching only what is kept.

        Args:
            model_id: Hub id or folder.
            config: the recipe; `PrunerConfig()` when None.
            revision: branch, tag or commit; resolved to a commit once.
            token: of the Hub; None takes the stored one.
            dtype: of the weights; "auto" takes the checkpoint's.
            device_map: as in transformers; "auto" where a GPU is there and None is given.
            trust_remote_code: whether code from the repo may run.
            run_folder: where finished stages are kept.
            progress: whether to show bars.
            max_memory: what may be used of each device, as accelerate has it ({"cpu": "4GB", 0: "10GB"}): the model
                is then measured block by block. None takes that way only where the model has no room in memory.
            verify_hash: fetch whole files, and hold each against the hash that the Hub has of it.

        Raises:
            HubError: no such repo or revision, no access, or offline with nothing cached.
            CheckpointError: pickles only, broken files, or weights that disagree with the config.
            ArchitectureError: the model cannot lose blocks.
            ConfigError: the recipe does not fit the model, memory cannot be bounded so, or a folder has no hashes.
        """
        config, kwargs = config or PrunerConfig(), load_kwargs(dtype, device_map, trust_remote_code)
        budget_of(max_memory)
        source, model_config = loading.locate(
            model_id,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            base_model=name_given(config, model_id),
            weights=False,
        )
        loading.check_verifiable(source, model_id, verify_hash)
        check_recipe(config, model_config.get_text_config(decoder=True), source.ref.num_layers, source.ref.id)
        quantized = getattr(model_config, "quantization_config", None) is not None
        check_bound(max_memory, quantized, source.ref.id)
        tokenizer = loading.load_tokenizer(source, trust_remote_code=trust_remote_code)
        run = RunFolder(run_folder)

        def fetch() -> Fetched:
            return loading.fetch_weights(
                source, model_config, token=token, trust_remote_code=trust_remote_code, verify_hash=verify_hash
            )

        models = Models(
            source,
            tokenizer,
            run,
            kwargs,
            fetch=fetch,
            max_memory=max_memory,
            quantized=quantized,
            whole_files=verify_hash,
        )
        self = cls.__new__(cls)
        Stages.__init__(self, config, models, tokenizer, run, model_config, token, progress)
        return self

    @classmethod
    def from_pruned(
        cls,
        folder: str | Path,
        config: PrunerConfig | None = None,
        *,
        original: str | Path | None = None,
        token: str | bool | None = None,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        trust_remote_code: bool = False,
        run_folder: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Take up a folder that this package wrote, to heal, evaluate or push it.

        Args:
            folder: what `save_pretrained` wrote.
            config: the recipe to go on with; the folder's own when None.
            original: folder or Hub id of the base model; its Hub commit from the records when None. Needed only for
                what compares with it or samples text from it.
            token: of the Hub.
            dtype: as in `from_pretrained`.
            device_map: as in `from_pretrained`.
            trust_remote_code: as in `from_pretrained`.
            run_folder: where finished stages are kept.
            progress: whether to show bars.

        Raises:
            ConfigError: the folder holds no records, or `original` is another model than the one that was pruned.
        """
        folder, kwargs = Path(folder), load_kwargs(dtype, device_map, trust_remote_code)
        finished = Finished.load(folder)
        plan, ref = finished.plan, finished.plan.model
        model_config = loading.read_config(folder, bare_name(str(folder)), trust_remote_code=trust_remote_code)
        pruned = Source(dataclasses.replace(ref, num_layers=len(plan.kept)), folder, False)
        tokenizer = loading.load_tokenizer(pruned, trust_remote_code=trust_remote_code)
        # The base may be large and is not always needed: one that the records name is fetched when it is.
        found = None if original is None else loading.find_original(original, ref, token)
        run = RunFolder(run_folder)
        models = Models(
            Source(ref, found, "/" in ref.id),
            tokenizer,
            run,
            kwargs,
            find=lambda: loading.find_original(None, ref, token),
        )
        adapter = folder / ADAPTER if (folder / ADAPTER).is_dir() else None
        models.take_up(pruned, "pruned" if finished.healing is None else "healed", adapter)
        self = cls.__new__(cls)
        Stages.__init__(self, config or finished.config, models, tokenizer, run, model_config, token, progress)
        self._plan, self._scores, self._healing = plan, finished.scores, finished.healing
        self._adapter, self._taken_up = adapter, (folder, finished)
        return self

    def finished(self) -> Finished:
        """All records so far; the reload level and licence files are filled in when the folder is written."""
        models = self.judge.figures
        return Finished(
            config=self.config.without_paths(),
            plan=self.plan(),
            scores=self._scores,
            healing=self._healing,
            evaluation=Evaluation(models, environment.describe(self.model)) if models else None,
            base_card=self.source.card if self._taken_up is None else self._taken_up[1].base_card,
            base_files=(),
            reload_level="none",
            fetched=self._fetched(),
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        max_shard_size: str = "5GB",
        inputs: str | None = None,
        **push_kwargs: Any,
    ) -> Path:
        """Write the model with tokenizer, recipe, records and card; the folder appears whole or not at all.

        Args:
            save_directory: new or empty folder.
            push_to_hub: whether to push it as well.
            repo_id: repo to push to; the folder's name when None.
            max_shard_size: as in transformers.
            inputs: digest of everything that the folder is made from, so that a repeated call can tell.
            push_kwargs: see `push_to_hub`.

        Returns:
            The folder.

        Raises:
            ConfigError: `max_shard_size` is no size.
            OutputError: the folder is not empty, another process fills it, or the disk is full.
            ReloadError: what was saved does not load back with stock transformers.
        """
        shard_limit(max_shard_size)
        self.check_cut()
        folder, plan = Path(save_directory), self.plan()
        adapter = self._adapter if self._healing is not None and self._healing.output == "adapter" else None
        work = self.run.path / "weights" if self.run.lasting else None
        write = file_to_file(
            self.models,
            self.tokenizer,
            plan,
            work=work,
            token=self._token,
            max_shard_size=max_shard_size,
            progress=self._progress,
        )
        if write is None:
            write = self._from_memory(adapter, plan, max_shard_size)
        finished = dataclasses.replace(self.finished(), inputs=inputs)
        with self.run.alone():
            written = write_output(
                folder, write, finished, repo_id=repo_id, adapter=adapter, tokens=self._token_files()
            )
            if work is not None:
                remove(work)
        if self.models.stage == "original":
            self.models.take_up(dataclasses.replace(self.models.pruned_source(plan), folder=folder), "pruned")
            self._came = written.fetched
        self._saved = folder
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name, **push_kwargs)
        return folder

    def _from_memory(self, adapter: Path | None, plan: Plan, max_shard_size: str) -> Writer:
        if self.models.stage == "original":
            self.prune()
        (origin, keep), came = self._origin(), self._fetched()
        return from_memory(
            self.model if adapter is None else self.models.pruned(plan),
            self.tokenizer,
            origin=origin,
            keep=keep,
            # Of a base that came in parts there are no files to hold them against.
            unchanged=(self._healing is None or adapter is not None) and plan.unchanged and came != "ranges",
            max_shard_size=max_shard_size,
            trust_remote_code=self.models.kwargs["trust_remote_code"],
            fetched=came,
        )

    def _fetched(self) -> str:
        came = self._came if self._taken_up is None else self._taken_up[1].fetched
        return came or self.models.fetched or "whole"

    def _origin(self) -> tuple[Path | None, Sequence[int]]:
        """The folder that config, tokenizer and licence come from, and which of its blocks are kept."""
        kept = self.plan().kept
        return (self.source.folder, kept) if self._taken_up is None else (self._taken_up[0], range(len(kept)))

    def _token_files(self) -> tuple[Path, ...]:
        """Texts that were sampled from the model, those of a folder that was taken up too."""
        before = [] if self._taken_up is None else (self._taken_up[0] / RECORDS).glob("*_tokens.safetensors")
        return tuple({path.name: path for path in (*before, *self.texts.sampled_files())}.values())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> PushResult:
        """Push the saved folder by one commit, saving it first where that was not done.

        Args:
            repo_id: `namespace/name`, or `name` in the user's own namespace.
            private: whether a new repo is private; None makes it private where the base is gated or private.
            revision: branch; made where it is missing.
            token: of the Hub; None takes the one given to `from_pretrained`, else the stored one.
            commit_message: first line of the commit.
            create_pr: open a pull request instead.
            overwrite: replace a model that hf-prune did not make.
            dry_run: only tell what would happen.

        Raises:
            HubError: the Hub refused, or holds something else than what was sent.
        """
        if self._saved is None:
            remove(self.run.path / "output")
            self.save_pretrained(self.run.path / "output", repo_id=repo_id)
        assert self._saved is not None
        return push_output(
            self._saved,
            repo_id,
            private=private,
            revision=revision,
            token=token if token is not None else self._token,
            commit_message=commit_message,
            create_pr=create_pr,
            overwrite=overwrite,
            dry_run=dry_run,
        )


def check_recipe(config: PrunerConfig, model_config: Any, depth: int, name: str) -> None:
    """Refuse a recipe that the model cannot take, before any work.

    Args:
        config: the recipe, with or without an amount.
        model_config: text config of the model.
        depth: number of blocks.
        name: what the model is called in errors.

    Raises:
        ConfigError: the amount does not fit.
        ArchitectureError: the family cannot be sliced, or no parts can be taken out of its blocks.
        CheckpointError: quantized weights cannot be sliced.
    """
    if config.recipe().cuts == "width":
        check_sliceable(model_config, name)
    if config.ships_code:
        check_patchable(model_config, name)
    check_amount(config, depth, name, needed=False)
