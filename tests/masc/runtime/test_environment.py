"""What the config decides is not left to variables of the environment."""

import os

import pytest

from masc.runtime.environment import pin_environment


@pytest.fixture
def pinned(monkeypatch, caplog):
    """Sets variables, pins the environment; returns what is left of them, and the warnings."""

    def pin(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        pin_environment()
        return {name for name in variables if name in os.environ}, [record.getMessage() for record in caplog.records]

    return pin


@pytest.mark.parametrize(
    "name",
    [
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_DYNAMO_BACKEND",
        "ACCELERATE_USE_FSDP",
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "PYTORCH_TUNABLEOP_ENABLED",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
    ],
)
def test_a_variable_that_decides_a_result_is_removed_and_named(pinned, name):
    left, warnings = pinned(**{name: "8"})
    assert left == set() and warnings == [f"ignoring {name} of the environment: the config decides how to compute"]


def test_what_accelerates_launcher_sets_to_nothing_is_no_warning(pinned):
    assert pinned(ACCELERATE_MIXED_PRECISION="no", ACCELERATE_DYNAMO_BACKEND="no") == (set(), [])


def test_places_and_speed_are_left_to_the_environment(pinned):
    places = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0", "SLURM_NODEID": "0"}
    assert pinned(**places) == (set(places), [])
