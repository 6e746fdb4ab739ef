"""What the Space may use: by hardware, by variables, by arguments, in that order of weakness."""

from dataclasses import FrozenInstanceError

import pytest

from hf_prune.errors import ConfigError
from hf_prune.memory import memory_limit
from hf_prune.space import settings
from hf_prune.space.pair import DEMO
from hf_prune.space.settings import GB, Settings, read

SPACE = {"SPACE_ID": "me/space"}


def test_a_laptop() -> None:
    found = read({})
    limit = memory_limit()
    assert (found.on_space, found.disk_bytes, found.featured) == (False, None, (DEMO,))
    assert found.memory_bytes == int(0.6 * limit) and found.model_bytes == found.memory_bytes // 2
    assert found.local_login and found.hardware == f"this machine (no GPU, {limit / GB:.0f} GB of memory)"


def test_a_space() -> None:
    found = read(SPACE)
    assert found.on_space and found.disk_bytes == 30 * GB and not found.local_login
    assert found.hardware.startswith("this Space (no GPU")


def test_zerogpu() -> None:
    found = read(SPACE | {"SPACES_ZERO_GPU": "1"})
    assert found.hardware == "this Space (ZeroGPU)"
    assert found.memory_bytes <= 40 * GB and found.model_bytes <= min(17 * GB, found.memory_bytes // 2)


@pytest.mark.parametrize(
    ("environ", "served", "own"),
    [
        ({}, {}, True),
        ({}, {"host": "127.0.0.5"}, True),
        ({}, {"host": "::1"}, True),
        ({}, {"host": "localhost"}, True),
        ({}, {"host": "0.0.0.0"}, False),
        ({}, {"host": "192.168.1.4"}, False),
        ({}, {"host": "localhost.example.org"}, False),
        ({}, {"shared": True}, False),
        ({"GRADIO_SERVER_NAME": "0.0.0.0"}, {}, False),
        ({"GRADIO_SHARE": "True"}, {}, False),
        (SPACE, {}, False),
        (SPACE, {"host": "127.0.0.1", "shared": False}, False),
    ],
)
def test_whose_login_it_is(environ: dict[str, str], served: dict[str, object], own: bool) -> None:
    assert read(environ, **served).local_login is own


def test_a_space_never_lends_its_login() -> None:
    with pytest.raises(ConfigError, match="the Space's login is not its visitors'"):
        read(SPACE, local_login=True)


def test_variables_and_arguments() -> None:
    environ = {
        "HF_PRUNE_SPACE_MEMORY_GB": "8",
        "HF_PRUNE_SPACE_DISK_GB": "0.5",
        "HF_PRUNE_SPACE_FEATURED": "org/one, org/two,org/one,demo,",
    }
    found = read(environ)
    assert (found.memory_bytes, found.model_bytes, found.disk_bytes) == (8 * GB, 4 * GB, GB // 2)
    assert found.featured == (DEMO, "org/one", "org/two")
    assert read(environ | {"HF_PRUNE_SPACE_MODEL_GB": "1"}).model_bytes == GB
    found = read(environ, memory_bytes=5, disk_bytes=None, new_tokens=7)
    assert (found.memory_bytes, found.disk_bytes, found.new_tokens) == (5, None, 7)


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf", "1e9"])
def test_amounts_that_are_none(value: str) -> None:
    with pytest.raises(ConfigError, match="HF_PRUNE_SPACE_MODEL_GB=.*expected gigabytes"):
        read({"HF_PRUNE_SPACE_MODEL_GB": value})


def test_featured_pairs_are_hub_ids() -> None:
    with pytest.raises(ConfigError, match=r"'\.\./one' is no Hub id"):
        read({"HF_PRUNE_SPACE_FEATURED": "../one"})


def test_the_message_about_size() -> None:
    here = Settings(on_space=True, hardware="this Space (no GPU, 16 GB of memory)", memory_bytes=9, model_bytes=4 * GB)
    here.check_size("org/small", 4 * GB)
    with pytest.raises(ConfigError) as refused:
        here.check_size("org/large", 16_100_000_000, "in bfloat16")
    assert str(refused.value).startswith(
        "'org/large' takes 16.10 GB once loaded (in bfloat16); at most 4.00 GB can be opened here, on this Space (no "
        "GPU, 16 GB of memory), as a pruned model and its original are in memory together."
    )


def test_in_force() -> None:
    settings.use(None)
    assert not settings.current().local_login  # nobody has said who can open the page
    mine = read({}, new_tokens=3)
    settings.use(mine)
    assert settings.current() is mine
    with pytest.raises(FrozenInstanceError):
        mine.new_tokens = 4  # type: ignore[misc]
