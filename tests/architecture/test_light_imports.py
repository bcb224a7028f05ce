"""Processes that need no torch load none: seconds at start-up, gigabytes in an image."""

import functools
import json
import subprocess
import sys

import pytest

from tests.architecture.repository import ROOT

HEAVY = ("torch", "ray.train", "ray.serve", "matplotlib")
PROGRAM = "import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"


@functools.cache
def loaded_by(module: str) -> set[str]:
    program = PROGRAM.format(module=module)
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(answer.stdout))
    assert module in loaded
    return loaded


@pytest.mark.parametrize("module", ["service.app", "service.__main__", "cmcl.cli"])
def test_importing_it_loads_neither_torch_nor_training_nor_serving(module: str) -> None:
    assert not loaded_by(module).intersection(HEAVY)


@pytest.mark.parametrize("module", ["service.app", "service.launchers.ray_cluster"])
def test_the_control_plane_loads_no_ray(module: str) -> None:
    assert "ray" not in loaded_by(module)


@pytest.mark.parametrize("module", ["service.app", "service.__main__"])
def test_the_control_plane_loads_nothing_that_reads_files_of_users(module: str) -> None:
    libraries = {"pyarrow", "numpy", "blake3", "safetensors", "PIL", "av", "soundfile"}
    assert not loaded_by(module).intersection(libraries)


def test_the_driver_loads_no_training() -> None:
    assert "ray.train" not in loaded_by("workers.driver")


def test_what_starts_ranks_and_watches_them_loads_no_torch() -> None:
    assert "torch" not in loaded_by("workers.train.ranks")


def test_libraries_of_encoders_are_loaded_in_their_own_processes_alone() -> None:
    loaded = loaded_by("workers.serve.app")
    assert "workers.serve.encoders.deployment" in loaded
    assert not loaded.intersection({"sentence_transformers", "transformers", "PIL"})


def test_a_replica_without_a_collector_loads_nothing_that_exports_traces() -> None:
    loaded = loaded_by("workers.serve.api.app")
    assert not loaded.intersection({"workers.serve.otel", "opentelemetry.sdk"})


@functools.cache
def loaded_by_python() -> set[str]:
    """Modules that an interpreter of this environment loads before the program: hooks of editable packages."""
    return {name.partition(".")[0] for name in loaded_by("json")}
