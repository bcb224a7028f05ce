"""Pictures of a model's memory, capacity, graph and jobs: SVG and tables from plain data.

Every function returns a `Picture`: `svg()`, `html()`, a description in words, and a `table` of its numbers.
Nothing but the standard library is imported, and the same data gives the same bytes.
"""

from cmcl.pictures.bars import Bound, DriftRow, Share, drift_bars, share_bars
from cmcl.pictures.curves import (
    CapacityCurve,
    LossCurve,
    LossPoint,
    capacity_curves,
    drift_curve,
    loss_curve,
    optimality_curve,
    sparkline,
)
from cmcl.pictures.dumbbells import Optimality, RecallChange, optimality_bars, recall_changes
from cmcl.pictures.graph import Pair, modality_graph
from cmcl.pictures.history import (
    HistoryPictures,
    capacity_picture,
    history_pictures,
    progress_picture,
)
from cmcl.pictures.matrix import forgetting_matrices, forgetting_matrix
from cmcl.pictures.memory import Learned, Memory, MemoryRow
from cmcl.pictures.picture import Picture, Table, stacked
from cmcl.pictures.results import (
    CandidatePictures,
    VersionPictures,
    candidate_pictures,
    emergent_pairs,
    memory_of,
    version_pictures,
)
from cmcl.pictures.retention import mean_retention, retention_curves
from cmcl.pictures.theme import STYLESHEET
from cmcl.pictures.timeline import (
    Branch,
    ChainVersion,
    Phase,
    duration,
    job_phases,
    version_chain,
)

__all__ = [
    "STYLESHEET",
    "Bound",
    "Branch",
    "CandidatePictures",
    "CapacityCurve",
    "ChainVersion",
    "DriftRow",
    "HistoryPictures",
    "Learned",
    "LossCurve",
    "LossPoint",
    "Memory",
    "MemoryRow",
    "Optimality",
    "Pair",
    "Phase",
    "Picture",
    "RecallChange",
    "Share",
    "Table",
    "VersionPictures",
    "candidate_pictures",
    "capacity_curves",
    "capacity_picture",
    "drift_bars",
    "drift_curve",
    "duration",
    "emergent_pairs",
    "forgetting_matrices",
    "forgetting_matrix",
    "history_pictures",
    "job_phases",
    "loss_curve",
    "mean_retention",
    "memory_of",
    "modality_graph",
    "optimality_bars",
    "optimality_curve",
    "progress_picture",
    "recall_changes",
    "retention_curves",
    "share_bars",
    "sparkline",
    "stacked",
    "version_chain",
    "version_pictures",
]
