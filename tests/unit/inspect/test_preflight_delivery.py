"""A pre-flight for the service: shards named by a document in the store, the answer left there."""

from pathlib import Path

import numpy as np
import pytest

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.preflight import AskedShard, AskedShards, PreflightAnswer
from tests.unit.inspect.conftest import shard_file
from tests.unit.inspect.test_inspect_command import CommandResult, ask
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore

ASKED, ANSWERED = "runs/pf-1/a1/asked.json", "runs/pf-1/a1/answer.json"


def ask_by_the_store(
    store: ObjectStore, folder: Path, *shards: AskedShard, version: str = "3"
) -> CommandResult:
    """With shards of that folder permitted, as the service asks."""
    asked = AskedShards(shards=shards, allowed_prefixes=(folder.as_uri(),))
    store.put(ASKED, asked.model_dump_json().encode())
    keys = ("--shards-in", ASKED, "--into", ANSWERED)
    return ask("preflight", store, "--version", version, "--pair", "v,t", *keys)


def answer_in(store: ObjectStore) -> PreflightAnswer:
    return PreflightAnswer.model_validate_json(store.read(ANSWERED))


@pytest.fixture(autouse=True)
def nothing_answered_yet(store: ObjectStore) -> None:
    store.delete(ANSWERED)


def test_the_answer_in_the_store_is_the_printed_one(store: ObjectStore, tmp_path: Path) -> None:
    shard = AskedShard(uri=shard_file(tmp_path, "x_vt", 9).as_uri())
    assert ask_by_the_store(store, tmp_path, shard).status == 0
    outlook = answer_in(store).outlook
    assert outlook is not None
    assert (outlook.version, outlook.pair, outlook.refusals) == (3, ("v", "t"), ())
    printed = ask("preflight", store, "--version", "3", "--pair", "v,t", "--shards", shard.uri)
    for words in outlook.advice:
        assert words in printed.stdout
    assert 0 < (outlook.heads["v"].open_share or 0) < 1


def test_a_refusal_is_an_answer_in_the_store(store: ObjectStore, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing behind it")
    assert ask_by_the_store(store, tmp_path, AskedShard(uri=broken.as_uri())).status == 3
    outlook = answer_in(store).outlook
    assert outlook is not None
    assert broken.name in outlook.refusals[0]
    assert outlook.heads == {}


def test_a_link_out_of_what_is_allowed_is_no_way(store: ObjectStore, tmp_path: Path) -> None:
    outside = shard_file(tmp_path, "x_vt", 9)
    folder = tmp_path / "permitted"
    folder.mkdir()
    (folder / "link.parquet").symlink_to(outside)
    shard = AskedShard(uri=(folder / "link.parquet").as_uri())
    assert ask_by_the_store(store, folder, shard).status == 2
    answer = answer_in(store)
    assert answer.outlook is None
    assert "outside the allowed prefixes" in (answer.error or "")


def test_an_upload_is_read_in_place(
    store: ObjectStore, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = shard_file(tmp_path_factory.mktemp("elsewhere"), "x_vt", 9)
    shard = AskedShard(uri="upload:up-000000000001", address=path.as_uri())
    assert ask_by_the_store(store, tmp_path, shard).status == 0


def test_other_formats_are_read_as_intake_does(store: ObjectStore, tmp_path: Path) -> None:
    random, path = np.random.default_rng(3), tmp_path / "x.npz"
    widths = answer_widths(store, tmp_path)
    sides = [random.normal(size=(40, width)).astype(np.float32) for width in widths]
    np.savez(path, feature_a=sides[0], feature_b=sides[1])
    assert ask_by_the_store(store, tmp_path, AskedShard(uri=path.as_uri())).status == 0


def answer_widths(store: ObjectStore, folder: Path) -> list[int]:
    """Widths that the model declares, by its own answer about a good shard."""
    ask_by_the_store(store, folder, AskedShard(uri=shard_file(folder, "w_vt", 1).as_uri()))
    outlook = answer_in(store).outlook
    assert outlook is not None
    return [outlook.findings[modality].expected_width for modality in ("v", "t")]


def test_an_impossible_preflight_leaves_a_message(store: ObjectStore, tmp_path: Path) -> None:
    shard = AskedShard(uri=shard_file(tmp_path, "x_vt", 9).as_uri())
    said = ask_by_the_store(store, tmp_path, shard, version="7")
    answer = answer_in(store)
    assert said.status == 2
    assert answer.outlook is None
    assert "no version 7" in (answer.error or "")
    assert not answer.retry_can_help


def test_without_the_named_shards_nothing_is_answered(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "empty")
    keys = ("--shards-in", ASKED, "--into", ANSWERED)
    said = ask("preflight", store, "--version", "1", "--pair", "v,t", *keys)
    assert said.status == 2
    assert answer_in(store).error


def test_an_answer_that_cannot_be_left_is_an_error(store: ObjectStore, tmp_path: Path) -> None:
    shard = shard_file(tmp_path, "x_vt", 9).as_uri()
    options = ("--version", "3", "--pair", "v,t", "--shards", shard)
    said = ask("preflight", store, *options, "--into", "../outside.json")
    assert said.status == 2
    with pytest.raises(ObjectNotFound):
        store.read(ANSWERED)
