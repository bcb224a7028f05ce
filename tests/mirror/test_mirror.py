"""`cmcl mirror` with the real packages: what is written can be read back, once, after interruptions too."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import table_with_nan, write_shard
from tests.mirror.conftest import Commands, publish
from tests.unit.client.rest_server import Asked, running

READ_TENSORBOARD = """
import json, sys
from pathlib import Path
from cmcl.mirror.tensorboard import TensorboardTarget

target = TensorboardTarget(Path(sys.argv[1]))
found = [
    (value.tag, event.step, round(value.simple_value, 6))
    for path in sorted((Path(sys.argv[1]) / "scenes").iterdir())
    for event in target._read(path)
    for value in event.summary.value
]
print(json.dumps([found, target.last_version("scenes")]))
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
            found += [
                ["live", {"": each.value_json}]
                for each in record.summary.update
                if (each.key or each.nested_key[0]) == "live_version"
            ]
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


def test_mlflow_gets_every_version_once_although_its_server_was_down(
    cmcl: Commands, plane: ControlPlane
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = ("mirror", "mlflow", f"--tracking-uri={uri}")
    mirror = cmcl.start(*command)
    assert mirror.stderr is not None
    assert "trying again in 1 s" in next(line for line in mirror.stderr if "trying" in line)
    with mlflow_server(cmcl, port):
        assert any(line == "scenes@2 is written\n" for line in mirror.stderr)
        mirror.kill()
        mirror.communicate()
        publish(plane, "three", {"one": 0.6, "two": 0.8, "three": 0.5})
        # As if it had been killed before it wrote its state file.
        (cmcl.folder / "cmcl-mirror-mlflow.json").unlink(missing_ok=True)
        assert cmcl.run(*command, "--once") == "scenes@3 is written\n"
        assert cmcl.run(*command, "--once") == ""
        api = f"{uri}/api/2.0/mlflow"
        searched = httpx.post(f"{api}/runs/search", json={"experiment_ids": ["1"]}).json()
        (run,) = searched["runs"]
        tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
        assert (tags["cmcl.version"], tags["cmcl.live_version"]) == ("3", "3")
        assert {each["key"]: each["value"] for each in run["data"]["params"]}["width"] == "8"
        asked = {"run_id": run["info"]["run_id"], "metric_key": "recall_at_1/one"}
        history = httpx.get(f"{api}/metrics/get-history", params=asked).json()["metrics"]
        assert [(each["step"], each["value"]) for each in history] == [(1, 0.8), (2, 0.7), (3, 0.6)]
        listed = {"run_id": run["info"]["run_id"], "path": "versions/3"}
        files = httpx.get(f"{api}/artifacts/list", params=listed).json()["files"]
        names = {Path(each["path"]).name for each in files}
        assert names == {"pictures.svg", "manifest.json", "lineage.json"}


def test_tensorboard_has_a_step_for_each_version(cmcl: Commands, plane: ControlPlane) -> None:
    command = ("mirror", "tensorboard", "logs", "--once")
    cmcl.run(*command)
    publish(plane, "three", {"one": 0.6, "two": 0.8, "three": 0.5})
    (cmcl.folder / "cmcl-mirror-tensorboard.json").unlink()
    assert cmcl.run(*command) == "scenes@3 is written\n"
    values, last = json.loads(cmcl.python_output(READ_TENSORBOARD, "logs"))
    # Files are read in the order of their names, which have the second and the process.
    recall = sorted((step, value) for tag, step, value in values if tag == "recall_at_1/one")
    assert recall == [(1, 0.8), (2, 0.7), (3, 0.6)]
    assert [value for tag, step, value in values if tag == "max_drift"] == [0.1, 0.1]
    assert last == 3
    files = (cmcl.folder / "logs" / "scenes").iterdir()
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-3])
    _, last = json.loads(cmcl.python_output(READ_TENSORBOARD, "logs"))
    assert last == 2, "a version whose last record was cut off is not complete"


def test_wandb_has_a_step_for_each_version_in_one_run(cmcl: Commands, plane: ControlPlane) -> None:
    command = ("mirror", "wandb", "--offline", "--once")
    cmcl.run(*command)
    publish(plane, "three", {"one": 0.6, "two": 0.8, "three": 0.5})
    assert "scenes@3 is written" in cmcl.run(*command)
    records = json.loads(cmcl.python_output(READ_WANDB, str(cmcl.folder)))
    history = [(step, items) for step, items in records if items and step != "live"]
    recall = [(step, json.loads(items["recall_at_1/one"])) for step, items in history]
    assert recall == [(1, 0.8), (2, 0.7), (3, 0.6)]
    assert len({name for name, items in records if not items}) == 1, "the run continues"
    assert len(list(cmcl.folder.glob("wandb/offline-run-*/files/media/html/*.html"))) == 3
    # Without a new version.
    assert plane.client.put("/v1/models/scenes/live", json={"version": 1}).status_code == 200
    plane.tick()
    cmcl.run(*command)
    records = json.loads(cmcl.python_output(READ_WANDB, str(cmcl.folder)))
    assert {items[""] for step, items in records if step == "live"} == {"2", "3", "1"}


def test_openlineage_events_repeat_themselves_and_name_datasets_and_versions(
    cmcl: Commands, plane: ControlPlane
) -> None:
    statuses = [503, *[201] * 100]
    with running() as server:

        def answer(asked: Asked) -> tuple[int, Any]:
            return (statuses.pop(0), {})

        server.answer = answer
        command = ("mirror", "openlineage", server.url, "--once")
        assert "trying again in 1 s" in cmcl.run(*command)
        bad = write_shard(plane.shards / "bad.parquet", table_with_nan(16)).uri
        plane.run_to_end(plane.post_dataset("bad", shards=[{"uri": bad}]))
        cmcl.run(*command)
        first = [asked.body for asked in server.asked]
        (cmcl.folder / "cmcl-mirror-openlineage.json").unlink()
        cmcl.run(*command)
        again = [asked.body for asked in server.asked][len(first) :]
    kinds = [event["eventType"] for event in first]
    assert kinds == ["START", "START", "COMPLETE", "START", "COMPLETE", "FAIL"]
    assert first[0] == first[1], "what was refused for the moment is sent again as it was"
    assert again == first[1:5]
    started, completed = first[3:5]
    assert started["run"]["runId"] == completed["run"]["runId"]
    assert [each["name"] for each in completed["outputs"]] == ["models/scenes/versions/2"]
    parent, dataset = completed["inputs"]
    assert parent["name"] == "models/scenes/versions/1"
    assert dataset["inputFacets"]["dataQualityMetrics"]["rowCount"] == 16
    assert first[5]["run"]["facets"]["errorMessage"]["message"]
