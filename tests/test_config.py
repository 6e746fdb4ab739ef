"""The recipe: what it refuses, and that it travels through dicts, files, folders and the Hub unchanged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig, check_indices
from hf_prune.errors import ConfigError, HubError
from hf_prune.methods import FILES, METHODS, get_method

from . import making  # noqa: F401 (sets the profile of hypothesis)
from .hub.fixtures import ALICE

COUNT = st.integers(1, 10**6)
NAME = st.none() | st.text(max_size=8)
AMOUNT = st.one_of(
    st.just({}),
    COUNT.map(lambda n: {"drop_layers": n}),
    st.sets(st.integers(0, 200), min_size=1, max_size=6).map(lambda s: {"layers": tuple(sorted(s))}),
    st.floats(0, 1, exclude_min=True, exclude_max=True).map(lambda x: {"sparsity": x}),
)
DROPPED = st.tuples(
    AMOUNT,
    st.fixed_dictionaries(
        {
            "sparsity_of": st.sampled_from([None, "layers", "parameters", "bytes"]),
            "protect_first": st.none() | st.integers(0, 9),
            "protect_last": st.none() | st.integers(0, 9),
        }
    ),
).map(lambda parts: parts[0] | parts[1])
SLICED = st.fixed_dictionaries(
    {
        "sparsity_of": st.sampled_from([None, "width", "parameters"]),
        "planner_kwargs": st.fixed_dictionaries({"multiple": st.integers(1, 64)}),
        "surgery_kwargs": st.fixed_dictionaries(
            {
                "basis": st.sampled_from(["per_block", "global"]),
                "orientation": st.sampled_from(["pca", "random"]),
                "tied": st.none() | st.booleans(),
                "seed": st.integers(0, 9),
            }
        ),
    },
    optional={"sparsity": st.floats(0, 1, exclude_min=True, exclude_max=True)},
)
SPARSE = st.fixed_dictionaries(
    {"sparsity_of": st.sampled_from([None, "weights"])},
    optional={"sparsity": st.floats(0, 1, exclude_min=True, exclude_max=True)},
)
FIELDS = {"layers": DROPPED, "width": SLICED, "weights": SPARSE}
CALIBRATION = st.builds(
    CalibrationConfig, dataset=NAME, split=NAME, samples=COUNT, max_length=COUNT, seed=st.integers()
)
HEALING = st.builds(
    HealingConfig,
    rank=st.none() | COUNT,
    dropout=st.none() | st.floats(0, 0.99),
    target=st.none() | st.sampled_from(["mlp", "all"]),
    schedule=st.none() | st.sampled_from(["cosine", "linear"]),
    beta2=st.none() | st.floats(0, 0.999),
    quantize=st.sampled_from(["auto", "nf4", "none"]),
    warmup_steps=st.none() | st.integers(0, 100),
    learning_rate=st.none() | st.floats(1e-9, 0.9),
    output=st.sampled_from(["merged", "adapter"]),
)
EVALUATION = st.builds(
    EvaluationConfig, prompts=st.lists(st.text(max_size=8), max_size=3).map(tuple), speed=st.booleans()
)


@st.composite
def configs(draw: Any) -> PrunerConfig:
    method = draw(st.sampled_from(list(METHODS)))
    fields = draw(FIELDS[METHODS[method].cuts])
    if method == "dynamic-slicing":
        fields["planner_kwargs"]["slice_base"] = draw(st.just("search") | st.floats(0, fields.get("sparsity", 0.99)))
        fields["surgery_kwargs"]["basis"] = "per_block"  # one basis is one width
    return PrunerConfig(
        **fields,
        method=method,
        calibration=draw(CALIBRATION),
        healing=draw(HEALING),
        evaluation=draw(EVALUATION),
        base_model=draw(NAME),
    )


@given(configs())
def test_same_config_from_its_json(config: PrunerConfig) -> None:
    assert PrunerConfig.from_dict(config.to_dict()) == config
    assert PrunerConfig.from_dict(json.loads(config.to_json_string())) == config


def test_same_config_from_folder_and_file(tmp_path: Path) -> None:
    config = PrunerConfig("simple", layers=[22, 21], calibration=CalibrationConfig("org/books", samples=3))
    path = config.save_pretrained(tmp_path / "new" / "recipe")
    assert path == tmp_path / "new" / "recipe" / "pruner_config.json"
    assert PrunerConfig.from_pretrained(path) == config == PrunerConfig.from_pretrained(str(path.parent))
    assert config.layers == (21, 22)
    with pytest.raises(ConfigError, match=r"there is no file .*pruner_config\.json"):
        PrunerConfig.from_pretrained(tmp_path)


def test_travels_through_the_hub(hub, hub_token, new_repo_id, tmp_path) -> None:
    repo = new_repo_id()
    config = PrunerConfig(drop_layers=3, healing=HealingConfig(rank=4))
    url = config.push_to_hub(repo, private=True)
    assert repo in url
    assert HfApi(token=ALICE).model_info(repo).private
    assert PrunerConfig.from_pretrained(repo) == config

    other = dataclasses.replace(config, drop_layers=4)
    other.save_pretrained(tmp_path / "recipe", push_to_hub=True, repo_id=repo)
    assert PrunerConfig.from_pretrained(tmp_path / "recipe") == other
    assert PrunerConfig.from_pretrained(repo, token=ALICE) == other
    first = url.rsplit("/", 1)[-1]
    assert PrunerConfig.from_pretrained(repo, revision=first) == config


def test_pushed_under_the_folder_name(hub, hub_token, tmp_path) -> None:
    PrunerConfig(drop_layers=3).save_pretrained(tmp_path / "recipe-of-a-folder", push_to_hub=True)
    assert PrunerConfig.from_pretrained("alice/recipe-of-a-folder") == PrunerConfig(drop_layers=3)


def test_no_recipe_on_the_hub(hub, hub_token, new_repo_id) -> None:
    with pytest.raises(HubError, match="alice/nothing"):
        PrunerConfig.from_pretrained("alice/nothing")
    repo = new_repo_id()
    hub.add_repo(repo, {"README.md": "no recipe here"})
    with pytest.raises(HubError, match=rf"pruner_config\.json.*{repo}"):
        PrunerConfig.from_pretrained(repo)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"drop_layer": 3}, "PrunerConfig has no key 'drop_layer'.*Did you mean 'drop_layers'"),
        ({"calibration": {"sampels": 3}}, r"PrunerConfig\.calibration has no key 'sampels'.*Did you mean 'samples'"),
        ({"healing": {"rank": "8"}}, r"PrunerConfig\.healing\.rank='8' is a str; expected int"),
        (
            {"healing": {"quantize": "int8"}},
            r"PrunerConfig\.healing\.quantize='int8'; expected one of: 'auto', 'nf4', 'none'",
        ),
        ({"evaluation": {"prompts": ["a", 1]}}, r"PrunerConfig\.evaluation\.prompts\[1\]=1"),
        ({"evaluation": []}, r"PrunerConfig\.evaluation must be a JSON object; got list"),
        ({"layers": "21-28"}, r"PrunerConfig\.layers='21-28' is a str; expected a list"),
        ({"layers": [1, "2"]}, r"PrunerConfig\.layers\[1\]='2'"),
        ({"drop_layers": 2.0}, r"PrunerConfig\.drop_layers=2\.0 is a float; expected int"),
        (
            {"sparsity_of": "width"},
            r"sparsity_of='width': method 'uidl' cuts layers; expected one of: 'layers', 'parameters', 'bytes'",
        ),
        (
            {"method": "slicegpt", "sparsity_of": "layers"},
            r"sparsity_of='layers': method 'slicegpt' cuts width; expected one of: 'width', 'parameters'",
        ),
        ({"sparsity_of": "heads"}, r"PrunerConfig\.sparsity_of='heads'; expected one of: 'layers', .*, 'width'"),
        (
            {"method": "uild"},
            "unknown method 'uild'; expected one of the .* such as uidl, simple, slicegpt.*Did you mean 'uidl'",
        ),
        ({"measure": "angel"}, "unknown measure 'angel'"),
        ({"planner": "windw"}, "unknown planner 'windw'.*Did you mean 'window'"),
        ({"surgery": "dorp"}, "unknown surgery 'dorp'.*Did you mean 'drop'"),
        ({"measure_kwargs": {"token": 1}}, "measure 'angular' has no option 'token'"),
        ({"planner_kwargs": {"scores": 1}}, "planner 'window' has no option 'scores'"),
        ({"surgery_kwargs": {"layers": [1]}}, "surgery 'drop' has no option 'layers'"),
        ({"method": "simple", "measure_kwargs": {"a": 1}}, "method 'simple' measures nothing"),
        ([], "PrunerConfig must be a JSON object"),
    ],
)
def test_unknown_keys_and_wrong_types(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrunerConfig.from_dict(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[
            ({"drop_layers": bad}, r"PrunerConfig\.drop_layers=.*expected a whole number of at least 1")
            for bad in (0, -1, 2.0, True, "3")
        ],
        *[
            ({"sparsity": bad}, r"PrunerConfig\.sparsity=.*above 0 and below 1")
            for bad in (0, 0.0, 1, 1.5, -0.1, True, "0.2", float("nan"))
        ],
        ({"layers": []}, r"layers=\[\] drops nothing"),
        ({"layers": "12"}, "layers='12'; expected a list"),
        ({"layers": 3}, "layers=3; expected a list"),
        ({"layers": [1, 1, 2]}, r"layers=\[1, 1, 2\]: \[1\] named twice"),
        ({"layers": [True, 2]}, "True is not a whole number"),
        ({"layers": [1.0]}, r"1\.0 is not a whole number"),
        ({"drop_layers": 2, "sparsity": 0.5}, r"2 amounts at once \(drop_layers=2, sparsity=0\.5\)"),
        ({"drop_layers": 2, "layers": [1, 2]}, r"2 amounts at once \(drop_layers=2, layers=\[1, 2\]\)"),
        ({"drop_layers": 2, "layers": [1], "sparsity": 0.1}, "3 amounts at once"),
        ({"sparsity_of": "heads"}, "sparsity_of='heads'"),
        *[({"protect_first": bad}, r"protect_first=.*whole number from 0") for bad in (-1, 1.0, True, "1")],
        *[({"protect_last": bad}, r"protect_last=.*whole number from 0") for bad in (-1, 1.0, False)],
        ({"calibration": {"samples": 0}}, r"CalibrationConfig\.samples=0"),
        ({"calibration": 3}, r"PrunerConfig\.calibration must be a JSON object; got int"),
        ({"healing": {"rnak": 1}}, r"PrunerConfig\.healing has no key 'rnak'"),
    ],
)
def test_bad_values_in_python(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrunerConfig(**fields)


def test_nested_dicts_are_configs() -> None:
    assert PrunerConfig(calibration={"samples": 3}).calibration == CalibrationConfig(samples=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda bad=bad: CalibrationConfig(samples=bad), "samples") for bad in (0, -1, 1.5, True, "8")],
        (lambda: CalibrationConfig(max_length=0), "max_length=0"),
        (lambda: CalibrationConfig(batch_size=-2), "batch_size=-2"),
        *[(lambda bad=bad: HealingConfig(rank=bad), "rank") for bad in (0, 2.5, True)],
        *[(lambda bad=bad: HealingConfig(dropout=bad), "dropout.*from 0 and below 1") for bad in (-0.1, 1, True)],
        (lambda: HealingConfig(dropout="x"), r"HealingConfig\.dropout='x'; expected a number from 0 and below 1"),
        *[(lambda bad=bad: HealingConfig(beta2=bad), "beta2.*from 0 and below 1") for bad in (-0.1, 1, True, "x")],
        (lambda: HealingConfig(schedule="step"), "schedule='step'; expected one of: 'cosine', 'linear'"),
        *[(lambda bad=bad: HealingConfig(learning_rate=bad), "learning_rate") for bad in (0, -1e-4, 1, float("nan"))],
        *[(lambda bad=bad: HealingConfig(warmup_steps=bad), "warmup_steps.*from 0") for bad in (-1, 1.5, True, "9")],
        (lambda: HealingConfig(teacher="asleep"), "teacher='asleep'"),
        (lambda: HealingConfig(quantize="int8"), "quantize='int8'"),
        (lambda: HealingConfig(output="both"), "output='both'"),
        (lambda: EvaluationConfig(stride=600, max_length=512), "stride=600 is above max_length=512"),
        (lambda: EvaluationConfig(stride=0), "stride=0"),
        (lambda: EvaluationConfig(new_tokens=0), "new_tokens=0"),
        (lambda: EvaluationConfig(prompts="The old man"), "prompts='The old man'"),
    ],
)
def test_bad_parts(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    config = PrunerConfig(drop_layers=numpy.int64(3), calibration=CalibrationConfig(samples=numpy.int32(4)))
    assert PrunerConfig.from_pretrained(config.save_pretrained(tmp_path)) == config
    assert type(config.drop_layers) is int
    assert check_indices(numpy.array([3, 1])) == (1, 3)
    assert check_indices(range(2, 4)) == (2, 3)


def test_overrides_fill_the_recipe() -> None:
    recipe = PrunerConfig("simple", protect_first=2, protect_last=0).recipe()
    assert (recipe.planner, recipe.measure, recipe.protect_first, recipe.protect_last) == ("before_last", None, 2, 0)
    assert PrunerConfig("simple").recipe() == get_method("simple")
    measured = PrunerConfig("simple", measure="angular", planner="window").recipe()
    assert (measured.measure, measured.planner) == ("angular", "window")


def test_recipes_name_what_is_registered() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.paper.startswith("https://arxiv.org/abs/")
        PrunerConfig(
            name,
            measure=method.measure,
            planner=method.planner,
            surgery=method.surgery,
            measure_kwargs=method.measure_kwargs,
            planner_kwargs=method.planner_kwargs,
            surgery_kwargs=method.surgery_kwargs,
        )  # known names, known options
    assert len(METHODS) == sum(len(file.METHODS) for file in FILES)
    uidl, simple = METHODS["uidl"], METHODS["simple"]
    assert (uidl.measure, uidl.planner, uidl.protect_first, uidl.protect_last) == ("angular", "window", 0, 0)
    assert (simple.measure, simple.planner, simple.protect_first, simple.protect_last) == (None, "before_last", 0, 1)
    assert uidl.dataset == ("allenai/c4", "en", "validation", "train")
    slicegpt, dynamic = METHODS["slicegpt"], METHODS["dynamic-slicing"]
    assert (slicegpt.measure, slicegpt.planner, slicegpt.surgery) == (None, "constant_width", "slice")
    assert (dynamic.measure, dynamic.planner, dynamic.surgery) == ("redundancy", "dynamic_width", "slice")
    assert slicegpt.dataset == dynamic.dataset == ("tatsu-lab/alpaca", "default", "train", "train")
    assert [method.name for method in METHODS.values() if method.cuts == "width"] == ["slicegpt", "dynamic-slicing"]
    assert {method.healing for method in METHODS.values() if method.cuts == "width"} == {"slicegpt"}


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PrunerConfig().drop_layers = 3
