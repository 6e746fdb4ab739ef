"""`Pruner`: the stages in a row, for one model. Glue only; every stage is also a plain function of its own."""

import dataclasses
import gc
import logging
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import hf_prune
from hf_prune import calibration, environment, healing, loading, serial
from hf_prune.architecture import check_prunable, decoder_of, layer_count
from hf_prune.architecture.decoder import block_sizes, parameter_bytes
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError, OutputError
from hf_prune.evaluation import Reference, evaluate, evaluate_original
from hf_prune.hub import PushResult
from hf_prune.loading import Source, bare_name
from hf_prune.output import Finished, push_output, write_output
from hf_prune.plan import Sizes, check_amount, make_plan
from hf_prune.records import Evaluation, Healing, ModelEvaluation, ModelRef, Plan, Scores, TextUse
from hf_prune.registry import measure
from hf_prune.reload import check_reload
from hf_prune.run_folder import RunFolder
from hf_prune.runner import Walker
from hf_prune.samples import Samples, batches
from hf_prune.saving import save_model, staged
from hf_prune.surgery import apply_plan
from hf_prune.texts import Texts

logger = logging.getLogger(__name__)

Label = Literal["original", "pruned", "healed"]


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
        name = bare_name(decoder.name)
        ref = ModelRef(name, None, decoder.config.model_type, decoder.num_layers)
        self._load_kwargs = _load_kwargs(model.dtype, None, False)
        self._setup(config or PrunerConfig(), tokenizer, Source(ref, None, False), model.config, run_folder, progress)
        self._model: PreTrainedModel | None = model

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
        self = cls.__new__(cls)
        self._model = None
        self._load_kwargs = _load_kwargs(dtype, device_map, trust_remote_code)
        tokenizer = loading.load_tokenizer(source, trust_remote_code=trust_remote_code)
        self._setup(config, tokenizer, source, model_config, run_folder, progress, token)
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
        ref = finished.plan.model
        base: Path | None = None
        if original is not None or ref.revision is not None:
            revision = ref.revision if original is None else None
            found, _ = loading.locate(
                original or ref.id, revision=revision, token=token, base_model=ref.id if "/" in ref.id else None
            )
            if (found.ref.model_type, found.ref.num_layers) != (ref.model_type, ref.num_layers):
                raise ConfigError(
                    f"'{original}' is {found.ref.model_type} with {found.ref.num_layers} blocks; '{folder}' was made "
                    f"from '{ref.id}', {ref.model_type} with {ref.num_layers}. Name the model that was pruned"
                )
            base = found.folder
        name = bare_name(str(folder.resolve()))
        model_config = loading.read_config(folder, name, trust_remote_code=trust_remote_code)
        pruned = Source(dataclasses.replace(ref, num_layers=len(finished.plan.kept)), folder, False)
        self = cls.__new__(cls)
        self._model = None
        self._load_kwargs = _load_kwargs(dtype, device_map, trust_remote_code)
        tokenizer = loading.load_tokenizer(pruned, trust_remote_code=trust_remote_code)
        # The recipe's amount speaks of the original's depth; it was carried out already.
        source = Source(ref, base, "/" in ref.id)
        self._setup(
            config or finished.config, tokenizer, source, model_config, run_folder, progress, token, check=False
        )
        self._pruned, self._plan, self._scores = pruned, finished.plan, finished.scores
        self._stage, self._healing = ("healed" if finished.healing else "pruned"), finished.healing
        return self

    def _setup(
        self,
        config: PrunerConfig,
        tokenizer: Tokenizer,
        source: Source,
        model_config: Any,
        run_folder: str | Path | None,
        progress: bool,
        token: str | bool | None = None,
        *,
        check: bool = True,
    ) -> None:
        check_prunable(model_config, source.ref.id)
        text_config = model_config.get_text_config(decoder=True)
        if not check:
            pass
        elif config.drop_layers is not None or config.layers is not None or config.sparsity is not None:
            check_amount(config, layer_count(text_config), source.ref.id)
        self.config = dataclasses.replace(
            config,
            base_model=source.ref.id,
            base_revision=source.ref.revision,
            hf_prune_version=hf_prune.__version__,
        )
        self.tokenizer, self.source, self.run = tokenizer, source, RunFolder(run_folder and Path(run_folder))
        self._limit = calibration.model_limit(text_config)
        self._progress, self._token = progress, token
        self._stage: Label = "original"
        self._scores: Scores | None = None
        self._plan: Plan | None = None
        self._healing: Healing | None = None
        self._adapter: Path | None = None
        self._pruned: Source | None = None
        self.saved: Path | None = None
        self._evaluated: dict[Label, ModelEvaluation] = {}
        self.texts = Texts(
            self.config, tokenizer, self._limit, source.ref.digest, self.run, self._original, token, progress
        )

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now: original, pruned or healed; loaded when it is not in memory."""
        if self._model is None:
            if self._stage == "original":
                self._model = loading.load_model(self.source, **self._load_kwargs)
            else:
                self._model = loading.load_model(self._pruned_source(), **self._load_kwargs)
        return self._model

    def _original(self) -> PreTrainedModel:
        """The uncut model.

        Raises:
            ConfigError: it was handed over in memory and has been cut since.
        """
        if self._stage == "original":
            return self.model
        if self.source.folder is None:
            raise ConfigError(
                "the original model is needed, but it was given in memory and has been cut in place. Give a folder or "
                "Hub id to Pruner.from_pretrained, or a dataset to sample no text from the model"
            )
        return loading.load_model(self.source, **self._load_kwargs)

    def _release(self) -> None:
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
                "dtype": str(self._load_kwargs.get("dtype")),
            }
            if self.run.has("measure", inputs):
                self._scores = Scores.load(self.run.path)
            else:
                self._scores = self._measure(recipe.measure)
                self._scores.save(self.run.path)
                self.run.finish("measure", inputs)
        return self._scores

    def _measure(self, name: str) -> Scores:
        samples = self.texts.calibration()
        observer = measure.get(name).function(**self.config.measure_kwargs)
        model = self._original()
        size = self.config.calibration.batch_size
        number = -(-len(samples.sequences) // size) if self._progress else None
        walker = Walker(decoder_of(model, self.source.ref.id))
        seconds = walker.walk(batches(samples.sequences, size), [observer], number)
        found = observer.result()
        return Scores(
            model=self.source.ref,
            measure=name,
            options=dict(self.config.measure_kwargs),
            distances=found["distances"],
            standard_errors=found["standard_errors"],
            data=samples.use,
            environment=environment.describe(model),
            seconds=seconds,
        )

    def plan(self) -> Plan:
        """Choose the layers that go; measures first where the recipe needs it.

        Raises:
            ConfigError: no amount, or one that the model cannot lose.
        """
        if self._plan is None:
            check_amount(self.config, self.source.ref.num_layers, self.source.ref.id)
            measured = self.config.recipe().measure is not None and self.config.layers is None
            scores = self.measure() if measured else None
            self._plan = make_plan(self.config, self.source.ref, self._sizes(), scores)
            self._plan.save(self.run.path)
        return self._plan

    def _sizes(self) -> Sizes:
        if self.config.sparsity is None or self.config.sparsity_of == "layers":
            return Sizes((), (), 0, 0)  # only shares of parameters or bytes need the weights
        model = self._original()
        parameters, size = block_sizes(decoder_of(model, self.source.ref.id))
        total = sum(p.numel() for p in model.parameters())
        return Sizes(tuple(parameters), tuple(size), total, parameter_bytes(model))

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
        if self._stage != "original":
            raise ConfigError(f"the model is {self._stage} already; make a new Pruner to prune it further")
        plan = self.plan()
        if self.source.folder is None:
            self.evaluate_as("original")
            self.prepare_healing()
        if self._model is None and self.run.has("pruned", self._pruned_inputs()):
            self._stage = "pruned"
            return self.model
        apply_plan(decoder_of(self.model, self.source.ref.id), plan)
        self._stage = "pruned"
        return self.model

    def prepare_healing(self) -> None:
        """Sample the healing text now, while the original is in memory, where that is where it comes from."""
        if self.texts.samples_itself("healing"):
            settings = self._resolve_healing()
            self.texts.held_out(settings)
            self.texts.healing(settings)

    def _pruned_inputs(self) -> dict[str, Any]:
        return {"plan": self.plan(), "dtype": str(self._load_kwargs.get("dtype"))}

    def _pruned_source(self) -> Source:
        """The pruned model as a checkpoint: the folder taken up, or one in the run folder, written when needed."""
        if self._pruned is not None:
            return self._pruned
        folder, inputs = self.run.path / "pruned", self._pruned_inputs()
        if not self.run.has("pruned", inputs):
            if folder.exists():
                raise OutputError(
                    f"the run folder '{self.run.path}' holds a pruned model of other settings; remove it, or choose "
                    "another output"
                )
            keep = self.plan().kept
            with staged(folder) as stage:
                save_model(self.model, self.tokenizer, stage, source=self.source.folder, keep=keep)
                check_reload(self.model, stage, source=self.source.folder, keep=keep)
            self.run.finish("pruned", inputs)
        ref = dataclasses.replace(self.source.ref, num_layers=len(self.plan().kept))
        return Source(ref, folder, self.source.on_hub)

    def heal(self) -> Healing:
        """Heal the pruned model by LoRA or QLoRA, pruning first where that was not done.

        An interrupted run goes on from its last checkpoint when the same call is made with the same run folder.

        Raises:
            MissingExtraError: peft or accelerate is not installed.
            DataError: the healing text cannot be had.
        """
        if self._stage == "healed":
            raise ConfigError("the model is healed already; make a new Pruner to heal it again")
        healing.require_packages()
        if self._stage == "original":
            self.prune()
        settings = self._resolve_healing()
        held_out, samples = self.texts.held_out(settings), self.texts.healing(settings)
        folder = self._pruned_source().folder
        assert folder is not None
        device = self.model.device
        self._release()  # the trainer loads its own copy, quantized where asked
        result = healing.heal(
            folder,
            samples,
            held_out,
            settings,
            run_folder=self.run.path,
            base_name=self.source.ref.id,
            device=device,
            progress=self._progress,
            trust_remote_code=self._load_kwargs["trust_remote_code"],
        )
        self._model, self._adapter, self._healing = result.model, result.adapter, result.record
        self._stage = "healed"
        self.config = dataclasses.replace(self.config, healing=settings)
        self._healing.save(self.run.path)
        return self._healing

    def _resolve_healing(self) -> HealingConfig:
        model = self.model
        parameters = sum(p.numel() for p in model.parameters())
        if self._stage == "original":
            sizes, _ = block_sizes(decoder_of(model, self.source.ref.id))
            parameters -= sum(sizes[i] for i in self.plan().dropped)
        return healing.resolve(
            self.config.healing,
            recipe=self.config.recipe().healing,
            base_model=self.source.ref.id,
            limit=self._limit,
            parameters=parameters,
            device=model.device,
            run_folder=self.run.path,
        )

    def evaluate(self) -> Evaluation:
        """Measure original, pruned and (where healed) healed model, as far as that was not done yet.

        Of a healed folder that was taken up, the pruned weights are gone: original and healed are measured.
        """
        labels: list[Label] = ["original", "pruned", "healed"]
        labels = labels[: labels.index(self._stage) + 1]
        if self._stage == "healed" and self._pruned is not None and self._adapter is None:
            labels.remove("pruned")
        models = [self.evaluate_as(label) for label in labels]
        record = Evaluation(models=tuple(models), environment=environment.describe(self.model))
        record.save(self.run.path)
        return record

    def evaluate_as(self, label: Label) -> ModelEvaluation:
        """Measure one of the three models; the original is best measured before surgery, while it is in memory."""
        if label in self._evaluated:
            return self._evaluated[label]
        texts = self.texts.evaluation()
        inputs = {
            "label": label,
            "model": self.source.ref,
            "plan": None if label == "original" else self.plan(),
            "healing": self._healing if label == "healed" else None,
            "config": self.config.evaluation,
            "text": texts.use,
            "dtype": str(self._load_kwargs.get("dtype")),
        }
        stage, reference = f"evaluation-{label}", self.run.path / "reference.safetensors"
        if self.run.has(stage, inputs):
            found = serial.from_dict(ModelEvaluation, serial.read_json(self.run.path / f"{stage}.json"))
        else:
            found = self._evaluate(label, {text_name(texts.use): texts}, reference)
            serial.write_text(self.run.path / f"{stage}.json", serial.dumps(found))
            self.run.finish(stage, inputs)
        self._evaluated[label] = found
        return found

    def _evaluate(self, label: Label, texts: dict[str, Samples], reference: Path) -> ModelEvaluation:
        config = dataclasses.replace(
            self.config.evaluation, max_length=min(self.config.evaluation.max_length, self._limit)
        )
        if label == "original":
            figures, kept = evaluate_original(self._original(), self.tokenizer, texts, config)
            kept.save(reference)
            return figures
        if "original" not in self._evaluated:
            self.evaluate_as("original")
        model = self.model if label == self._stage else loading.load_model(self._pruned_source(), **self._load_kwargs)
        return evaluate(model, self.tokenizer, texts, config, label=label, reference=Reference.load(reference))

    def finished(self) -> Finished:
        """All records so far; the reload level and licence files are filled in when the folder is written."""
        models = tuple(
            self._evaluated[label] for label in ("original", "pruned", "healed") if label in self._evaluated
        )
        return Finished(
            config=without_paths(self.config),
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
        if self._stage == "original":
            self.prune()
        adapter = self._adapter if self._healing is not None and self._healing.output == "adapter" else None
        model = self.model
        if adapter is not None:
            model = loading.load_model(self._pruned_source(), **self._load_kwargs)
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
            trust_remote_code=self._load_kwargs["trust_remote_code"],
        )
        self.saved = folder
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
        if self.saved is None:
            self.save_pretrained(self.run.path / "output", repo_id=repo_id)
        assert self.saved is not None
        return push_output(
            self.saved,
            repo_id,
            private=private,
            revision=revision,
            token=token if token is not None else self._token,
            commit_message=commit_message,
            create_pr=create_pr,
            overwrite=overwrite,
            dry_run=dry_run,
        )


def _load_kwargs(dtype: str | torch.dtype, device_map: Any, trust_remote_code: bool) -> dict[str, Any]:
    return {
        "dtype": loading.dtype_of(dtype) if isinstance(dtype, str) else dtype,
        "device_map": "auto" if device_map is None and torch.cuda.is_available() else device_map,
        "trust_remote_code": trust_remote_code,
    }


def without_paths(config: PrunerConfig) -> PrunerConfig:
    """The recipe as it may travel: a dataset given as a path shrinks to its last part."""

    def shrunk(dataset: str | None) -> str | None:
        return Path(dataset).name if dataset is not None and Path(dataset).exists() else dataset

    parts = {name: getattr(config, name) for name in ("calibration", "healing", "evaluation")}
    return dataclasses.replace(
        config, **{name: dataclasses.replace(part, dataset=shrunk(part.dataset)) for name, part in parts.items()}
    )


def text_name(use: TextUse) -> str:
    """What tables call a text."""
    return use.dataset or "sampled from the original"
