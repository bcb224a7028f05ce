"""A control plane on a socket whose model `scenes` has two measured versions, and the environment of the targets."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import write_measured
from tests.fakes.optional_environment import optional_environment
from tests.fakes.served_app import served

RECIPES = ROOT / "examples" / "recipes"


def publish(plane: ControlPlane, name: str, recalls: dict[str, float]) -> None:
    """Publish a version with measurements of the datasets named."""
    job = plane.post_dataset(name)
    write_measured(plane, job, recalls, free={"image": 0.5})
    plane.run_to_end(job)


class Commands:
    """Runs examples with the packages of the targets, in a folder of its own."""

    def __init__(self, python: Path, folder: Path, url: str) -> None:
        self.python = python
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CMCL_")}
        self.environment = {
            **kept,
            "CMCL_URL": url,
            "CMCL_EMBEDDINGS_URL": url,
            "PYTHONPATH": str(ROOT),
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def start_recipe(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one of examples/recipes."""
        command = [str(self.python), str(RECIPES / name), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def recipe(self, name: str, *arguments: str) -> None:
        """Run one of examples/recipes to its successful end."""
        process = self.start_recipe(name, *arguments)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    def python_output(self, program: str, *arguments: str) -> str:
        """Run a program with these packages, and return what it printed."""
        done = subprocess.run(
            [str(self.python), "-c", program, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path / "plane")
    plane.create_model()
    publish(plane, "one", {"one": 0.8})
    publish(plane, "two", {"one": 0.7, "two": 0.9})
    yield plane
    plane.close()


@pytest.fixture(scope="session")
def targets() -> Path:
    """The Python that has the packages of all targets."""
    return optional_environment("tools", "tests/tools/requirements.lock")


@pytest.fixture
def cmcl(targets: Path, plane: ControlPlane, tmp_path: Path) -> Iterator[Commands]:
    with served(plane.app) as url:
        yield Commands(targets, tmp_path, url)
