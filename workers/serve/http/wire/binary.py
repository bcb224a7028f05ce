"""Rows without JSON: raw floats back to back, or a stream of Arrow.

Shapes: B rows, F width of the raw feature.
"""

import numpy as np
import pyarrow

from workers.serve.errors import InvalidRequest
from workers.serve.http.wire.rows import checked
from workers.serve.versions.loading import Float32Array

_COLUMN = "feature"
DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64")}


def dtype_of(name: str | None) -> np.dtype:
    """The parameter `dtype` of a raw body. Raises InvalidRequest."""
    found = DTYPES.get(name or "float32")
    if found is None:
        raise InvalidRequest(f"dtype is {name!r}; permitted are {', '.join(DTYPES)}", param="dtype")
    return found


def from_arrow(data: bytes, what: str, width: int) -> Float32Array:
    """The column `feature` of an IPC stream as B × F. Raises InvalidRequest."""
    try:
        table = pyarrow.ipc.open_stream(data).read_all()
        table.validate(full=True)
    except (pyarrow.ArrowInvalid, OSError, pyarrow.ArrowNotImplementedError) as error:
        raise InvalidRequest(f"the body is no stream of Arrow: {error}", "input") from error
    column = _column(table)
    if column.null_count or column.flatten().null_count:
        raise InvalidRequest(f"column {_COLUMN!r} has nulls; permitted are none", "input")
    lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
    if lengths != [width]:
        raise InvalidRequest(
            f"column {_COLUMN!r} has lists of {lengths[:5]} numbers; {what} has {width}",
            "input",
            "wrong_width",
        )
    rows_BF = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return checked(rows_BF.astype(np.float64 if rows_BF.dtype.itemsize == 8 else np.float32))


def _column(table: pyarrow.Table) -> pyarrow.Array:
    if _COLUMN not in table.column_names:
        names = ", ".join(table.column_names[:20])
        raise InvalidRequest(f"there is no column {_COLUMN!r}; the body has {names}", "input")
    column = table.column(_COLUMN).combine_chunks()
    kind = column.type
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind)
    if not is_list or not pyarrow.types.is_floating(kind.value_type):
        raise InvalidRequest(
            f"column {_COLUMN!r} is of {kind}; permitted are lists of float16, float32 or float64",
            "input",
        )
    return column
