"""A folder of paired features as a stream of datasets.

Every file `NN_name_xy.train.parquet` has a `NN_name_xy.test.parquet`; x and y are the letters of
the modalities of `feature_a` and `feature_b`, and letters are the modality names. Other files are
ignored. Columns: `feature_a`, `feature_b` (fixed-size or plain lists of float16, float32 or
float64, one width per modality) and perhaps `label`.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.chain import Dataset
from cmcl.contract.modality import ModalityPair
from workers.files.columns import FEATURES
from workers.files.shards import Rows
from workers.model.heads import PairedRows, unit_rows
from workers.train.dataset import paired_rows
from workers.train.evaluation import held_out

_NAME = re.compile(r"(?P<name>.+_(?P<first>[a-z])(?P<second>[a-z]))\.(?P<part>train|test)\.parquet")
_PARTS = ("train", "test")

Source = tuple[Path, str, float, int]
"""Arguments of `read_stream`."""
# The product's own bounds (workers/files/shards.py): outside, float32 loses a row's direction.
_SHORTEST, _LONGEST = 1e-12, 1e18


class InvalidStream(ValueError):
    """The folder is not a valid stream. The message names the file, the value and what is
    permitted."""


@dataclass(frozen=True)
class Stream:
    """Datasets in learning order, the width of each modality, and remarks."""

    name: str
    datasets: tuple[Dataset, ...]
    widths: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def fewest_rows(self) -> int:
        """Number of training rows of the smallest dataset."""
        return min(len(dataset.training) for dataset in self.datasets)


def read_stream(folder: Path, order: str = "forward", cone: float = 0.0, tasks: int = 1) -> Stream:
    """Read all datasets of the folder. Raises InvalidStream instead of repairing data silently.

    `cone`: see `with_cone`. `tasks`: into how many each dataset is divided, see `by_class`.
    """
    names = _dataset_names(folder)
    datasets, notes, widths = list[Dataset](), list[str](), _Widths()
    for name in arranged(names, order):
        train, test = (_read(folder / f"{name}.{part}.parquet", widths) for part in _PARTS)
        if len(train.rows) < 2:
            raise InvalidStream(f"{train.path}: it has 1 row, at least 2 are needed to train")
        pair = ModalityPair(first=name[-2], second=name[-1])
        for title, training_rows, test_rows in by_class(name, train, test, tasks):
            training, held = paired_rows(training_rows), held_out(test_rows)
            if cone:
                training = with_cone(training, pair, cone)
                held = replace(held, rows=with_cone(held.rows, pair, cone))
            datasets.append(Dataset(title, pair, training, held))
        notes += test.notes
    name = folder.resolve().name + (f"-cone-{cone:g}" if cone else "")
    name += f"-{tasks}-tasks" if tasks > 1 else ""
    return Stream(name, tuple(datasets), widths.by_modality, tuple(notes))


def by_class(
    name: str, train: "_File", test: "_File", tasks: int
) -> Iterator[tuple[str, Rows, Rows]]:
    """The class-incremental form of a dataset: its classes in an order of their own, divided into tasks.

    A task has the training rows of its classes, and the test rows of all classes up to it. Yields names and rows of both.
    Raises InvalidStream for rows without labels, or fewer classes than tasks.
    """
    if tasks == 1:
        yield name, train.rows, test.rows
        return
    classes = np.random.default_rng(0).permutation(np.unique(_labels_of(train)))
    if len(classes) < tasks:
        raise InvalidStream(f"{train.path}: it has {len(classes)} classes for {tasks} tasks")
    ends = np.linspace(0, len(classes), tasks + 1).astype(int)
    for number, (start, end) in enumerate(pairwise(ends), 1):
        training, held = _of_classes(train, classes[start:end]), _of_classes(test, classes[:end])
        yield f"{name}-{number}", training, held


def _of_classes(file: "_File", classes: np.ndarray) -> Rows:
    is_one_B, rows = np.isin(_labels_of(file), classes), file.rows
    if not is_one_B.any():
        raise InvalidStream(f"{file.path}: it has no row of the classes {', '.join(classes)}")
    labels_B = _labels_of(file)[is_one_B]
    return Rows(rows.feature_a_BI[is_one_B], rows.feature_b_BI[is_one_B], labels_B)


def _labels_of(file: "_File") -> np.ndarray:
    if file.rows.label_B is None:
        raise InvalidStream(f"{file.path}: it has no labels, and tasks are made of classes")
    return file.rows.label_B.astype(str)


def with_cone(rows: PairedRows, pair: ModalityPair, cone: float) -> PairedRows:
    """Rows of encoders that add a constant, which has this share of a row's squared length.

    x ← unit(x) + √(c / (1 − c)) u, with one random unit vector u for each modality.
    """

    def added(modality: str, side_NF: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(crc32(modality.encode()))
        constant_1F = unit_rows(torch.randn(1, side_NF.shape[1], generator=random))
        coned_NF: Tensor = unit_rows(side_NF) + (cone / (1 - cone)) ** 0.5 * constant_1F
        return coned_NF

    return replace(
        rows,
        first_NI=added(pair.first, rows.first_NI),
        second_NJ=added(pair.second, rows.second_NJ),
    )


def arranged(names: Sequence[str], order: str) -> list[str]:
    """Return names in an order: `forward` as given, `reversed`, or `shuffled:K` with seed K.

    Raises InvalidStream for any other.
    """
    if order == "forward":
        return list(names)
    if order == "reversed":
        return list(names)[::-1]
    kind, _, seed = order.partition(":")
    if kind != "shuffled" or not seed.isdecimal():
        raise InvalidStream(f"order {order!r}: it must be forward, reversed or shuffled:K")
    return random.Random(int(seed)).sample(names, len(names))  # noqa: S311 (an order, no secret)


def _dataset_names(folder: Path) -> list[str]:
    """Return names sorted by number, then alphabetically; 10 follows 9."""
    if not folder.is_dir():
        raise InvalidStream(f"{folder}: the folder does not exist")
    parts: dict[str, set[str]] = {}
    for path in folder.iterdir():
        if path.name.endswith((".train.parquet", ".test.parquet")) and path.name[0] != ".":
            name, part = _name_and_part(path)
            parts.setdefault(name, set()).add(part)
    if not parts:
        raise InvalidStream(f"{folder}: it has no files NN_name_xy.train.parquet")
    for name, found in parts.items():
        for missing in set(_PARTS) - found:
            raise InvalidStream(f"{folder / name}.{missing}.parquet is missing")
    return sorted(parts, key=_place)


def _place(name: str) -> tuple[float, str]:
    number = re.match(r"\d+", name)
    return (float(number.group()) if number else float("inf"), name)


def _name_and_part(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InvalidStream(
            f"{path}: its name must be NN_name_xy.train.parquet or NN_name_xy.test.parquet, "
            "x and y being lower-case letters, one for each modality"
        )
    if match["first"] == match["second"]:
        raise InvalidStream(
            f"{path}: both its letters are {match['first']!r}, a pair has two different modalities"
        )
    return match["name"], match["part"]


class _Widths:
    """The width of each modality, and the first file that has it."""

    def __init__(self) -> None:
        self.by_modality: dict[str, int] = {}
        self._said_by: dict[str, Path] = {}

    def agree(self, modality: str, width: int, path: Path, column: str) -> None:
        known = self.by_modality.setdefault(modality, width)
        first = self._said_by.setdefault(modality, path)
        if width != known:
            raise InvalidStream(
                f"{path}: {column} has width {width}, but modality {modality!r} has width {known} "
                f"in {first}; a modality has one width"
            )


@dataclass(frozen=True)
class _File:
    path: Path
    rows: Rows
    notes: tuple[str, ...]


def _read(path: Path, widths: _Widths) -> _File:
    table = _table(path)
    if table.num_rows == 0:
        raise InvalidStream(f"{path}: it has no rows, at least 1 is needed")
    letters = path.name.split(".")[-3][-2:]
    features = []
    for column, modality in zip(FEATURES, letters, strict=True):
        values_NF = _features(table.column(column).combine_chunks(), f"{path}: {column}")
        widths.agree(modality, values_NF.shape[1], path, column)
        features.append(values_NF)
    labels, notes = _labels(table, path)
    return _File(path, Rows(features[0], features[1], labels), notes)


def _table(path: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        for column in FEATURES:
            if column not in names:
                raise InvalidStream(f"{path}: column {column!r} is missing, found {names}")
        return file.read(columns=[name for name in (*FEATURES, "label") if name in names])
    except (pa.ArrowException, OSError) as error:
        raise InvalidStream(f"{path}: it cannot be read as Parquet: {error}") from error


def _features(lists: pa.Array, where: str) -> np.ndarray:
    """Return rows as float32 (N × F), all finite and nonzero."""
    kind = lists.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise InvalidStream(f"{where} must hold lists of float16, float32 or float64, is {kind}")
    if lists.null_count or lists.flatten().null_count:
        raise InvalidStream(f"{where} has missing values")
    width = _width(lists, where)
    values_NF = _as_float32(lists.flatten()).reshape(len(lists), width)
    _check_values(values_NF, where)
    return values_NF


def _width(lists: pa.Array, where: str) -> int:
    lengths_N = np.asarray(pc.list_value_length(lists))
    width = int(lengths_N[0])
    odd_N = np.flatnonzero(lengths_N != width)
    if len(odd_N):
        row = int(odd_N[0])
        raise InvalidStream(
            f"{where} has {width} values in row 0 and {lengths_N[row]} in row {row}"
        )
    if width == 0:
        raise InvalidStream(f"{where} has width 0, at least 1 is needed")
    return width


def _as_float32(values: pa.Array) -> np.ndarray:
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected
        return found.astype(np.float32)


def _check_values(values_NF: np.ndarray, where: str) -> None:
    finite_N = np.isfinite(values_NF).all(axis=1)
    if not finite_N.all():
        raise InvalidStream(f"{where} has NaN or infinity in row {int(np.argmin(finite_N))}")
    length_N = np.linalg.norm(values_NF.astype(np.float64), axis=1)
    fits_N = (length_N >= _SHORTEST) & (length_N <= _LONGEST)
    if not fits_N.all():
        row = int(np.argmin(fits_N))
        raise InvalidStream(
            f"{where} has length {length_N[row]:.3g} in row {row}; "
            f"permitted are lengths from {_SHORTEST:g} to {_LONGEST:g}"
        )


def _labels(table: pa.Table, path: Path) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return labels as text, or None unless every row has one, because accuracy needs all
    labels."""
    if "label" not in table.column_names:
        return None, ()
    labels = table.column("label").to_pylist()
    missing = sum(label is None or label == "" for label in labels)
    if missing == 0:
        return np.asarray([str(label) for label in labels], dtype=object), ()
    if missing == len(labels):
        return None, ()
    return None, (f"{path}: {missing} of {len(labels)} rows have no label, so none is used",)
