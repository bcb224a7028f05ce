"""The signed list of keys in object storage equals the keys in the database."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cmcl.contract.api.access import OPERATOR_KEY, SNAPSHOT_TYPE, KeySnapshot
from cmcl.contract.errors import ObjectNotFound
from cmcl.storage import layout
from service.__main__ import main
from service.auth.key_snapshot import SnapshotWriter
from service.auth.signing import make_pair
from service.context import Context
from service.core.setting_values import read_signing_key
from service.telemetry.logs import JsonLines, secret_texts
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.telemetry.samples import shown
from workers.serve.auth import NotSigned, SignedKeys, read_public_keys, verified
from workers.serve.errors import Unauthorized

PAIR = make_pair()
WAIT_SECONDS = 120.0


class HeldStore(FlakyStore):
    """A store whose writes wait until they are released, as of a suspended process."""

    def __init__(self, store: FlakyStore) -> None:
        super().__init__(store)
        self.is_writing = threading.Event()
        self.go_on = threading.Event()

    def put(self, key: str, data: bytes) -> None:
        self.is_writing.set()
        assert self.go_on.wait(WAIT_SECONDS)
        super().put(key, data)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(
        tmp_path, auth="on", admin_key=ADMIN_KEY, snapshot_signing_key=PAIR.private
    )
    yield plane
    plane.close()


@pytest.fixture
def operator(plane: ControlPlane) -> KeyClient:
    return KeyClient(plane, ADMIN_KEY)


@pytest.fixture
def writer(plane: ControlPlane) -> SnapshotWriter:
    return writer_of(plane.context)


def writer_of(context: Context) -> SnapshotWriter:
    return SnapshotWriter(
        read_signing_key(PAIR.private),
        context.settings,
        context.store,
        context.database,
        context.metrics,
        context.clock,
    )


def stored(plane: ControlPlane) -> KeySnapshot:
    token, keys = plane.store.read(layout.key_snapshot()), read_public_keys(PAIR.public)
    return verified(token, keys, KeySnapshot, SNAPSHOT_TYPE)


def ids(plane: ControlPlane) -> list[str]:
    return [key.id for key in stored(plane).keys]


def revoke(operator: KeyClient, key: dict[str, str]) -> None:
    assert operator.request("DELETE", f"/v1/keys/{key['id']}").status_code == 204


def is_admitted(authenticator: SignedKeys, key: dict[str, str]) -> bool:
    try:
        authenticator.authenticate(f"Bearer {key['key']}")
    except Unauthorized:
        return False
    return True


def test_only_keys_that_may_embed_are_listed(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    embeds = operator.make_key("embeds", ["embed", "read"], owner="lab")
    operator.make_key("reads", ["read", "admin"])
    writer.round()
    first, second = stored(plane).keys
    assert (first.id, first.owner) == (OPERATOR_KEY, None)
    assert (second.id, second.name, second.owner) == (embeds["id"], "embeds", "lab")


def test_a_revoked_key_is_gone_with_the_next_round(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    key = operator.make_key()
    writer.round()
    before = stored(plane)
    revoke(operator, key)
    writer.round()
    assert ids(plane) == [OPERATOR_KEY]
    assert stored(plane).serial > before.serial


def test_a_key_leaves_the_list_when_it_expires(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    key = operator.make_key("short", expires_in_days=1)
    writer.round()
    assert ids(plane) == [OPERATOR_KEY, key["id"]]
    plane.clock.advance(86_400)
    writer.round()
    assert ids(plane) == [OPERATOR_KEY]


def test_without_a_change_nothing_is_read_or_written(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    operator.make_key()
    writer.round()
    plane.store.calls.clear()
    plane.clock.advance(29)
    writer.round()
    assert plane.store.calls == []


def test_a_foreign_snapshot_is_replaced(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    key = operator.make_key()
    writer.round()
    for wrong in (b"", b"a.b.c", plane.store.read(layout.key_snapshot())[:-8] + b"AAAAAAAA"):
        plane.store.put(layout.key_snapshot(), wrong)
        plane.clock.advance(30)
        writer.round()
        assert set(ids(plane)) == {OPERATOR_KEY, key["id"]}
    plane.store.delete(layout.key_snapshot())
    plane.clock.advance(30)
    writer.round()
    assert set(ids(plane)) == {OPERATOR_KEY, key["id"]}


def test_after_a_start_a_change_that_a_crash_hid_is_written(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    key = operator.make_key()
    writer.round()
    revoke(operator, key)
    writer_of(plane.context).round()
    assert ids(plane) == [OPERATOR_KEY]


def test_two_services_write_one_list_once(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    operator.make_key()
    writer.round()
    token = plane.store.read(layout.key_snapshot())
    plane.clock.advance(5)
    writer_of(plane.context).round()
    assert plane.store.read(layout.key_snapshot()) == token


def test_a_clock_that_goes_back_does_not_make_serials_smaller(
    plane: ControlPlane, operator: KeyClient, writer: SnapshotWriter
) -> None:
    writer.round()
    before = stored(plane)
    plane.clock.advance(-3600)
    operator.make_key()
    writer.round()
    assert stored(plane).serial == before.serial + 1


def test_a_writer_that_was_overtaken_lets_no_revoked_key_in(
    plane: ControlPlane, operator: KeyClient
) -> None:
    key = operator.make_key()
    held = HeldStore(plane.store)
    slow = writer_of(replace(plane.context, store=held))
    authenticator = SignedKeys(read_public_keys(PAIR.public), seconds_between_reads=0)
    sleeping = threading.Thread(target=slow.round)
    sleeping.start()
    assert held.is_writing.wait(WAIT_SECONDS)
    plane.clock.advance(1)
    revoke(operator, key)
    writer_of(plane.context).round()
    authenticator.refresh(plane.store)
    held.go_on.set()
    sleeping.join()
    assert key["id"] in ids(plane), "the older list lies over the newer one"
    authenticator.refresh(plane.store)
    assert not is_admitted(authenticator, key)
    slow.round()
    assert ids(plane) == [OPERATOR_KEY]


def test_an_unavailable_store_is_counted_and_caught_up_with(
    plane: ControlPlane,
    operator: KeyClient,
    writer: SnapshotWriter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    operator.make_key()
    plane.store.broken = "access/"
    for _ in range(3):
        writer.round()
    assert shown(plane, "key_snapshots_total", outcome="failed") == 3
    assert len([line for line in caplog.messages if "not up to date" in line]) == 1
    plane.store.broken = None
    writer.round()
    assert shown(plane, "key_snapshots_total", outcome="written") == 1
    assert len(ids(plane)) == 2


def test_the_running_service_writes_the_list(plane: ControlPlane) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    with plane.client.running():
        while not any(plane.store.keys(layout.key_snapshot())):
            assert time.monotonic() < deadline, "no list was written"
            time.sleep(0.01)
    assert ids(plane) == [OPERATOR_KEY]


def test_without_a_signing_key_there_is_no_list(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    with plane.client.running():
        pass
    with pytest.raises(ObjectNotFound):
        plane.store.read(layout.key_snapshot())


def test_a_new_pair_fits_itself_and_no_other(
    capsys: pytest.CaptureFixture[str], plane: ControlPlane, writer: SnapshotWriter
) -> None:
    assert main(["keys", "signing-key"]) == 0
    pems = capsys.readouterr().out
    private, begin, public = pems.partition("-----BEGIN PUBLIC KEY-----")
    mine, others = read_signing_key(private), read_public_keys(begin + public)
    assert mine.public_key() == others[0]
    writer.round()
    token = plane.store.read(layout.key_snapshot())
    with pytest.raises(NotSigned, match="none of the public keys"):
        verified(token, others, KeySnapshot, SNAPSHOT_TYPE)


def test_no_line_of_the_log_has_the_signing_key(plane: ControlPlane) -> None:
    secret = PAIR.private.splitlines()[1]
    formatter = JsonLines(secret_texts(plane.context.settings))
    for text in (PAIR.private, f"a line of it: {secret}"):
        record = logging.LogRecord("service", logging.INFO, "", 0, text, None, None)
        assert secret not in formatter.format(record)
        assert json.loads(formatter.format(record))["message"]
