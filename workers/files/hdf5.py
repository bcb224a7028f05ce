"""HDF5 in two layouts. The library crashes on some crafted files: read users' files in a bounded child only.

*Arrays*: as in npz. *One dataset per row*, the layout of the paper's reference code (github.com/
Xiaohao-Liu/CMCL, perceptors/base.py, FeatureStorage): at the root, named by the row's id, each of
shape (modalities, width). Which line is which modality is defined in that code and not in the file:
two lines are those of the pair, in its order; with more, the root's attribute `modalities` must name
them.

A file must not make us read other files: links, virtual datasets, external storage and filters from
plugins are rejected. Limits: chunks of 256 MiB; declared sizes relative to the file's.
"""

from collections.abc import Iterator
from itertools import islice

import h5py
import numpy as np
import pyarrow as pa

from workers.files.arrays import NamedArray, check_floats, read_arrays, wanted_names
from workers.files.columns import ROWS_AT_ONCE, UserFile, feature_list, reading

LARGEST_CHUNK = 256 << 20
MOST_LINES = 64
# Deflate, shuffle, checksum, LZF: part of h5py. Others would be loaded from a plugin folder.
_FILTERS = {1, 2, 3, 32000}
_ERRORS = (ValueError, KeyError, RuntimeError, TypeError)


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "HDF5", *_ERRORS), h5py.File(file.path, "r", locking=False) as root:
        wanted = wanted_names(file)
        named = [name for name in root if name in wanted]
        if named:
            yield from read_arrays({name: _array(root, name, file) for name in named}, file, root)
        else:
            yield from _read_rows(root, file)


def _array(root: h5py.File, name: str, file: UserFile) -> NamedArray:
    dataset = _dataset(root, name, file)
    texts = h5py.check_string_dtype(dataset.dtype) is not None
    dtype = np.dtype("O") if texts else dataset.dtype
    view = dataset.asstr() if texts else dataset
    return NamedArray(
        dataset.shape, dtype, str(dataset.dtype), lambda start, stop: np.asarray(view[start:stop])
    )


def _read_rows(root: h5py.File, file: UserFile) -> Iterator[pa.RecordBatch]:
    """The paper's layout. Rows are in the order of their names, as in its code."""
    lines: tuple[int, int] | None = None
    names = iter(root)
    while group := list(islice(names, ROWS_AT_ONCE)):
        rows = []
        for name in group:
            dataset = _dataset(root, name, file)
            lines = lines or _lines(root, dataset, file)
            rows.append(_row(dataset, name, lines, file))
        values_BMI = np.stack(rows)
        columns = {
            side.column: feature_list(values_BMI[:, at]) for at, side in enumerate(file.sides)
        }
        yield pa.record_batch({"id": pa.array(group, pa.string()), **columns})


def _row(dataset: h5py.Dataset, name: str, lines: tuple[int, int], file: UserFile) -> np.ndarray:
    """The two lines of one row, as float32."""
    shape = dataset.shape
    if len(shape) != 2 or not max(lines) < shape[0] <= MOST_LINES:
        raise file.wrong(
            f"dataset {name!r} must be (modalities, width) with as many modalities as the others "
            f"and at most {MOST_LINES}, has shape {shape}"
        )
    for side in file.sides:
        file.check_width(side, shape[1], f"dataset {name!r}")
    check_floats(dataset.dtype, str(dataset.dtype), name, file)
    with np.errstate(over="ignore"):
        values_MI: np.ndarray = dataset[()].astype(np.float32)
    return values_MI[list(lines)]


def _lines(root: h5py.File, first: h5py.Dataset, file: UserFile) -> tuple[int, int]:
    """The line of each of the two sides in a row."""
    wanted = [side.modality for side in file.sides]
    if "modalities" not in root.attrs:
        if first.shape is None or len(first.shape) != 2 or first.shape[0] != 2:
            raise file.wrong(
                f"its rows have shape {first.shape}; either (2, width) in the pair's order, or the "
                f"attribute 'modalities' names the lines, {wanted[0]} and {wanted[1]} among them"
            )
        return (0, 1)
    values = np.atleast_1d(root.attrs["modalities"])[:100]
    named = [
        each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in values
    ]
    for modality in wanted:
        if named.count(modality) != 1:
            raise file.wrong(f"its attribute 'modalities' must name {modality!r} once, is {named}")
    return (named.index(wanted[0]), named.index(wanted[1]))


def _dataset(root: h5py.File, name: str, file: UserFile) -> h5py.Dataset:
    """The dataset of that name. Raises InvalidDataset if reading it would read other files."""
    link = root.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise file.wrong(f"{name!r} is a link; links are not followed")
    dataset = root[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise file.wrong(f"{name!r} is no dataset of numbers; put the datasets at the root")
    if dataset.is_virtual or dataset.external:
        raise file.wrong(f"dataset {name!r} is stored in other files, which are not read")
    plan = dataset.id.get_create_plist()
    used = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if used - _FILTERS:
        raise file.wrong(
            f"dataset {name!r} is compressed by filter {min(used - _FILTERS)}; "
            "gzip, lzf and no compression are read"
        )
    # Chunks are decompressed as a whole.
    size = int(np.prod(dataset.chunks or 0, dtype=np.int64)) * dataset.dtype.itemsize
    if size > LARGEST_CHUNK:
        raise file.wrong(
            f"dataset {name!r} has chunks of {size} bytes, at most {LARGEST_CHUNK} are read"
        )
    return dataset
