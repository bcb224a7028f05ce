"""Recall as training measures it, for tests that compare with it."""

from collections.abc import Sequence

import numpy as np
import torch

from workers.model.heads import PairedRows
from workers.train.evaluation import HeldOut, recall


def recall_at_10(features: Sequence[np.ndarray], sides: Sequence[np.ndarray]) -> float:
    """Return recall at 10 of unit embeddings of these features, averaged over both directions."""
    rows = PairedRows(
        *(torch.from_numpy(rows_NI) for rows_NI in features),
        *(torch.from_numpy(_keys(rows_NI)) for rows_NI in features),
    )
    held_out = HeldOut(rows, labels_N=None)
    first_NE, second_NE = (torch.from_numpy(side_NE) for side_NE in sides)
    return recall(first_NE, second_NE, held_out).at_10


def _keys(rows_NI: np.ndarray) -> np.ndarray:
    """A number for each different row."""
    return np.unique(rows_NI, axis=0, return_inverse=True)[1].ravel()
