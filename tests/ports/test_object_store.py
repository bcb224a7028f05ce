"""Contract of every object store."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest

from cmcl.contract.errors import InvalidUri, ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import ObjectStore

Root = Callable[[str], ObjectStore]

# The store of the simulations as well, which no address opens.
pytestmark = pytest.mark.parametrize("open_root", ["file", "s3", "memory"], indirect=True)

BAD_KEYS = ["", "/etc/passwd", "../other", "a/../b", "a/./b", "a//b", "a/", "a\\b", "a\0b", "a\nb"]


def test_what_was_put_is_read(store: ObjectStore) -> None:
    store.put("a/b/c.bin", b"\x00\xffbytes")
    assert store.read("a/b/c.bin") == b"\x00\xffbytes"
    assert store.size("a/b/c.bin") == 7


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert (store.read("empty"), store.size("empty")) == (b"", 0)
    assert list(store.keys("")) == ["empty"]


def test_put_overwrites(store: ObjectStore) -> None:
    store.put("key", b"a longer first value")
    store.put("key", b"second")
    assert store.read("key") == b"second"


def test_what_was_uploaded_is_downloaded(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100_000)
    store.put("a/file", b"to be overwritten")
    store.upload(tmp_path / "source", "a/file")
    store.download("a/file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"x" * 100_000
    assert store.size("a/file") == 100_000


def test_create_writes_only_what_was_not_there(store: ObjectStore) -> None:
    store.create("manifest.json", b"first")
    with pytest.raises(ObjectExists, match=r"manifest\.json"):
        store.create("manifest.json", b"second")
    assert store.read("manifest.json") == b"first"


def test_a_key_can_be_created_again_after_it_was_deleted(store: ObjectStore) -> None:
    store.create("key", b"first")
    store.delete("key")
    store.create("key", b"second")
    assert store.read("key") == b"second"


def test_of_many_creators_exactly_one_wins_and_its_bytes_stay(store: ObjectStore) -> None:
    barrier = Barrier(8)

    def create(number: int) -> int | None:
        barrier.wait()
        try:
            store.create("a/head", str(number).encode())
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert store.read("a/head") == str(winners[0]).encode()
    assert list(store.keys("")) == ["a/head"]


def test_a_reader_never_sees_a_part_of_an_object_being_overwritten(
    store: ObjectStore, tmp_path: Path
) -> None:
    contents = {bytes([letter]) * size for letter, size in ((65, 400_000), (66, 300_000))}
    (tmp_path / "uploaded").write_bytes(max(contents, key=len))
    store.put("key", min(contents, key=len))
    finished = Event()

    def write() -> None:
        for _ in range(10):
            store.upload(tmp_path / "uploaded", "key")
            store.put("key", min(contents, key=len))
        finished.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        seen = set()
        while not finished.is_set() and not writer.done():
            seen.add(store.read("key"))
        writer.result()
    assert seen <= contents


def test_while_objects_are_written_only_whole_ones_are_listed(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "uploaded").write_bytes(b"x" * 1_000_000)

    def write() -> None:
        for number in range(8):
            store.upload(tmp_path / "uploaded", f"a/{number}")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        listings = [set(store.keys(""))]
        while not writer.done():
            listings.append(set(store.keys("")))
        writer.result()
    assert set().union(*listings) <= {f"a/{number}" for number in range(8)}


def test_a_failed_write_leaves_nothing_behind(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="No such file"):
        store.upload(tmp_path / "there-is-no-such-file", "a/key")
    assert list(store.keys("")) == []
    assert store.folders("") == []


@pytest.mark.parametrize("key", ["missing", "a/b/missing", "folder", "object/below"])
def test_what_is_not_there_is_not_found(store: ObjectStore, tmp_path: Path, key: str) -> None:
    store.put("folder/object", b"")
    store.put("object", b"")
    for use in (
        lambda: store.read(key),
        lambda: store.size(key),
        lambda: store.download(key, tmp_path / "target"),
        # At once, not with the first chunk.
        lambda: store.stream(key),
    ):
        with pytest.raises(ObjectNotFound, match=key):
            use()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("key", ["missing", "a/b/missing", "folder", "object/below"])
def test_deleting_what_is_not_there_is_no_error(store: ObjectStore, key: str) -> None:
    store.put("folder/object", b"")
    store.put("object", b"")
    store.delete(key)
    assert list(store.keys("")) == ["folder/object", "object"]


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", b"")
    store.put("a/c", b"")
    store.delete("a/b")
    store.delete("a/b")
    assert list(store.keys("")) == ["a/c"]


def test_keys_are_listed_in_lexical_order(store: ObjectStore) -> None:
    # "-" and "." sort before "/", so a walk folder by folder would get this wrong.
    expected = ["B", "a-b/x", "a.b", "a/b/10", "a/b/9", "a0", "ä"]
    for key in reversed(expected):
        store.put(key, b"")
    assert list(store.keys("")) == expected


def test_a_prefix_is_the_beginning_of_a_key_and_not_a_folder(store: ObjectStore) -> None:
    for key in ("runs/job-1/a1/x", "runs/job-1/a10/x", "runs/job-10/a1/x", "other/runs/job-1"):
        store.put(key, b"")
    assert list(store.keys("runs/job-1/a1/")) == ["runs/job-1/a1/x"]
    assert list(store.keys("runs/job-1/a1")) == ["runs/job-1/a1/x", "runs/job-1/a10/x"]
    assert len(list(store.keys("runs/job-1"))) == 3
    assert list(store.keys("job-1")) == []
    assert list(store.keys("no/such/folder/")) == []


def test_folders_are_the_names_directly_below_that_have_keys(store: ObjectStore) -> None:
    for key in ("models/b/live.json", "models/a/versions/1/x", "models/a/live.json", "models/file"):
        store.put(key, b"")
    assert store.folders("models/") == ["a", "b"]
    assert store.folders("") == ["models"]
    assert store.folders("models/a/versions/") == ["1"]
    assert store.folders("models/file/") == store.folders("nothing/") == []


def test_a_folder_whose_last_key_was_deleted_is_gone(store: ObjectStore) -> None:
    store.put("models/a/versions/1/x", b"")
    store.delete("models/a/versions/1/x")
    assert store.folders("") == store.folders("models/") == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_no_method_takes_a_key_that_climbs_or_is_odd(
    store: ObjectStore, tmp_path: Path, key: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store.put("good", b"x")
    for use in (
        lambda: store.read(key),
        lambda: store.size(key),
        lambda: store.download(key, tmp_path / "target"),
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.upload(tmp_path / "file", key),
        lambda: store.stream(key),
        lambda: store.writer(key, 1).__enter__(),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidUri):
            use()
    assert list(store.keys("")) == ["good"]


@pytest.mark.parametrize("prefix", ["../", "a/../../", "/", "a//"])
def test_no_listing_climbs(open_root: Root, prefix: str) -> None:
    open_root("other").put("secret", b"")
    store = open_root("store")
    with pytest.raises(InvalidUri):
        list(store.keys(prefix))
    with pytest.raises(InvalidUri):
        store.folders(prefix)


def test_keys_with_spaces_and_letters_of_any_language_are_kept(store: ObjectStore) -> None:
    key = "données/a b+c=d&e%20f.parquet"
    store.put(key, b"x")
    assert list(store.keys("données/")) == [key]
    assert store.read(key) == b"x"


def test_stores_side_by_side_do_not_see_each_other(open_root: Root) -> None:
    first, lookalike = open_root("data"), open_root("data-evil")
    first.put("x", b"1")
    lookalike.put("x", b"2")
    assert first.read("x") == b"1"
    assert list(first.keys("")) == list(lookalike.keys("")) == ["x"]


def test_a_store_opened_again_by_its_own_address_is_the_same(
    store: ObjectStore, open_root: Root
) -> None:
    store.put("x", b"1")
    again = open_root("store")
    assert again.uri == store.uri
    assert again.read("x") == b"1"
