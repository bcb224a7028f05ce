"""Addresses: which are read, and which never are."""

from pathlib import Path

import pytest

from cmcl.contract.errors import InvalidUri
from cmcl.storage.local import LocalStore
from cmcl.storage.s3 import S3Store
from cmcl.storage.uris import check_allowed, locate, locate_allowed, open_store

ALLOWED = ("s3://bucket/captures", "file:///data/captures/")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/captures/a.parquet",
        "s3://bucket/captures/2026-11/a b+c.parquet",
        "s3://bucket/captures/100%.parquet",
        "file:///data/captures/a.parquet",
        "file:///data/captures/deep/%C3%A9t%C3%A9.parquet",
    ],
)
def test_addresses_under_an_allowed_prefix_are_allowed(uri: str) -> None:
    check_allowed(uri, ALLOWED)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/captures",
        "s3://bucket/captures-evil/a.parquet",
        "s3://bucket-evil/captures/a.parquet",
        "s3://other/captures/a.parquet",
        "s3://bucket/a.parquet",
        "S3://bucket/captures/a.parquet",
        "s3://BUCKET/captures/a.parquet",
        "file:///data/captures-evil/a.parquet",
        "file:///etc/passwd",
    ],
)
def test_what_only_looks_like_an_allowed_prefix_is_outside(uri: str) -> None:
    with pytest.raises(InvalidUri, match="outside the allowed prefixes") as caught:
        check_allowed(uri, ALLOWED)
    assert repr(uri) in str(caught.value)
    assert "s3://bucket/captures, file:///data/captures/" in str(caught.value)


TRICKS = [
    "",
    "a.parquet",
    "/data/captures/a.parquet",
    "s3://",
    "s3:///captures/a.parquet",
    "s3://[bucket/captures/a.parquet",
    "s3://user@bucket/captures/a.parquet",
    "s3://bucket:80/captures/a.parquet",
    "s3://bucket/captures/../a.parquet",
    "s3://bucket/captures/./a.parquet",
    "s3://bucket/captures//a.parquet",
    "s3://bucket/captures/a.parquet?versionId=1",
    "s3://bucket/captures/a.parquet#part",
    "s3://bucket/captures/..\\a.parquet",
    "s3://bucket/captures/a\0.parquet",
    "s3://bucket/captures/a\n.parquet",
    "file://host/data/captures/a.parquet",
    "file://localhost/data/captures/a.parquet",
    "file:data/captures/a.parquet",
    "file:///data/captures/../../etc/passwd",
    "file:///data/captures/%2e%2e/%2E%2E/etc/passwd",
    "file:///data/captures/..%2f..%2fetc%2fpasswd",
    "file:///data/captures/%2fetc/passwd",
    "file:///data/captures/a%00.parquet",
    "file:///data/captures/a%0a.parquet",
    "file:///data/captures//a.parquet",
    "http://169.254.169.254/latest/meta-data",
    "https://bucket/captures/a.parquet",
    "ftp://bucket/captures/a.parquet",
]


@pytest.mark.parametrize("uri", TRICKS)
def test_tricks_are_refused_even_when_everything_is_allowed(uri: str) -> None:
    everything = ("s3://bucket", "file:///", uri.rpartition("/")[0])
    with pytest.raises(InvalidUri):
        check_allowed(uri, everything)
    with pytest.raises(InvalidUri):
        locate(uri)


def test_nothing_is_allowed_where_no_prefix_is_configured() -> None:
    with pytest.raises(InvalidUri, match="none are configured"):
        check_allowed("s3://bucket/a", ())


def test_a_link_in_an_allowed_folder_does_not_lead_out_of_it(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"")
    (allowed / "folder").symlink_to(outside)
    (allowed / "file").symlink_to(outside / "secret")
    (allowed / "circle").symlink_to(allowed / "circle")
    for name in ("folder/secret", "file"):
        with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
            check_allowed((allowed / name).as_uri(), (allowed.as_uri(),))
    check_allowed((allowed / "circle").as_uri(), (allowed.as_uri(),))


def test_an_allowed_folder_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_allowed((tmp_path / "link" / "a").as_uri(), ((tmp_path / "link").as_uri(),))


