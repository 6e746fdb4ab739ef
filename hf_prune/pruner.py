"""`Pruner`: the stages in a row, for one model. Glue only; every stage is also a plain function of its own."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import hf_prune
from hf_prune import calibration, environment, healing, loading
from hf_prune.architecture import check_prunable, decoder_of
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.evaluation.stage import Judge
from hf_prune.hub import PushResult
from hf_prune.loading import Source, bare_name
from hf_prune.measure import measure_model
from hf_prune.models import LABELS, Label, Models, load_kwargs
from hf_prune.output import Finished, push_output, write_output
from hf_prune.plan import Sizes, check_amount, make_plan
from hf_prune.records import Evaluation, Healing, ModelEvaluation, ModelRef, Plan, Scores
from hf_prune.run_folder import RunFolder
from hf_prune.texts import Texts

logger = logging.getLogger(__name__)


class Pruner:
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
        ref = ModelRef(bare_name(decoder.name), None, decoder.config.model_type, decoder.num_layers)
        config, run = config or PrunerConfig(), RunFolder(run_folder and Path(run_folder))
        check_amount(config, ref.num_layers, ref.id, needed=False)
        models = Models(Source(ref, None, False), tokenizer, run, load_kwargs(model.dtype, None, False), model)
        self._set_up(config, tokenizer, models, run, model.config, None, progress)

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
    ) -> Self:
        """Pin and check a model of the Hub or a folder; its weights are loaded when they are first needed.

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

        Raises:
            HubError: no such repo or revision, no access, or offline with nothing cached.
            CheckpointError: pickles only, broken files, or weights that disagree with the config.
            ArchitectureError: the model cannot lose blocks.
            ConfigError: the recipe does not fit the model.
        """
        config = config or PrunerConfig()
        source, model_config = loading.locate(
            model_id,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            base_model=config.base_model if Path(model_id).is_dir() else None,
        )
        check_amount(config, source.ref.num_layers, source.ref.id, needed=False)
        tokenizer = loading.load_tokenizer(source, trust_remote_code=trust_remote_code)
        run = RunFolder(run_folder and Path(run_folder))
        models = Models(source, tokenizer, run, load_kwargs(dtype, device_map, trust_remote_code))
        self = cls.__new__(cls)
        self._set_up(config, tokenizer, models, run, model_config, token, progress)
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
        folder = Path(folder)
        finished = Finished.load(folder)
        plan, ref = finished.plan, finished.plan.model
        model_config = loading.read_config(folder, bare_name(str(folder)), trust_remote_code=trust_remote_code)
        pruned = Source(dataclasses.replace(ref, num_layers=len(plan.kept)), folder, False)
        tokenizer = loading.load_tokenizer(pruned, trust_remote_code=trust_remote_code)
        source = Source(ref, loading.find_original(original, ref, token), "/" in ref.id)
        run = RunFolder(run_folder and Path(run_folder))
        models = Models(source, tokenizer, run, load_kwargs(dtype, device_map, trust_remote_code))
        models.take_up(pruned, "pruned" if finished.healing is None else "healed")
        self = cls.__new__(cls)
        self._set_up(config or finished.config, tokenizer, models, run, model_config, token, progress)
        self._plan, self._scores, self._healing = plan, finished.scores, finished.healing
        return self

    def _set_up(
        self,
        config: PrunerConfig,
        tokenizer: Tokenizer,
        models: Models,
        run: RunFolder,
        model_config: Any,
        token: str | bool | None,
        progress: bool,
    ) -> None:
        self.source = models.source
        check_prunable(model_config, self.source.ref.id)
        self.config = dataclasses.replace(
            config,
            base_model=self.source.ref.id,
            base_revision=self.source.ref.revision,
            hf_prune_version=hf_prune.__version__,
        )
        self.tokenizer, self.models, self.run = tokenizer, models, run
        self._limit = calibration.model_limit(model_config.get_text_config(decoder=True))
        self._progress, self._token = progress, token
        self._scores: Scores | None = None
        self._plan: Plan | None = None
        self._healing: Healing | None = None
        self._adapter: Path | None = None
        self._saved: Path | None = None
        self.texts = Texts(
            self.config, tokenizer, self._limit, self.source.ref.digest, run, models.original, token, progress
        )
        self.judge = Judge(self.config.evaluation, models, self.texts, tokenizer, run, self._limit)

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now: original, pruned or healed; loaded when it is not in memory."""
        return self.models.current()

    def measure(self) -> Scores:
        """Measure the distances that the recipe's planner chooses by, in one pass over the calibration text.

        Raises:
            ConfigError: the recipe measures nothing.
            DataError: the calibration text cannot be had.
            MeasureError: NaN or infinite hidden states.
        """
        recipe = self.config.recipe()
        if recipe.measure is None:
            raise ConfigError(f"method '{recipe.name}' measures nothing; give measure='angular' to measure anyway")
        if self._scores is None:
            samples = self.texts.calibration()
            inputs = {
                "model": self.source.ref,
                "measure": recipe.measure,
                "options": self.config.measure_kwargs,
                "text": samples.use,
                "dtype": str(self.models.kwargs["dtype"]),
            }
            if self.run.has("measure", inputs):
                self._scores = Scores.load(self.run.path)
            else:
                self._scores = measure_model(
                    decoder_of(self.models.original(), self.source.ref.id),
                    samples,
                    model=self.source.ref,
                    name=recipe.measure,
                    options=self.config.measure_kwargs,
                    batch_size=self.config.calibration.batch_size,
                    progress=self._progress,
                )
                self._scores.save(self.run.path)
                self.run.finish("measure", inputs)
        return self._scores

    def plan(self) -> Plan:
        """Choose the layers that go; measures first where the recipe needs it.

        Raises:
            ConfigError: no amount, or one that the model cannot lose.
        """
        if self._plan is None:
            check_amount(self.config, self.source.ref.num_layers, self.source.ref.id)
            measured = self.config.recipe().measure is not None and self.config.layers is None
            scores = self.measure() if measured else None
            by_weight = self.config.sparsity is not None and self.config.sparsity_of != "layers"
            sizes = self.models.sizes() if by_weight else Sizes((), (), 0, 0)
            self._plan = make_plan(self.config, self.source.ref, sizes, scores)
            self._plan.save(self.run.path)
        return self._plan

    def use_plan(self, plan: Plan) -> None:
        """Carry out a plan that was made before, instead of choosing.

        Raises:
            ConfigError: it was made for another model.
        """
        if (plan.model.num_layers, plan.model.model_type, plan.model.digest) != (
            self.source.ref.num_layers, self.source.ref.model_type, self.source.ref.digest,
        ):  # fmt: skip
            raise ConfigError(
                f"the plan was made for '{plan.model.id}' ({plan.model.num_layers} {plan.model.model_type} blocks, "
                f"digest {plan.model.digest[:12]}); '{self.source.ref.id}' has {self.source.ref.num_layers} "
                f"{self.source.ref.model_type} blocks and digest {self.source.ref.digest[:12]}. Plan again"
            )
        self._plan = plan

    def prune(self) -> PreTrainedModel:
        """Cut the model, planning first where that was not done.

        A model that was handed over in memory is cut in place, so whatever needs the original (its evaluation, text
        sampled from it for healing) is done before; a model of a folder or the Hub is loaded again when needed.

        Returns:
            The pruned model.
        """
        if self.models.stage != "original":
            raise ConfigError(f"the model is {self.models.stage} already; make a new Pruner to prune it further")
        plan = self.plan()
        if not self.models.reloadable:
            self.evaluate_as("original")
            self.prepare_healing()
        self.models.cut(plan)
        return self.model

    def prepare_healing(self) -> None:
        """Sample the healing text now, while the original is in memory, where that is where it comes from."""
        if self.texts.samples_itself("healing"):
            settings = self._resolve_healing()
            self.texts.held_out(settings)
            self.texts.healing(settings)

    def heal(self) -> Healing:
        """Heal the pruned model by LoRA or QLoRA, pruning first where that was not done.

        An interrupted run goes on from its last checkpoint when the same call is made with the same run folder.

        Raises:
            MissingExtraError: peft or accelerate is not installed.
            DataError: the healing text cannot be had.
        """
        if self.models.stage == "healed":
            raise ConfigError("the model is healed already; make a new Pruner to heal it again")
        healing.require()
        if self.models.stage == "original":
            self.prune()
        settings = self._resolve_healing()
        held_out, samples = self.texts.held_out(settings), self.texts.healing(settings)
        folder, device = self.models.checkpoint(self.plan()).folder, self.model.device
        assert folder is not None
        self.models.release()  # the trainer loads its own copy, quantized where asked
        result = healing.heal(
            folder,
            samples,
            held_out,
            settings,
            run_folder=self.run.path / "healing",
            base_model=self.source.ref.id,
            device=device,
            progress=self._progress,
            trust_remote_code=self.models.kwargs["trust_remote_code"],
        )
        self.models.replace(result.model)
        self._adapter, self._healing = result.adapter, result.record
        self.config = dataclasses.replace(self.config, healing=settings)
        self._healing.save(self.run.path)
        return self._healing

    def _resolve_healing(self) -> HealingConfig:
        return healing.resolve(
            self.config.healing,
            recipe=self.config.recipe().healing,
            base_model=self.source.ref.id,
            limit=self._limit,
            parameters=self.models.pruned_parameters(self.plan()),
            device=self.model.device,
            run_folder=self.run.path,
        )

    def evaluate(self) -> Evaluation:
        """Measure original, pruned and (where healed) healed model, as far as that was not done yet.

        Of a healed folder that was taken up, the pruned weights are gone: original and healed are measured.
        """
        labels = list(LABELS[: LABELS.index(self.models.stage) + 1])
        if self.models.stage == "healed" and self._adapter is None:
            labels.remove("pruned")
        models = tuple(self.evaluate_as(label) for label in labels)
        record = Evaluation(models, environment.describe(self.model))
        record.save(self.run.path)
        return record

    def evaluate_as(self, label: Label) -> ModelEvaluation:
        """Measure one of the three models; the original is best measured before surgery, while it is in memory."""
        plan = None if label == "original" else self.plan()
        return self.judge.measure(label, plan, self._healing if label == "healed" else None)

    def finished(self) -> Finished:
        """All records so far; the reload level and licence files are filled in when the folder is written."""
        models = self.judge.figures
        return Finished(
            config=self.config.without_paths(),
            plan=self.plan(),
            scores=self._scores,
            healing=self._healing,
            evaluation=Evaluation(models, environment.describe(self.model)) if models else None,
            base_card=self.source.card,
            base_files=(),
            reload_level="none",
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
            OutputError: the folder is not empty, or the disk is full.
            ReloadError: what was saved does not load back with stock transformers.
        """
        folder = Path(save_directory)
        if self.models.stage == "original":
            self.prune()
        adapter = self._adapter if self._healing is not None and self._healing.output == "adapter" else None
        model = self.model if adapter is None else self.models.pruned(self.plan())
        write_output(
            folder,
            model,
            self.tokenizer,
            self.source,
            dataclasses.replace(self.finished(), inputs=inputs),
            repo_id=repo_id,
            adapter=adapter,
            tokens=tuple(self.texts.sampled_files()),
            max_shard_size=max_shard_size,
            trust_remote_code=self.models.kwargs["trust_remote_code"],
        )
        self._saved = folder
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name, **push_kwargs)
        return folder

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
