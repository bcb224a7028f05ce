"""Features from the authors' HDF5 caches: `features_storage/{source}_{train|test}_{encoder}.h5`.

One HDF5 dataset for each sample, (modalities × width), not normalised, its rows in the published order of
modalities. Keys: the id, for imagebind followed by `__name__class`. `{source}_class_{encoder}.h5` has the text
feature of each class.

Shapes: N rows, F width of the features, C classes, M modalities.
"""

from pathlib import Path

import h5py
import numpy as np

from benchmarks.paper.families import ChosenEncoder
from benchmarks.paper.features import SourceFeatures, SplitFeatures
from benchmarks.paper.protocol import PUBLISHED_ORDER, STEPS
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import SPLITS, InvalidSource, Split

_NAMES = {"vggsound": "vggsound_s"}
# The text of a row is that of its class, encoded in another batch.
_SAME = 0.999


def read_caches(folder: Path, source: str, chosen: ChosenEncoder) -> SourceFeatures:
    """Read the caches of a source. Raises InvalidSource."""
    found: dict[Split, SplitFeatures] = {}
    order = [name for name in PUBLISHED_ORDER if name in SOURCES[source].modalities]
    classified = any(step.source == source and "accuracy" in step.tests for step in STEPS)
    for split in SPLITS:
        path = _path(folder, source, split, chosen)
        rows = _read(path, (len(order), chosen.width), chosen)
        ids = sorted(rows)
        values_NMF = np.stack([rows[each] for each in ids])
        by_modality = {name: values_NMF[:, place] for place, name in enumerate(order)}
        labels = None
        if classified:
            classes = _path(folder, source, "class", chosen)
            labels = _labels(
                path, ids, by_modality["text"], _read(classes, (chosen.width,), chosen)
            )
        found[split] = SplitFeatures(np.array(ids, dtype=np.str_), labels, by_modality)
    return found


def _path(folder: Path, source: str, part: str, chosen: ChosenEncoder) -> Path:
    path = folder / f"{_NAMES.get(source, source)}_{part}_{chosen.family.name}.h5"
    if not path.is_file():
        raise InvalidSource(f"{source}: the cache {path} is missing")
    return path


def _read(path: Path, shape: tuple[int, ...], chosen: ChosenEncoder) -> dict[str, np.ndarray]:
    """All samples of a file by key, checked for shape and finite values."""
    try:
        with h5py.File(path, "r") as file:
            rows = {
                str(key).removeprefix("tensor(").removesuffix(")"): np.asarray(
                    file[key], np.float32
                )
                for key in file
            }
    except (OSError, ValueError, TypeError) as error:
        raise InvalidSource(
            f"{path} cannot be read as HDF5, it may be half-downloaded: {error}"
        ) from error
    if not rows:
        raise InvalidSource(f"{path} has no samples, at least 1 is needed")
    for key, values in rows.items():
        if values.shape != shape:
            raise InvalidSource(
                f"{path}: sample {key!r} has shape {values.shape}, expected {shape}: features of "
                f"{chosen.family.name} have width {shape[-1]}"
            )
        if not np.isfinite(values).all():
            raise InvalidSource(f"{path}: sample {key!r} has NaN or infinity")
    return rows


def _labels(
    path: Path, ids: list[str], texts_NF: np.ndarray, classes: dict[str, np.ndarray]
) -> np.ndarray:
    """The class of each row: the one with its text.

    Keys of two of three encoders do not name it, and the text of a row is that of its class.
    """
    names = sorted(classes)
    scores_NC = _unit(texts_NF) @ _unit(np.stack([classes[name] for name in names])).T
    best_N = scores_NC.argmax(axis=1)
    worst = int(scores_NC.max(axis=1).argmin())
    if scores_NC[worst, best_N[worst]] < _SAME:
        raise InvalidSource(
            f"{path}: the text of sample {ids[worst]!r} is that of no class: its cosine with "
            f"{names[best_N[worst]]!r} is {scores_NC[worst, best_N[worst]]:.4f}, at least {_SAME} expected"
        )
    return np.array([names[place] for place in best_N], dtype=np.str_)


def _unit(rows_NF: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(rows_NF, axis=1, keepdims=True)
    return np.asarray(rows_NF / np.maximum(lengths, 1e-12))
