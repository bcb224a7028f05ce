"""What a stream of Arrow is made of, looked at before anything of it is decoded.

A compressed buffer of some kilobytes can become gigabytes, and pyarrow has no option that refuses one:
whether a batch is compressed stands in its message's metadata, a small flatbuffer. Layout: Arrow's
`format/Message.fbs`.
"""

import struct

import pyarrow

from workers.serve.errors import InvalidRequest

# Schemas of a thousand columns have less.
_MOST_METADATA_BYTES = 1 << 20
# Places of fields in their tables: `Message.header`, `RecordBatch.compression`, `DictionaryBatch.data`.
_HEADER = 2
_COMPRESSION = 3
_DATA = 1


def check_messages(data: pyarrow.Buffer, most: int) -> None:
    """Raises InvalidRequest for more batches than `most`, for large metadata, for compression.

    Where the stream is damaged it raises what pyarrow does, or struct.error.
    """
    batches = 0
    for message in pyarrow.ipc.MessageReader.open_stream(pyarrow.BufferReader(data)):
        size = message.metadata.size
        if size > _MOST_METADATA_BYTES:
            raise InvalidRequest(
                f"a message of the stream of Arrow has {size} bytes of metadata; permitted are "
                f"{_MOST_METADATA_BYTES}",
                "input",
            )
        batches += message.type != "schema"
        if batches > most:
            raise InvalidRequest(
                f"the stream of Arrow has more than {most} batches; permitted are as many as rows",
                "input",
            )
        if _is_compressed(message):
            raise InvalidRequest(
                "the stream of Arrow has compressed buffers; permitted are uncompressed ones alone "
                "(no `compression` in the options of the writer)",
                "input",
                "compressed_body",
            )


def _is_compressed(message: pyarrow.ipc.Message) -> bool:
    if message.type not in ("record batch", "dictionary"):
        return False
    metadata = message.metadata.to_pybytes()
    batch = _table_in(metadata, _root(metadata), _HEADER)
    if batch is not None and message.type == "dictionary":
        batch = _table_in(metadata, batch, _DATA)
    return batch is not None and _place(metadata, batch, _COMPRESSION) is not None


def _root(metadata: bytes) -> int:
    (offset,) = struct.unpack_from("<I", metadata)
    return int(offset)


def _table_in(metadata: bytes, table: int, field: int) -> int | None:
    """Where the table begins that this field of another one refers to."""
    place = _place(metadata, table, field)
    if place is None:
        return None
    (offset,) = struct.unpack_from("<I", metadata, place)
    return place + int(offset)


def _place(metadata: bytes, table: int, field: int) -> int | None:
    """Where a field of a table stands; None where it is left out."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    entry = 4 + 2 * field
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, table - back + entry)
    return table + offset if offset else None
