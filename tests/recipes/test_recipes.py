"""Recipes of examples/recipes: each learns a batch, as its tool runs it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cmcl import Client, Gate
from cmcl.contract.api.jobs import FINAL_STATES, JobState
from service.database.engine import Seek
from service.database.queries import jobs
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import write_measured
from tests.fakes.optional_environment import optional_environment
from tests.fakes.served_app import served
from tests.fakes.trainer import train
from tests.unit.client.either import in_process

RECIPES = ROOT / "examples" / "recipes"

DAGSTER = """
import sys, dagster_job
batch = dagster_job.batch_of("2026-11-29", model="scenes", source=sys.argv[1], pause=0.1)
done = dagster_job.cmcl_nightly.execute_in_process(run_config=batch)
print("version", done.output_for_node("publish"))
"""
PREFECT = """
import sys
from prefect.testing.utilities import prefect_test_harness
import prefect_flow
with prefect_test_harness(server_startup_timeout=400):
    print("version", prefect_flow.cmcl_nightly("scenes", "image,text", sys.argv[1], pause=0.1))
"""
# Airflow's decorators as they are used here: a task runs when it is called, a sensor until it is true.
AIRFLOW = """
import sys, time, types

class Node:
    def __init__(self, value): self.value = value
    def __rshift__(self, following): return following

def run(function, arguments):
    return function(*[each.value if isinstance(each, Node) else each for each in arguments])

def task(function):
    def call(*arguments):
        value = run(function, arguments or (("2026-11-29",) if function.__name__ == "post" else ()))
        print(function.__name__, value)
        return Node(value)
    return call

def sensor(**_):
    def decorate(function):
        def call(*arguments):
            while not run(function, arguments):
                time.sleep(0.1)
            return Node(True)
        return call
    return decorate

task.sensor = sensor
given = {"cmcl_model": "scenes", "cmcl_pair": "image,text", "cmcl_source": sys.argv[1]}
sdk = types.ModuleType("airflow.sdk")
sdk.Variable = types.SimpleNamespace(get=given.__getitem__)
sdk.dag, sdk.task = (lambda **_: lambda function: function), task
sys.modules |= {"airflow": types.ModuleType("airflow"), "airflow.sdk": sdk}
import airflow_dag
"""


class Cluster:
    """Trains what is submitted, until it is stopped. The candidates of `recalls` are measured so."""

    def __init__(self, plane: ControlPlane) -> None:
        self.recalls: dict[str, float] | None = None
        self._plane = plane
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Cluster":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.05):
            with self._plane.context.database.read() as connection:
                found = jobs.page(connection, {}, Seek(limit=99))
            for job in found:
                if job.state == JobState.RUNNING and not self._plane.has_candidate(job):
                    if self.recalls is not None:
                        write_measured(self._plane, job.id, self.recalls)
                    else:
                        train(self._plane.store, job.id, job.attempt)
            if any(job.state not in FINAL_STATES for job in found) or self._stores():
                self._plane.tick()

    def _stores(self) -> bool:
        return any(version.stored_at is None for version in self._plane.versions())


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane whose model `scenes` asks for approval, with a version."""
    plane = ControlPlane(tmp_path / "plane")
    plane.create_model()
    job = plane.post_dataset("one")
    write_measured(plane, job, {"one": 0.9})
    plane.run_to_end(job)
    yield plane
    plane.close()


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[Client]:
    with in_process("blocking", plane.app) as client:
        client.set_gate("scenes", Gate(manual_approval=True))
        yield client


@pytest.fixture
def cluster(plane: ControlPlane, client: Client) -> Iterator[Cluster]:
    with Cluster(plane) as cluster:
        yield cluster


@pytest.fixture
def environment(plane: ControlPlane, cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMCL_")}
    with served(plane.app) as url:
        yield {
            **kept,
            "CMCL_URL": url,
            "PYTHONPATH": f"{ROOT}:{RECIPES}",
            "SOURCE": plane.shard("night")["uri"],
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }


def run(
    command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def workflow_command() -> str:
    """The environment that GitHub's runner gives to bash, with the Python of these tests."""
    workflow = yaml.safe_load((RECIPES / "github_actions.yaml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["learn"]["steps"] if "run" in step]
    (command,) = [each for each in commands if each.startswith("python ")]
    return str(command)


def test_the_command_of_github_actions_learns_a_batch_and_repeats_nothing(
    environment: dict[str, str], client: Client
) -> None:
    command = workflow_command().replace("python ", f"{sys.executable} ", 1)
    command = command.replace("shapes", "scenes").replace("--pause 30", "--pause 0.1")
    for _ in range(2):
        done = run(["bash", "-ec", command], environment, RECIPES)
        assert (done.returncode, done.stdout) == (0, "scenes@2\n"), done.stderr
    assert client.live("scenes").version == 2
    (job,) = [each for each in client.jobs() if each.dataset_name.startswith("nightly-")]
    assert job.approval is not None
    assert job.approval.reason == "no dataset loses more than 0.02"


def test_a_candidate_by_which_a_dataset_loses_too_much_is_rejected(
    environment: dict[str, str], client: Client, cluster: Cluster
) -> None:
    cluster.recalls = {"one": 0.8}
    command = [sys.executable, "nightly.py", "scenes", "image,text", environment["SOURCE"]]
    done = run([*command, "--pause=0.1"], environment, RECIPES)
    assert done.returncode == 1, done.stderr
    assert "one loses 0.100 of R@1" in done.stderr
    assert client.live("scenes").version == 1


@pytest.mark.parametrize(
    ("program", "is_optional"),
    [(AIRFLOW, False), (DAGSTER, True), (PREFECT, True)],
    ids=["airflow's tasks behind stand-ins", "dagster", "prefect"],
)
def test_a_scheduler_learns_a_batch(
    environment: dict[str, str], client: Client, tmp_path: Path, program: str, is_optional: bool
) -> None:
    python = (
        optional_environment("recipes", "tests/recipes/requirements.lock")
        if is_optional
        else Path(sys.executable)
    )
    done = run([str(python), "-c", program, environment["SOURCE"]], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("version 2", "publish 2"), done.stdout
    assert client.live("scenes").version == 2
