"""Features of a source by split and modality, on disk, and the steps that are made of them.

Shapes: N rows, F width of the features, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper.protocol import STEPS, Step
from benchmarks.paper.sources.source import SPLITS, InvalidSource, Split
from workers.model.heads import PairedRows, content_keys


@dataclass(frozen=True)
class SplitFeatures:
    """Rows of one split, in the order of their ids. `labels_N`: classes, or None."""

    ids_N: np.ndarray
    labels_N: np.ndarray | None
    by_modality: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids_N)


SourceFeatures = Mapping[Split, SplitFeatures]


def write_features(path: Path, features: SourceFeatures) -> None:
    """Write the features of a source as npz; a file that exists is complete."""
    arrays: dict[str, np.ndarray] = {}
    for split, rows in features.items():
        arrays[f"{split}/ids"] = rows.ids_N
        if rows.labels_N is not None:
            arrays[f"{split}/labels"] = rows.labels_N
        for modality, values_NF in rows.by_modality.items():
            arrays[f"{split}/features/{modality}"] = values_NF
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read_features(path: Path) -> SourceFeatures:
    """Read what `write_features` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found: dict[Split, SplitFeatures] = {}
    for split in SPLITS:
        prefix = f"{split}/features/"
        found[split] = SplitFeatures(
            arrays[f"{split}/ids"],
            arrays.get(f"{split}/labels"),
            {
                name.removeprefix(prefix): values_NF
                for name, values_NF in arrays.items()
                if name.startswith(prefix)
            },
        )
    return found


@dataclass(frozen=True)
class EvaluationRows:
    """Test rows of a step. `texts_CF`, `classes_N`: one text per class, and the class of each row, for Acc.

    `queries`: the side whose rows are classified, 0 or 1; the texts belong to the other one.
    """

    first_NF: Tensor
    second_NF: Tensor
    texts_CF: Tensor | None = None
    classes_N: Tensor | None = None
    queries: int = 1

    def __len__(self) -> int:
        return len(self.first_NF)


@dataclass(frozen=True)
class StepData:
    """Rows of a step: raw features to train on, and to test."""

    step: Step
    training: PairedRows
    test: EvaluationRows


def steps_of(features: Mapping[str, SourceFeatures]) -> list[StepData]:
    """Return the steps of these sources, in the published order. Raises InvalidSource."""
    return [_step(step, features[step.source]) for step in STEPS if step.source in features]


def _step(step: Step, source: SourceFeatures) -> StepData:
    train, test = (_sides(source[split], step) for split in SPLITS)
    first_N, second_N = (torch.from_numpy(content_keys(side_NF)) for side_NF in train)
    training = PairedRows(torch.from_numpy(train[0]), torch.from_numpy(train[1]), first_N, second_N)
    first_NF, second_NF = map(torch.from_numpy, test)
    tested = EvaluationRows(first_NF, second_NF)
    if "accuracy" in step.tests:
        texts_CF, classes_N = _classes(step, source)
        tested = EvaluationRows(
            first_NF, second_NF, texts_CF, classes_N, 1 if step.first == "text" else 0
        )
    return StepData(step, training, tested)


def _sides(rows: SplitFeatures, step: Step) -> tuple[np.ndarray, np.ndarray]:
    first_NF, second_NF = (
        np.ascontiguousarray(rows.by_modality[name], np.float32)
        for name in (step.first, step.second)
    )
    return first_NF, second_NF


def _classes(step: Step, source: SourceFeatures) -> tuple[Tensor, Tensor]:
    """The text feature of each class, and the class of each test row.

    A class has one text, so that the feature is that of any of its rows, as published.
    """
    texts: dict[str, np.ndarray] = {}
    for split in SPLITS:
        rows = source[split]
        if rows.labels_N is None:
            raise InvalidSource(f"{step.source}: its {split} rows have no classes, Acc needs them")
        for label, text_F in zip(rows.labels_N, rows.by_modality["text"], strict=True):
            texts.setdefault(str(label), text_F)
    names = sorted(texts)
    numbers = {name: number for number, name in enumerate(names)}
    labels_N = source["test"].labels_N
    assert labels_N is not None
    texts_CF = torch.from_numpy(np.stack([texts[name] for name in names]).astype(np.float32))
    return texts_CF, torch.tensor([numbers[str(label)] for label in labels_N])
