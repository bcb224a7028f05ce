"""`cmcl adopt`: reading another store's vectors, pairs by id, refusals, and items of a collection."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from cmcl import Client
from cmcl.cli.adopt import Vectors, _add, _write_pairs
from cmcl.cli.errors import CommandError
from cmcl.contract.encoder import EncoderIdentity
from cmcl.storage.local import LocalStore
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.fakes.waiting import until
from tests.unit.client.command_line import Cmcl
from tests.unit.serve.collections.conftest import opened
from tests.unit.serve.collections.scene import feature

ROWS_NF = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def table(rows_NF: np.ndarray = ROWS_NF, **columns: list[object]) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows_NF.ravel()), rows_NF.shape[1])
    ids = [f"doc-{n}" for n in range(len(rows_NF))]
    return pa.table({"id": ids, "embedding": lists, **columns})


def written(folder: Path, form: str) -> Path:
    path = folder / f"old.{form}"
    if form == "parquet":
        pq.write_table(table(), path)
    elif form == "arrow":
        pyarrow.feather.write_feather(table(), path, compression="uncompressed")
    elif form == "lance":
        lance.write_dataset(table(), str(path))
    else:
        np.save(path, ROWS_NF)
        np.save(folder / "old.ids.npy", np.array([f"doc-{n}" for n in range(9)]))
    return path


@pytest.mark.parametrize("form", ["parquet", "arrow", "lance", "npy"])
def test_every_form_gives_the_same_vectors(tmp_path: Path, form: str) -> None:
    found = Vectors.open(written(tmp_path, form))
    ((ids, rows, payloads),) = found.batches()
    assert (found.rows, found.width, ids[3]) == (9, 4, "doc-3")
    np.testing.assert_array_equal(np.array(rows, np.float32), ROWS_NF)
    assert payloads == [{}] * 9


def test_ids_by_line_and_other_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS_NF)
    (tmp_path / "a.ids.txt").write_text("\n".join(f"t{n}" for n in range(9)))
    assert next(Vectors.open(tmp_path / "a.npy").batches())[0][8] == "t8"
    both = table(colour=["red"] * 9, tags=[["a"]] * 9, size=list(range(9)))
    pq.write_table(both, tmp_path / "b.parquet")
    assert next(Vectors.open(tmp_path / "b.parquet").batches())[2][5] == {
        "colour": "red",
        "size": 5,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "it needs a column id, and one of vectors"),
        ({"embedding": [[1.0]]}, "it has embedding (list<element: double>)"),
        ({"id": ["a"], "x": [[1.0]], "y": [[1.0]]}, "the only list of floats"),
        ({"id": ["a", "b"], "x": [[1.0], [1.0, 2.0]]}, "the row with id 'b' has 2 numbers"),
        ({"id": ["a", None], "x": [[1.0], [2.0]]}, "the row with id None"),
    ],
)
def test_what_cannot_be_adopted(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(CommandError) as refused:
        list(Vectors.open(tmp_path / "x.parquet").batches())
    assert message in str(refused.value)


def test_pairs_are_matched_by_id_and_the_source_stays_as_it_is(tmp_path: Path) -> None:
    old, new = written(tmp_path, "parquet"), tmp_path / "new.parquet"
    before = old.read_bytes()
    other = table(np.arange(12, dtype=np.float32).reshape(4, 3)).take([2, 0])
    pq.write_table(other, new)
    pairs = pq.read_table(_write_pairs(tmp_path / "pairs.parquet", Vectors.open(old), new))
    assert pairs.column("id").to_pylist() == ["doc-0", "doc-2"]
    np.testing.assert_array_equal(np.stack(pairs.column("feature_a").to_numpy())[1], ROWS_NF[2])
    assert pairs.column("feature_b").to_pylist() == [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]]
    assert old.read_bytes() == before


def test_a_sample_of_other_ids_is_refused(tmp_path: Path) -> None:
    old, new = written(tmp_path, "parquet"), tmp_path / "new.parquet"
    pq.write_table(table().set_column(0, "id", pa.array([f"x{n}" for n in range(9)])), new)
    with pytest.raises(CommandError, match="no id in common"):
        _write_pairs(tmp_path / "pairs.parquet", Vectors.open(old), new)


@pytest.mark.parametrize("repeated", ["old", "new"])
def test_an_id_with_two_vectors_is_refused(tmp_path: Path, repeated: str) -> None:
    for name in ("old", "new"):
        rows = table().take([2, 0, 2] if name == repeated else [2, 0])
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    where = {"old": "the source", "new": "the sample"}[repeated]
    with pytest.raises(CommandError, match=f"{where} has the id 'doc-2' more than once"):
        _write_pairs(
            tmp_path / "pairs.parquet",
            Vectors.open(tmp_path / "old.parquet"),
            tmp_path / "new.parquet",
        )


def test_vectors_become_items_of_a_collection(tmp_path: Path) -> None:
    rows_NF = np.stack([feature("image", n) for n in range(15)])
    pq.write_table(table(rows_NF, n=list(range(15))), tmp_path / "old.parquet")
    with (
        opened(FlakyStore(LocalStore(tmp_path / "store"))) as replica,
        served(replica.app) as url,
        Client(embeddings_url=url) as client,
    ):
        _add(client, "things", "image", Vectors.open(tmp_path / "old.parquet"), as_json=True)
        # A replica follows the collection.
        until(lambda: len(list(client.collection_items("things"))) == 15)
        items = {item.id: item.payload for item in client.collection_items("things")}
    assert items["doc-14"] == {"n": 14}


@pytest.fixture
def plane(published_plane: ControlPlane) -> ControlPlane:
    """The model `scenes`, whose `image` (of width 4) is by a declared encoder."""
    identity = EncoderIdentity(
        kind="adopted", adapter=1, model="acme/old", revision="1", takes="image", width=4
    )
    encoders = {"image": identity.model_dump(mode="json")}
    published_plane.run_to_end(published_plane.post_dataset("three", encoders=encoders))
    return published_plane


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--as=image", "--encoder=acme/new@2"),
            "are by acme/old@1, and these vectors by acme/new@2",
        ),
        (("--as=text", "--encoder=acme/new"), "have width 4, and 'text' of scenes has 3"),
        (("--as=image_old", "--encoder=acme/new"), "give --sample and --aligned-to"),
    ],
)
def test_vectors_that_are_not_of_the_modality(
    cmcl: Cmcl, plane: ControlPlane, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    target = ("--takes=image", "--model=scenes", "--collection=docs", "--yes")
    source = str(written(tmp_path, "parquet"))
    code = 2 if "--sample" in message else 1
    assert message in cmcl("adopt", source, *options, *target, code=code)


@pytest.mark.parametrize(
    "options",
    [
        ("--as=image_old", "--encoder=acme/new", "--takes=image", "--aligned-to=image"),
        # More vectors of an encoder that is learned: neither --takes nor a sample.
        ("--as=image", "--encoder=acme/old@1"),
    ],
)
def test_a_collection_that_does_not_exist_is_noticed_before_anything_is_learned(
    cmcl: Cmcl, plane: ControlPlane, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = str(written(tmp_path, "parquet"))
    with (
        opened(FlakyStore(LocalStore(tmp_path / "endpoint"))) as replica,
        served(replica.app) as url,
    ):
        target = ("--model=scenes", "--collection=none", f"--embeddings-url={url}", "--yes")
        sample = ("--sample", source) if "--aligned-to=image" in options else ()
        assert "'none'" in cmcl("adopt", source, *options, *target, *sample, code=1)
    assert "image_old" not in plane.model("scenes").spec.modalities
