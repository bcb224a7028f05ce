"""An unavailable store raises an error; it never looks empty."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from cmcl.contract.errors import InvalidUri, ObjectNotFound, StorageUnavailable
from cmcl.storage.local import LocalStore, _open_beneath
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.s3 import S3Store


def written(store: ObjectStore, key: str, size: int) -> None:
    with store.writer(key, size) as writer:
        writer.write(b"y" * size)


def uses(store: ObjectStore, file: Path) -> list[Callable[[], object]]:
    """Every method once."""
    return [
        lambda: store.read("a/b"),
        lambda: store.size("a/b"),
        lambda: store.read_range("a/b", 0, 1),
        lambda: store.download("a/b", file),
        lambda: store.put("a/b", b""),
        lambda: store.create("a/b", b""),
        lambda: store.upload(file, "a/b"),
        lambda: b"".join(store.stream("a/b")),
        lambda: written(store, "c", 1),
        lambda: list(store.keys("")),
        lambda: store.folders(""),
        lambda: store.delete("a/b"),
    ]


@contextmanager
def refused(reason: str = "") -> Iterator[None]:
    with pytest.raises(StorageUnavailable, match=reason) as caught:
        yield
    assert caught.value.retry_can_help


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


def test_no_method_answers_when_the_endpoint_is_down(
    s3_environment: str, closed_port: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_port)
    # One attempt each, so that ten refusals do not take a minute.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    (tmp_path / "file").write_bytes(b"x")
    for use in uses(S3Store("bucket", client=client), tmp_path / "file"):
        with refused("connect"):
            use()


def test_a_bucket_that_is_not_there_takes_and_lists_nothing(
    s3_environment: str, tmp_path: Path
) -> None:
    store = S3Store("there-is-no-such-bucket")
    (tmp_path / "file").write_bytes(b"x")
    for use in uses(store, tmp_path / "file"):
        # A HEAD request has no body, so S3 itself cannot distinguish a missing bucket from a missing key.
        with pytest.raises((StorageUnavailable, ObjectNotFound)):
            use()
    with refused("NoSuchBucket"):
        store.upload(tmp_path / "file", "a/b")
    with refused("NoSuchBucket"):
        store.folders("")


def test_a_folder_that_cannot_be_made_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = LocalStore(tmp_path / "file" / "store")
    with refused("Not a directory"):
        store.put("a/b", b"")
    with refused("Not a directory"):
        store.create("a/b", b"")
    with refused("Not a directory"):
        store.upload(tmp_path / "file", "a/b")


def test_a_full_disk_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    # A limit on the size of files is the full disk that any user can have.
    program = f"""
import resource, signal
from pathlib import Path
from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.local import LocalStore, _open_beneath
store = LocalStore(Path({str(tmp_path)!r}))
store.put("kept", b"x" * 1000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
def write():
    with store.writer("kept", 6000) as writer:
        writer.write(b"y" * 6000)
for use in (
    lambda: store.put("kept", b"y" * 6000),
    lambda: store.create("new", b"y" * 6000),
    write,
):
    try:
        use()
    except StorageUnavailable as error:
        print(error)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert answer.stdout.count("File too large") == 3
    store = LocalStore(tmp_path)
    assert store.read("kept") == b"x" * 1000
    assert list(store.keys("")) == ["kept"]
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk of one page")
def test_no_space_left_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k"):
        store = LocalStore(tmp_path)
        store.put("kept", b"x" * 1000)
        for use in (
            lambda: store.put("kept", b"y" * 100_000),
            lambda: store.create("new", b"y" * 100_000),
            lambda: written(store, "kept", 100_000),
        ):
            with refused("No space left on device"):
                use()
        assert store.read("kept") == b"x" * 1000
        assert list(store.keys("")) == ["kept"]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small disk in memory. Skips the test where mounting is not permitted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a disk; a limit on files is tested as well")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_takes_and_lists_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/b", b"x")
    store.root.chmod(0o000)
    try:
        for use in uses(store, tmp_path / "file"):
            with refused("Permission denied"):
                use()
    finally:
        store.root.chmod(0o700)


def test_a_folder_that_is_not_there_yet_is_an_empty_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "not" / "yet")
    assert list(store.keys("")) == store.folders("") == []
    with pytest.raises(ObjectNotFound):
        store.read("a")
    store.put("a", b"x")
    assert store.read("a") == b"x"


def test_a_download_to_a_folder_that_is_not_there_is_not_a_missing_object(
    s3_environment: str, tmp_path: Path
) -> None:
    local, bucket = LocalStore(tmp_path / "store"), S3Store("contract-suite", tmp_path.name)
    for store in (local, bucket):
        store.put("a", b"x")
        with refused("No such file"):
            store.download("a", tmp_path / "no" / "folder" / "target")


def test_links_inside_a_folder_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    store = LocalStore(tmp_path / "store")
    store.put("inside", b"x")
    (store.root / "file").symlink_to(tmp_path / "secret")
    (store.root / "folder").symlink_to(tmp_path)
    for key in ("file", "folder/secret"):
        with pytest.raises(InvalidUri, match="leaves the store"):
            store.read(key)
        with pytest.raises(InvalidUri, match="leaves the store"):
            store.put(key, b"")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_symlink_created_during_a_read_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    store = LocalStore(tmp_path / "store")
    store.put("day/key", b"x")
    (store.root / "day").rename(tmp_path / "away")
    (store.root / "day").symlink_to(tmp_path / "secret")
    # The result of `_path` before the link was made.
    with pytest.raises(OSError, match="day"):
        _open_beneath(store.root, ("day", "key"))
    with pytest.raises(InvalidUri, match="leaves the store"):
        store.stream("day/key")


def test_temporary_files_of_a_writer_that_died_are_never_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"x")
    (tmp_path / "a" / ".tmp-left-behind").write_bytes(b"half")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".tmp-left-behind").write_bytes(b"half")
    assert list(store.keys("")) == ["a/b"]
    assert store.folders("") == ["a"]
