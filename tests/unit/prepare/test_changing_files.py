"""A file that changes while it is read is refused, or has no effect once its items are copied."""

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from cmcl.contract.errors import InvalidDataset
from cmcl.storage.uris import open_store
from tests.fakes.raw_files import (
    DEPTH,
    IMAGE,
    PLACE,
    TEXT,
    csv_bytes,
    jsonl,
    parquet_bytes,
    picture,
    tar_bytes,
)
from tests.fakes.s3_server import s3_server, use_bucket
from tests.unit.prepare.conftest import NewDataset
from workers.prepare.plan import plan
from workers.prepare.rows import Row, UnitReader
from workers.prepare.units import DatasetSource
from workers.sandbox.child import Child, ChildLimits


def content(form: str, suffix: str = "") -> bytes:
    rows = [{"id": f"{at}{suffix}", "place": [at, 1], "text": f"t{at}"} for at in range(5)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "jsonl": lambda: jsonl(rows),
        "csv": lambda: csv_bytes(rows, ["id", "place", "text"]),
        "parquet": lambda: parquet_bytes(columns),
        "tar": lambda: tar_bytes((f"{row['id']}.json", jsonl([row])) for row in rows),
    }[form]()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "tar"])
@pytest.mark.parametrize("change", ["other rows", "cut off", "gone"])
def test_a_file_that_changed_after_it_was_planned_is_refused(
    dataset: NewDataset, form: str, change: str
) -> None:
    data = dataset(PLACE, TEXT)
    uri = data.add("rows", content(form))
    planned = data.plan()
    path = Path(uri.removeprefix("file://"))
    if change == "gone":
        path.unlink()
    elif change == "other rows":
        path.write_bytes(content(form, "x"))
    else:
        # A tar is filled with zeros.
        path.write_bytes(content(form)[: 3000 if form == "tar" else -20])
    with pytest.raises(InvalidDataset, match=r"changed while it was read|no such|cannot be read"):
        data.read(planned)
    assert list(data.child.scratch.path.iterdir()) == []


def test_what_was_copied_is_decoded_whatever_happens_to_the_file(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    data.file("a.png", picture(5))
    data.add("rows.jsonl", jsonl([{"id": "a", "image_file_name": "a.png", "text": "t"}]))
    (unit,) = data.plan().units
    with UnitReader(data.child, data.source, unit) as reader:
        data.file("a.png", picture(9))
        (row,) = reader.read()
    assert isinstance(row, Row)
    assert row.items[0].getpixel((0, 0)) == (5, 0, 7)  # type: ignore[union-attr]
    with UnitReader(data.child, data.source, unit) as again:
        assert again.digests()[0] != reader.digests()[0]
        assert again.digests()[1] == reader.digests()[1]


def test_rows_are_known_before_they_are_decoded(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    data.add("rows.jsonl", jsonl([{"id": "a", "place": [1], "text": "t"}, {"id": "b"}]))
    (unit,) = data.plan().units
    with UnitReader(data.child, data.source, unit) as reader:
        assert [row.id for row in reader.rejected] == ["b"]
        assert list(map(len, reader.digests())) == [1, 1]


def test_an_item_that_is_known_or_was_sent_before_is_not_decoded(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    rows = [(0, "t"), (0, "t"), (1, "u"), (0, "u"), (1, "t")]
    for colour in (0, 1):
        data.file(f"{colour}.png", picture(colour))
    named = [
        {"id": str(at), "image_file_name": f"{colour}.png", "text": text}
        for at, (colour, text) in enumerate(rows)
    ]
    data.add("rows.jsonl", jsonl(named))
    (unit,) = data.plan().units
    with UnitReader(data.child, data.source, unit) as reader:
        whole = [row.items for row in reader.read()]  # type: ignore[union-attr]
        is_sent = [(item is not None, text is not None) for item, text in whole]
        nothing, both = (False, False), (True, True)
        assert is_sent == [both, nothing, both, nothing, nothing]
        known_a, known_b = reader.digests()
        known_b -= {blake3(b"u").digest()}
        read = [row.items for row in reader.read(known_a, known_b)]  # type: ignore[union-attr]
    assert read == [(None, None), (None, None), (None, "u"), (None, None), (None, None)]


def test_an_item_of_a_row_that_was_left_out_is_decoded_for_the_next_one(
    dataset: NewDataset,
) -> None:
    data = dataset(DEPTH, TEXT)
    rows = [
        {"id": str(at), "depth": [1, 2, 3], "text": text} for at, text in enumerate(("refuse", "a"))
    ]
    data.add("rows.jsonl", jsonl(rows))
    read = data.read(decoder="tests.fakes.child_tasks:decode_or_crash")
    assert read.ids == ["1"]
    assert np.array_equal(read.rows[0].items[0], [1, 2, 3])  # type: ignore[arg-type]


def test_a_reader_that_is_left_early_leaves_nothing_behind(dataset: NewDataset) -> None:
    data = dataset(PLACE, TEXT)
    rows = [{"id": f"{at}", "place": [1], "text": "t" * 50_000} for at in range(100)]
    data.add("rows.jsonl", jsonl(rows))
    (unit,) = data.plan().units
    with UnitReader(data.child, data.source, unit) as reader:
        assert isinstance(next(reader.read()), Row)
    assert list(data.child.scratch.path.iterdir()) == []
    assert len(data.read().rows) == 100


def test_a_unit_that_takes_too_long_in_all_is_refused(dataset: NewDataset) -> None:
    data = dataset(DEPTH, TEXT)
    rows = [{"id": f"{at}", "depth": [1, 2, 3], "text": "sleep"} for at in range(3)]
    data.add("rows.jsonl", jsonl(rows))
    planned = data.plan()
    decoder = "tests.fakes.child_tasks:decode_or_crash"
    with Child(ChildLimits(memory=768 << 20, seconds=2)) as child:
        data.child = child
        with pytest.raises(InvalidDataset, match="rows 0 to 2 were not decoded within 2 s"):
            data.read(planned, decoder=decoder, row_seconds=0.5)


def test_rows_are_read_from_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"{at}", "image_file_name": f"p/{at} ö%.png", "text": "t"} for at in range(4)]
    pictures = [picture(at) for at in range(3)]
    members = [(f"{at}.png", each) for at, each in enumerate(pictures)]
    forms = {
        "jsonl": jsonl(rows),
        "csv": csv_bytes(rows, list(rows[0])),
        "parquet": parquet_bytes({name: [row[name] for row in rows] for name in rows[0]}),
        "tar": tar_bytes(sorted([*members, *((f"{at}.txt", b"t") for at in range(4))])),
    }
    with s3_server() as endpoint:
        use_bucket(endpoint, "captures", monkeypatch)
        store = open_store("s3://captures/2026")
        for at, each in enumerate(pictures):
            store.put(f"p/{at} ö%.png", each)
        with Child(ChildLimits(memory=768 << 20, seconds=120)) as child:
            for form, data in forms.items():
                store.put(form, data)
                source = DatasetSource.model_validate(
                    {
                        "files": [{"uri": f"s3://captures/2026/{form}"}],
                        "sides": [IMAGE, TEXT],
                        "allowed_prefixes": ["s3://captures/2026"],
                    }
                )
                (unit,) = plan(child, source).units
                with UnitReader(child, source, unit) as reader:
                    assert [row.id for row in reader.read()] == ["0", "1", "2"], form
                assert [row.id for row in reader.rejected] == ["3"], form
