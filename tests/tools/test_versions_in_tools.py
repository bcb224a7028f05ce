"""The examples for tools that show versions, with the real packages: what is written can be read back."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.fakes.control_plane import ControlPlane
from tests.tools.conftest import Commands, publish
from tests.unit.client.rest_server import running

READ_TENSORBOARD = """
import json, sys
from pathlib import Path
from tensorboardX.proto.event_pb2 import Event

found = []
for path in Path(sys.argv[1]).iterdir():
    data, place = path.read_bytes(), 0
    while place < len(data):
        # A length with its checksum, a record with its checksum.
        length = int.from_bytes(data[place:place + 8], "little")
        event = Event.FromString(data[place + 12:place + 12 + length])
        place += 16 + length
        found += [(value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value]
print(json.dumps(sorted(set(found))))
"""

# Files of runs are a log of LevelDB: blocks of 32 KiB, records with a header of 7 bytes, a header of 7 for the file.
READ_WANDB = """
import json, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

found = []
for path in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4:place + 6], "little"), data[place + 6]
        part += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, part = Record.FromString(part), b""
            items = {each.key or "/".join(each.nested_key): each.value_json for each in record.history.item}
            if items:
                found.append([record.history.step.num, items])
            if record.run.run_id:
                found.append([record.run.run_id, {}])
print(json.dumps(found))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def mlflow_server(cmcl: Commands, port: int) -> Iterator[None]:
    """MLflow's tracking server on loopback."""
    folder = cmcl.folder / "mlflow"
    folder.mkdir(exist_ok=True)
    server = subprocess.Popen(
        [
            *(str(cmcl.python.with_name("mlflow")), "server", "--host", "127.0.0.1"),
            *("--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        cwd=folder,
        env={
            **cmcl.environment,
            "PATH": f"{cmcl.python.parent}:{cmcl.environment['PATH']}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not is_healthy(port):
            assert server.poll() is None, "MLflow's server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(60)


def is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.TransportError:
        return False


def test_mlflow_has_a_step_for_each_version_in_one_run(cmcl: Commands, plane: ControlPlane) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = ("mlflow_runs.py", "scenes", f"--tracking-uri={uri}", "--once")
    with mlflow_server(cmcl, port):
        cmcl.recipe(*command)
        publish(plane, "three", {"one": 0.6, "two": 0.8, "three": 0.5})
        cmcl.recipe(*command)
        api = f"{uri}/api/2.0/mlflow"
        searched = httpx.post(f"{api}/runs/search", json={"experiment_ids": ["1"]}).json()
        (run,) = searched["runs"]
        assert {each["key"]: each["value"] for each in run["data"]["params"]}["width"] == "8"
        asked = {"run_id": run["info"]["run_id"], "metric_key": "recall_at_1/one"}
        history = httpx.get(f"{api}/metrics/get-history", params=asked).json()["metrics"]
        assert [(each["step"], each["value"]) for each in history] == [(1, 0.8), (2, 0.7), (3, 0.6)]
        listed = {"run_id": run["info"]["run_id"], "path": "versions/3"}
        files = httpx.get(f"{api}/artifacts/list", params=listed).json()["files"]
        assert {Path(each["path"]).name for each in files} == {"pictures.svg", "manifest.json"}


def test_tensorboard_has_a_step_for_each_version(cmcl: Commands, plane: ControlPlane) -> None:
    cmcl.recipe("tensorboard_scalars.py", "scenes", "logs", "--once")
    publish(plane, "three", {"one": 0.6, "two": 0.8, "three": 0.5})
    cmcl.recipe("tensorboard_scalars.py", "scenes", "logs", "--once")
    values = json.loads(cmcl.python_output(READ_TENSORBOARD, "logs/scenes"))
    recall = [(step, value) for tag, step, value in values if tag == "recall_at_1/one"]
    assert recall == [(1, 0.8), (2, 0.7), (3, 0.6)]
    assert [value for tag, step, value in values if tag == "max_drift"] == [0, 0.1, 0.1]


def test_wandb_has_a_step_for_each_version_in_one_run(cmcl: Commands, plane: ControlPlane) -> None:
    cmcl.environment["WANDB_MODE"] = "offline"
    cmcl.recipe("wandb_run.py", "scenes", "--once")
    records = json.loads(cmcl.python_output(READ_WANDB, str(cmcl.folder)))
    history = [(step, items) for step, items in records if items]
    recall = [(step, json.loads(items["recall_at_1/one"])) for step, items in history]
    assert recall == [(1, 0.8), (2, 0.7)]
    cmcl.recipe("wandb_run.py", "scenes", "--once")
    records = json.loads(cmcl.python_output(READ_WANDB, str(cmcl.folder)))
    assert len({name for name, items in records if not items}) == 1, "the run continues"
    assert len(list(cmcl.folder.glob("wandb/offline-run-*/files/media/html/*.html"))) >= 2


def test_openlineage_events_follow_new_versions_and_repeat_themselves(
    cmcl: Commands, plane: ControlPlane
) -> None:
    with running() as server:
        server.always((201, {}))
        cmcl.environment["OPENLINEAGE_URL"] = server.url
        follower = cmcl.start_recipe("openlineage_runs.py", "scenes")
        try:
            _wait_until(lambda: len(server.asked) == 2)
            publish(plane, "three", {"one": 0.6})
            _wait_until(lambda: len(server.asked) == 3)
        finally:
            follower.kill()
            follower.communicate()
        cmcl.recipe("openlineage_runs.py", "scenes", "--once")
    events = [asked.body for asked in server.asked]
    assert events[3:] == events[:3]
    second = events[1]
    assert second["eventType"] == "COMPLETE"
    assert [each["name"] for each in second["outputs"]] == ["models/scenes/versions/2"]
    parent, dataset = [each["name"] for each in second["inputs"]]
    assert parent == "models/scenes/versions/1"
    assert dataset.startswith("datasets/ds-")


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
