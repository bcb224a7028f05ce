"""Pictures of a model's memory, capacity, graph and jobs: SVG and tables from plain data.

Every function returns a `Picture`: `svg()`, `html()`, a description in words, and a `table` of its numbers.
The same data gives the same bytes.
"""

from cmcl.pictures.bars import Bound as Bound
from cmcl.pictures.bars import DriftRow as DriftRow
from cmcl.pictures.bars import Share as Share
from cmcl.pictures.bars import drift_bars as drift_bars
from cmcl.pictures.bars import share_bars as share_bars
from cmcl.pictures.curves import capacity_curves as capacity_curves
from cmcl.pictures.curves import drift_curve as drift_curve
from cmcl.pictures.curves import loss_curve as loss_curve
from cmcl.pictures.curves import optimality_curve as optimality_curve
from cmcl.pictures.dumbbells import Optimality as Optimality
from cmcl.pictures.dumbbells import RecallChange as RecallChange
from cmcl.pictures.dumbbells import optimality_bars as optimality_bars
from cmcl.pictures.dumbbells import recall_changes as recall_changes
from cmcl.pictures.graph import Pair as Pair
from cmcl.pictures.graph import modality_graph as modality_graph
from cmcl.pictures.matrix import forgetting_matrices as forgetting_matrices
from cmcl.pictures.matrix import forgetting_matrix as forgetting_matrix
from cmcl.pictures.memory import Learned as Learned
from cmcl.pictures.memory import Memory as Memory
from cmcl.pictures.memory import MemoryRow as MemoryRow
from cmcl.pictures.picture import Picture as Picture
from cmcl.pictures.picture import Table as Table
from cmcl.pictures.picture import stacked as stacked
from cmcl.pictures.results import CandidatePictures as CandidatePictures
from cmcl.pictures.results import HistoryPictures as HistoryPictures
from cmcl.pictures.results import VersionPictures as VersionPictures
from cmcl.pictures.results import candidate_pictures as candidate_pictures
from cmcl.pictures.results import emergent_pairs as emergent_pairs
from cmcl.pictures.results import history_pictures as history_pictures
from cmcl.pictures.results import manifest_pictures as manifest_pictures
from cmcl.pictures.results import memory_of as memory_of
from cmcl.pictures.results import version_pictures as version_pictures
from cmcl.pictures.retention import mean_retention as mean_retention
from cmcl.pictures.retention import retention_curves as retention_curves
from cmcl.pictures.theme import STYLESHEET as STYLESHEET
from cmcl.pictures.timeline import Branch as Branch
from cmcl.pictures.timeline import ChainVersion as ChainVersion
from cmcl.pictures.timeline import duration as duration
from cmcl.pictures.timeline import job_phases as job_phases
from cmcl.pictures.timeline import version_chain as version_chain
