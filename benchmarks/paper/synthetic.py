"""A stand-in for the sources: features at the paper's sizes, widths and lengths, without media.

An item is a vector of concepts, drawn around its text. What makes real sources hard to learn one after another is in it:

- Each modality shows some of the concepts. What only one side of a pair shows is noise to this pair, and may be what
  another pair agrees in.
- Each source varies in directions of its own, most in few of them, around a mean of its own.
- Encoders see concepts inexactly, add noise with a decaying spectrum, and put features into a cone.

The strengths below were set by what `untrained` and `joint` reach; of the other methods, vanilla had been seen once.
Figures compare methods on this stand-in, and say nothing about real encoders.

Shapes: N rows, C texts, F width of the features, H concepts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.paper import families, protocol
from benchmarks.paper.families import ChosenEncoder, length_of
from benchmarks.paper.features import SourceFeatures, SplitFeatures, write_features
from benchmarks.paper.gather import FeatureFile, described
from benchmarks.paper.protocol import MEDIA, STEPS
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import SPLITS, Split

PREFIX = "synthetic-"
_CONCEPTS = 64
# Share of the concepts that a modality shows, and of their variance that its map has in common with the others.
_SHOWN, _COMMON = 0.6, 0.8
# Standard deviations, relative to that of texts: of items around their text, of what an encoder sees around the item.
_WITHIN, _SEEN = 0.7, 0.7
# Lengths relative to that of texts: of an encoder's noise, and of the mean of its features.
_NOISE, _MEAN = 1.0, 0.5
# A dataset has two of the largest batches at least.
_FEWEST = 256


@dataclass(frozen=True)
class Size:
    """Rows of a source. `texts`: different ones; where there are classes, their number."""

    train: int
    test: int
    texts: int


# UCF101's split and TVL's are assumed: only their totals, 13,320 and 43,741, are known.
SIZES: Mapping[str, Size] = {
    "ucf101": Size(10_000, 3_320, 101),
    "esc50": Size(1_600, 400, 50),
    "nyudv2": Size(47_584, 654, 28),
    "clotho": Size(2_893, 1_045, 3_938),
    "vggsound": Size(10_001, 2_001, 309),
    "tvl": Size(43_300, 441, 20_000),
    "llvip": Size(12_025, 3_463, 1),
}


def write_synthetic(
    folder: Path, chosen: ChosenEncoder, sources: Sequence[str], share: float, seed: int
) -> list[FeatureFile]:
    """Write features of sources with this share of their rows, and return the files.

    Everything is drawn from the seed: encoders, sources and rows.
    """
    read = b"".join(
        Path(each).read_bytes() for each in (__file__, families.__file__, protocol.__file__)
    )
    code = hashlib.sha256(read).hexdigest()[:8]
    place = folder / f"{chosen.family.name}-{chosen.width}-{share:g}-{seed}-{code}"
    files = []
    for name in sources:
        path = place / f"{name}.npz"
        if not path.is_file():
            write_features(path, _features(name, chosen, share, seed))
        files.append(described(name, path))
    return files


def _scaled(rows: int, share: float) -> int:
    return max(min(rows, _FEWEST), round(share * rows))


def _draws(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *"/".join(names).encode()])


def _features(name: str, chosen: ChosenEncoder, share: float, seed: int) -> SourceFeatures:
    size, source, draws = SIZES[name], SOURCES[name], _draws(seed, name)
    encoders = {each: _encoder(chosen, each, seed) for each in source.modalities}
    mean_H = draws.standard_normal(_CONCEPTS)
    directions_HH = _decaying(draws, _CONCEPTS)

    def concepts(rows: int) -> np.ndarray:
        """Concepts about their mean, as this source varies (rows × H)."""
        return np.asarray(draws.standard_normal((rows, _CONCEPTS)) @ directions_HH)

    texts_CH = mean_H + concepts(size.texts)
    has_classes = any(step.source == name and "accuracy" in step.tests for step in STEPS)
    found: dict[Split, SplitFeatures] = {}
    for split, count in zip(SPLITS, (size.train, size.test), strict=True):
        rows = _scaled(count, share)
        kind_N = draws.integers(size.texts, size=rows)
        items_NH = texts_CH[kind_N] + _WITHIN * concepts(rows)
        by_modality = {}
        for modality, encoder in encoders.items():
            if modality == "text":
                # Equal texts have equal features, in both splits.
                features_CF = encoder(texts_CH, _draws(seed, name, "texts"))
                by_modality[modality] = features_CF[kind_N]
            else:
                by_modality[modality] = encoder(items_NH + _SEEN * concepts(rows), draws)
        labels_N = np.array([f"{kind:05d}" for kind in kind_N]) if has_classes else None
        ids_N = np.array([f"{row:06d}" for row in range(rows)])
        found[split] = SplitFeatures(ids_N, labels_N, by_modality)
    return found


@dataclass(frozen=True)
class _Encoder:
    """The stand-in of one modality's encoder. `length`: of its features."""

    map_HF: np.ndarray
    noise_FF: np.ndarray
    mean_F: np.ndarray
    length: float

    def __call__(self, concepts_NH: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Features (N × F) of concepts."""
        noise_NF = draws.standard_normal((len(concepts_NH), len(self.mean_F))) @ self.noise_FF
        rows_NF = concepts_NH @ self.map_HF + noise_NF + self.mean_F
        lengths_N1 = np.linalg.norm(rows_NF, axis=1, keepdims=True)
        return np.asarray(self.length * rows_NF / lengths_N1, np.float32)


@lru_cache(maxsize=len(MEDIA))
def _encoder(chosen: ChosenEncoder, modality: str, seed: int) -> _Encoder:
    shape, own = (_CONCEPTS, chosen.width), _draws(seed, "encoder", modality)
    common_HF = _draws(seed, "encoder").standard_normal(shape)
    map_HF = np.sqrt(_COMMON) * common_HF + np.sqrt(1 - _COMMON) * own.standard_normal(shape)
    map_HF *= own.random((_CONCEPTS, 1)) < _SHOWN
    # Root mean square of a number of a feature that shows a text.
    size = np.sqrt(_SHOWN * _CONCEPTS)
    return _Encoder(
        map_HF,
        _NOISE * size * _decaying(own, chosen.width),
        _MEAN * size * own.standard_normal(chosen.width),
        length_of(chosen.family.name, modality),
    )


def _decaying(draws: np.random.Generator, width: int) -> np.ndarray:
    """A root of a covariance (width × width): random axes, variances that fall like 1 / number, 1 in the mean."""
    axes, _ = np.linalg.qr(draws.standard_normal((width, width)))
    variances = 1 / np.arange(1, width + 1)
    return np.asarray(np.sqrt(variances / variances.mean())[:, None] * axes.T)
