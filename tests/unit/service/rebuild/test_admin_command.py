"""`python -m service admin rebuild`, from its options to its exit status."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmcl.cli import main as client_main
from cmcl.storage import layout
from service.__main__ import main
from service.auth.key_snapshot import SnapshotWriter
from service.auth.signing import make_pair
from service.core.setting_values import read_signing_key
from service.database.engine import open_database
from service.database.migrations import upgrade
from service.database.queries import instances
from service.database.stale import check_at_start
from tests.fakes.control_plane import ControlPlane, open_databases
from tests.fakes.lost_database import everything, rebuild, wreck
from tests.fakes.versions import stored_key
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient

Run = Callable[..., tuple[int, str, str]]
DAMAGED = 3


@pytest.fixture
def new_database(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cmcl.db"


@pytest.fixture
def run(
    plane: ControlPlane,
    new_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run the command on the plane's store and its own database; return status, stdout, stderr."""
    monkeypatch.setenv("CMCL_DATABASE_URL", f"sqlite:///{new_database}")
    monkeypatch.setenv("CMCL_STORE_URI", plane.store.uri)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["admin", "rebuild", *arguments])
        return (status, *capsys.readouterr())

    return run


def test_a_new_database_has_all_rows_of_the_old_one(
    plane: ControlPlane, run: Run, new_database: Path
) -> None:
    status, shown, progress = run()
    assert status == 0
    assert "model 1 of 1: scenes" in progress
    assert ["jobs", "3", "3", "published"] in [line.split() for line in shown.splitlines()]
    assert "webhooks" in shown.partition("not restored:")[2]
    rebuilt = open_database(f"sqlite:///{new_database}")
    assert everything(rebuilt) == everything(plane.context.database)
    rebuilt.close()


def test_a_dry_run_touches_no_database(run: Run, new_database: Path) -> None:
    status, shown, _ = run("--dry-run")
    assert status == 0
    assert shown.startswith("would be restored:")
    assert not new_database.exists()


def test_damage_is_reported_and_sets_the_exit_status(plane: ControlPlane, run: Run) -> None:
    plane.store.delete(stored_key(plane.store, "scenes", 2, layout.HEADS))
    status, shown, _ = run()
    assert status == DAMAGED
    assert "version 2 of 'scenes'" in shown.partition("damaged")[2]


def test_an_empty_bucket_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCL_STORE_URI", (tmp_path / "elsewhere").as_uri())
    status, _, complaint = run()
    assert status == 1
    assert "CMCL_STORE_URI" in complaint


def test_a_database_on_which_a_service_works_is_refused(
    plane: ControlPlane, run: Run, new_database: Path
) -> None:
    database = open_database(f"sqlite:///{new_database}")
    upgrade(database)
    far = plane.clock().replace(year=2999)
    with database.write() as connection:
        assert instances.claim_lease(connection, "gc", "somebody", plane.clock(), far)
    database.close()
    status, _, complaint = run()
    assert status == 1
    assert "gc" in complaint


def test_a_service_does_not_start_on_a_lost_database(
    plane: ControlPlane,
    run: Run,
    new_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It would overwrite the versions of the first model that is created."""
    monkeypatch.setenv("CMCL_AUTH", "off")
    # The log configuration is global: later tests would log to a stream that this one closes.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    assert main([]) == 1
    assert "admin rebuild" in capsys.readouterr().err
    assert open_databases(new_database.parent) == []
    assert run()[0] == 0
    check_at_start(plane.context.store, plane.context.database)


def test_a_service_starts_without_its_store(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.store.broken = ""
    check_at_start(plane.context.store, plane.context.database)
    plane.close()


def test_the_client_runs_the_command_of_the_service(
    plane: ControlPlane, new_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = ["--database-url", f"sqlite:///{new_database}", "--store", plane.store.uri]
    assert client_main(["admin", "rebuild", "--verify", "manifests", "--json", *places]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["damaged"], report["rows"]["versions"]) == ([], 3)
    assert report["jobs"] == {"published": 3}
    assert client_main(["admin", "rebuild", *places]) == 1
    assert "has rows already" in capfd.readouterr().err


def test_keys_that_embed_continue_to_work(tmp_path: Path) -> None:
    pair = make_pair()
    signing_key = read_signing_key(pair.private)
    settings: dict[str, Any] = {
        "auth": "on",
        "admin_key": ADMIN_KEY,
        "snapshot_signing_key": pair.private,
    }
    plane = ControlPlane(tmp_path, **settings)
    operator = KeyClient(plane, ADMIN_KEY)
    plane.client = operator
    plane.create_model()
    asker = operator.make_key("asker", ("embed", "read"), owner="somebody")
    operator.make_key("trainer", ("train",))
    writer = SnapshotWriter(
        signing_key,
        plane.context.settings,
        plane.context.store,
        plane.context.database,
        plane.context.metrics,
        plane.context.clock,
    )
    writer.round()
    plane.record()
    before = plane.store.read(layout.key_snapshot())
    wreck(plane.context.database)
    findings = rebuild(plane, signing_key=signing_key)
    assert findings.damaged == []
    keys = operator.get("/v1/keys").json()["items"]
    assert [(key["id"], key["owner"], key["scopes"]) for key in keys] == [
        (asker["id"], "somebody", ["embed"])
    ]
    SnapshotWriter(
        signing_key,
        plane.context.settings,
        plane.context.store,
        plane.context.database,
        plane.context.metrics,
        plane.context.clock,
    ).round()
    assert plane.store.read(layout.key_snapshot()) == before
    wreck(plane.context.database)
    (damage,) = rebuild(plane, signing_key=read_signing_key(make_pair().private)).damaged
    assert "not signed with this key" in damage.why
    plane.close()