def test_an_address_on_disk_gives_folder_and_decoded_name(tmp_path: Path) -> None:
    path = tmp_path / "my data" / "a 100%.parquet"
    store, key = locate(path.as_uri())
    assert isinstance(store, LocalStore)
    assert (store.root / key) == path


def test_an_address_in_a_bucket_gives_prefix_and_literal_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store, key = locate("s3://bucket/a/b/100%25.parquet")
    assert isinstance(store, S3Store)
    assert (store.uri, key) == ("s3://bucket/a/b", "100%25.parquet")


def test_an_object_at_the_top_of_a_bucket_can_be_named() -> None:
    store, key = locate("s3://bucket/a.parquet")
    assert (store.uri, key) == ("s3://bucket", "a.parquet")


@pytest.mark.parametrize("uri", ["s3://bucket/a/", "file:///data/"])
def test_a_folder_is_no_object(uri: str) -> None:
    with pytest.raises(InvalidUri, match="names a folder, not an object"):
        locate(uri)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b/"])
def test_a_store_may_be_a_bucket_or_a_prefix_of_one(uri: str) -> None:
    assert open_store(uri).uri == uri.rstrip("/")


def test_a_store_on_disk_has_the_address_it_was_opened_with(tmp_path: Path) -> None:
    uri = (tmp_path / "a b").as_uri()
    assert open_store(uri).uri == uri


@pytest.mark.parametrize("uri", ["s3://bucket/data/", "file:///data/"])
def test_a_folder_is_no_shard(uri: str) -> None:
    with pytest.raises(InvalidUri, match="names a folder"):
        check_allowed(uri, ("s3://bucket", "file:///data"))


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("file:///data/my%20pairs/a", "file:///data/my pairs"),
        ("file:///data/my pairs/a", "file:///data/my%20pairs/"),
        ("file:///d%61ta/a", "file:///data"),
        ("file:///data/%C3%A9/a", "file:///data/é"),
        ("s3://bucket/my%20pairs/a", "s3://bucket/my%20pairs"),
        ("file:///data/a", "file:///"),
        ("s3://bucket/a", "s3://bucket"),
    ],
)
def test_addresses_on_a_disk_are_compared_as_they_are_read(uri: str, prefix: str) -> None:
    check_allowed(uri, (prefix,))


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        # In a bucket, these are two names.
        ("s3://bucket/my pairs/a", "s3://bucket/my%20pairs"),
        ("file:///data%2Devil/a", "file:///data"),
        ("file:///data/a", "s3://data"),
        ("s3://bucket/a", "file:///bucket"),
    ],
)
def test_no_way_of_writing_leads_out_of_a_prefix(uri: str, prefix: str) -> None:
    with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
        check_allowed(uri, (prefix,))


@pytest.mark.parametrize("prefix", ["", "data", "http://bucket", "s3://", "file:///a/../b"])
def test_a_prefix_that_is_no_address_permits_nothing(prefix: str) -> None:
    with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
        check_allowed("s3://bucket/a", (prefix,))
    check_allowed("s3://bucket/a", (prefix, "s3://bucket"))


def test_an_allowed_address_gives_its_prefix_and_the_rest(tmp_path: Path) -> None:
    prefix = (tmp_path / "my data").as_uri()
    store, key = locate_allowed(f"{prefix}/d%61y/a%20b", (prefix,))
    assert (store.uri, key) == (prefix, "day/a b")


def test_an_allowed_address_in_a_bucket_is_kept_word_for_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store, key = locate_allowed("s3://bucket/a/b%20/c", ("s3://bucket/a/",))
    assert (store.uri, key) == ("s3://bucket/a", "b%20/c")


def test_a_link_that_came_between_finding_and_reading_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "allowed" / "day").mkdir(parents=True)
    (tmp_path / "allowed" / "day" / "a").write_bytes(b"right")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a").write_bytes(b"secret")
    prefix = (tmp_path / "allowed").as_uri()
    store, key = locate_allowed(f"{prefix}/day/a", (prefix,))
    assert store.read(key) == b"right"
    (tmp_path / "allowed" / "day").rename(tmp_path / "away")
    (tmp_path / "allowed" / "day").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidUri, match="leaves the store"):
        store.download(key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
