"""Bodies of Arrow are read with bounds: a small one cannot take much memory, a damaged one is 400."""

import random
from collections.abc import Sequence

import numpy as np
import pyarrow
import pytest

from tests.unit.serve.test_serve_forms import ROWS, arrow_rows
from workers.serve.api.wire.vectors import from_arrow
from workers.serve.errors import InvalidRequest


def lists_of(rows_BF: np.ndarray) -> pyarrow.Array:
    return pyarrow.FixedSizeListArray.from_arrays(rows_BF.reshape(-1), rows_BF.shape[1])


def stream(
    columns: dict[str, pyarrow.Array], lengths: Sequence[int] = (), compression: str | None = None
) -> bytes:
    """In one batch, or in batches of these lengths."""
    batch = pyarrow.record_batch(columns)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema, options=options) as writer:
        start = 0
        for length in lengths or [batch.num_rows]:
            writer.write_batch(batch.slice(start, length))
            start += length
    data: bytes = sink.getvalue().to_pybytes()
    return data


def message_of(data: bytes, most: int = 50) -> str:
    """The words of the error."""
    with pytest.raises(InvalidRequest) as error:
        from_arrow(data, "a feature", 5, most)
    return str(error.value)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_body_is_refused_before_it_is_decoded(compression: str) -> None:
    data = stream({"feature": lists_of(np.ones((1 << 20, 5), np.float32))}, (), compression)
    assert len(data) < 200_000
    before = pyarrow.default_memory_pool().max_memory()
    assert "compressed buffers; permitted are uncompressed ones" in message_of(data)
    assert pyarrow.default_memory_pool().max_memory() == before


def test_a_compressed_dictionary_beside_the_column_is_refused() -> None:
    words = pyarrow.array(["a" * 10_000] * 3).dictionary_encode()
    columns = {"feature": lists_of(ROWS), "word": words}
    assert "compressed" in message_of(stream(columns, (), "zstd"))
    np.testing.assert_array_equal(from_arrow(stream(columns), "a feature", 5, 50), ROWS)


def test_no_further_batch_is_looked_at_once_there_are_too_many_rows() -> None:
    """The null in the second batch is not reported."""
    data = stream({"feature": pyarrow.array([[1.0] * 5] * 50 + [None])}, [50, 1])
    assert message_of(data, 50) == "input has more than 50 rows; permitted are 1 to 50"
    assert "has nulls" in message_of(data, 51)


def test_empty_batches_without_end_are_refused() -> None:
    data = stream({"feature": lists_of(ROWS)}, [0] * 60 + [3])
    assert "more than 50 batches" in message_of(data)


def test_rows_without_bytes_are_counted_before_anything_is_made_of_them() -> None:
    """Lists of no numbers have no buffer, so a message of some bytes can have 2**31 of them."""
    none_at_all = pyarrow.FixedSizeListArray.from_buffers(
        pyarrow.list_(pyarrow.float32(), 0),
        2**31 - 1,
        [None],
        children=[pyarrow.array([], "float32")],
    )
    assert "more than 50 rows" in message_of(stream({"feature": none_at_all}))


def test_a_very_large_schema_is_refused() -> None:
    batch = pyarrow.record_batch({"feature": lists_of(ROWS)})
    schema = batch.schema.with_metadata({"note": "x" * (1 << 20)})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    assert "bytes of metadata; permitted are" in message_of(sink.getvalue().to_pybytes())


def test_no_column_and_two_columns_are_distinguished() -> None:
    batch = pyarrow.RecordBatch.from_arrays([lists_of(ROWS)] * 2, ["feature", "feature"])
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert "the body has 2 columns 'feature', permitted is one" in message_of(
        sink.getvalue().to_pybytes()
    )
    assert "0 columns 'feature', permitted is one; its first are: \"other\"" in message_of(
        stream({"other": lists_of(ROWS)})
    )


def test_damaged_bodies_are_refused_or_read_and_nothing_else() -> None:
    columns = {"feature": lists_of(ROWS), "word": pyarrow.array(["a", "bb", None])}
    whole = stream(columns, [2, 1])
    random_ = random.Random(6)
    refused = 0
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        try:
            from_arrow(bytes(data), "a feature", 5, 50)
        except InvalidRequest:
            refused += 1
    assert 1000 < refused < 4000


def test_a_name_that_is_no_text_is_refused() -> None:
    data = arrow_rows(ROWS).replace(b"feature", b"featu\xff\xfe")
    assert message_of(data).startswith("the body is no stream of Arrow")
