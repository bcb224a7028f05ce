"""Pictures of a model's memory, capacity, graph and jobs: SVG and tables from plain data.

Every function returns a `Picture`: `svg()`, `html()`, a description in words, and a `table` of its numbers.
The same data gives the same bytes.
"""

from cmcl.pictures.bars import Bound, DriftRow, Share, drift_bars, share_bars
from cmcl.pictures.curves import (
    capacity_curves,
    drift_curve,
    loss_curve,
    optimality_curve,
)
from cmcl.pictures.dumbbells import Optimality, RecallChange, optimality_bars, recall_changes
from cmcl.pictures.graph import Pair, modality_graph
from cmcl.pictures.matrix import forgetting_matrices, forgetting_matrix
from cmcl.pictures.memory import Learned, Memory, MemoryRow
from cmcl.pictures.picture import Picture, Table, stacked
from cmcl.pictures.results import (
    CandidatePictures,
    HistoryPictures,
    VersionPictures,
    candidate_pictures,
    emergent_pairs,
    history_pictures,
    manifest_pictures,
    memory_of,
    version_pictures,
)
from cmcl.pictures.retention import mean_retention, retention_curves
from cmcl.pictures.theme import STYLESHEET
from cmcl.pictures.timeline import (
    Branch,
    ChainVersion,
    duration,
    job_phases,
    version_chain,
)

__all__ = [
    "STYLESHEET",
    "Bound",
    "Branch",
    "CandidatePictures",
    "ChainVersion",
    "DriftRow",
    "HistoryPictures",
    "Learned",
    "Memory",
    "MemoryRow",
    "Optimality",
    "Pair",
    "Picture",
    "RecallChange",
    "Share",
    "Table",
    "VersionPictures",
    "candidate_pictures",
    "capacity_curves",
    "drift_bars",
    "drift_curve",
    "duration",
    "emergent_pairs",
    "forgetting_matrices",
    "forgetting_matrix",
    "history_pictures",
    "job_phases",
    "loss_curve",
    "manifest_pictures",
    "mean_retention",
    "memory_of",
    "modality_graph",
    "optimality_bars",
    "optimality_curve",
    "recall_changes",
    "retention_curves",
    "share_bars",
    "stacked",
    "version_chain",
    "version_pictures",
]
