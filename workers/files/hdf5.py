"""HDF5, with arrays as in npz. The library crashes on some crafted files: read users' files in a bounded child only.

A file must not make us read other files: links, virtual datasets, external storage and filters from
plugins are rejected. Limits: chunks of 256 MiB; declared sizes relative to the file's.
"""

from collections.abc import Iterator

import h5py
import numpy as np
import pyarrow as pa

from workers.files.arrays import NamedArray, read_arrays, wanted_names
from workers.files.columns import UserFile, reading

LARGEST_CHUNK = 256 << 20
# Deflate, shuffle, checksum, LZF: part of h5py. Others would be loaded from a plugin folder.
_FILTERS = {1, 2, 3, 32000}
_ERRORS = (ValueError, KeyError, RuntimeError, TypeError)


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "HDF5", *_ERRORS), h5py.File(file.path, "r", locking=False) as root:
        wanted = wanted_names(file)
        named = [name for name in root if name in wanted]
        yield from read_arrays({name: _array(root, name, file) for name in named}, file, root)


def _array(root: h5py.File, name: str, file: UserFile) -> NamedArray:
    dataset = _dataset(root, name, file)
    texts = h5py.check_string_dtype(dataset.dtype) is not None
    dtype = np.dtype("O") if texts else dataset.dtype
    view = dataset.asstr() if texts else dataset
    return NamedArray(
        dataset.shape, dtype, str(dataset.dtype), lambda start, stop: np.asarray(view[start:stop])
    )


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
