"""Pictures of a model's memory, capacity, graph and jobs, of seven kinds: SVG and tables from plain data.

Every function returns a `Picture`: `svg()`, `html()`, a description in words, and a `table` of its numbers.
The same data gives the same bytes.
"""

from cmcl.pictures.graph import Pair as Pair
from cmcl.pictures.graph import modality_graph as modality_graph
from cmcl.pictures.lines import Line as Line
from cmcl.pictures.lines import lines as lines
from cmcl.pictures.lines import sparkline as sparkline
from cmcl.pictures.matrix import NOTICEABLE as NOTICEABLE
from cmcl.pictures.matrix import Learned as Learned
from cmcl.pictures.matrix import Memory as Memory
from cmcl.pictures.matrix import MemoryRow as MemoryRow
from cmcl.pictures.matrix import forgetting_matrices as forgetting_matrices
from cmcl.pictures.matrix import forgetting_matrix as forgetting_matrix
from cmcl.pictures.picture import Picture as Picture
from cmcl.pictures.picture import Table as Table
from cmcl.pictures.picture import arranged as arranged
from cmcl.pictures.results import CandidatePictures as CandidatePictures
from cmcl.pictures.results import HistoryPictures as HistoryPictures
from cmcl.pictures.results import VersionPictures as VersionPictures
from cmcl.pictures.results import candidate_pictures as candidate_pictures
from cmcl.pictures.results import drift_bars as drift_bars
from cmcl.pictures.results import drift_curve as drift_curve
from cmcl.pictures.results import history_pictures as history_pictures
from cmcl.pictures.results import job_phases as job_phases
from cmcl.pictures.results import manifest_pictures as manifest_pictures
from cmcl.pictures.results import memory_of as memory_of
from cmcl.pictures.results import modality_pairs as modality_pairs
from cmcl.pictures.results import recall_changes as recall_changes
from cmcl.pictures.results import retention_curves as retention_curves
from cmcl.pictures.results import version_pictures as version_pictures
from cmcl.pictures.rows import Bar as Bar
from cmcl.pictures.rows import Mark as Mark
from cmcl.pictures.rows import RecallChange as RecallChange
from cmcl.pictures.rows import bars as bars
from cmcl.pictures.rows import dumbbells as dumbbells
from cmcl.pictures.rows import strip as strip
from cmcl.pictures.scales import duration as duration
from cmcl.pictures.theme import STYLESHEET as STYLESHEET
