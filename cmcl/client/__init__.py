"""A typed client for both servers: the control plane and the embeddings endpoint.

`Client` is synchronous, `AsyncClient` asynchronous. `_async` defines every call, one module per noun;
`make docs` generates `_sync` from it. Unknown fields of a response are kept.
"""

from cmcl.client._async.client import AsyncClient
from cmcl.client._sync.client import Client
from cmcl.client.connection import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL, Retries
from cmcl.client.endpoint import Embeddings, Item, MigratedEmbeddings, Query
from cmcl.client.errors import (
    CmclError,
    FieldError,
    InvalidArgument,
    Json,
    Unreachable,
    WaitTimeout,
    WrongServer,
)
from cmcl.client.files import UploadProgress
from cmcl.client.notebook import candidate_html, job_html, version_html
from cmcl.client.raw_folder import RawFolder
from cmcl.client.wire import Order
from cmcl.contract.api.access import ApiKey, CreatedKey, Quotas, Whoami
from cmcl.contract.api.datasets import (
    AcceptedDataset,
    Dataset,
    DatasetSummary,
    Upload,
)
from cmcl.contract.api.endpoint import (
    Collection,
    SearchHit,
    SearchResults,
    SearchStatus,
    ServedModel,
    StoredItem,
    WriteResult,
)
from cmcl.contract.api.events import CreatedWebhook, Delivery, Event, StreamedEvent, Webhook
from cmcl.contract.api.jobs import (
    FINAL_STATES,
    Approval,
    Attempt,
    AttemptLog,
    Bound,
    Candidate,
    CandidateDataset,
    CapacityChange,
    Job,
    JobPhase,
    JobPhases,
    ProgressHistory,
    ProgressPoint,
    RejectedSummary,
)
from cmcl.contract.api.models import (
    BranchOrigin,
    Encoder,
    JobCounts,
    Model,
    ModelGate,
    ModelSummary,
    NewestVersion,
    SummaryJob,
)
from cmcl.contract.api.versions import (
    Certificate,
    DatasetFigures,
    EvaluationRow,
    FreeShare,
    Live,
    ModalityCapacity,
    ModelCapacity,
    Promotion,
    Version,
    VersionSummary,
)
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from cmcl.contract.responses import NOTEBOOK_HTML

__all__ = [
    "DEFAULT_EMBEDDINGS_URL",
    "DEFAULT_SERVICE_URL",
    "FINAL_STATES",
    "AcceptedDataset",
    "ApiKey",
    "Approval",
    "AsyncClient",
    "Attempt",
    "AttemptLog",
    "Bound",
    "BranchOrigin",
    "Candidate",
    "CandidateDataset",
    "CapacityChange",
    "Certificate",
    "Client",
    "CmclError",
    "Collection",
    "CreatedKey",
    "CreatedWebhook",
    "Dataset",
    "DatasetFigures",
    "DatasetSummary",
    "Delivery",
    "Embeddings",
    "Encoder",
    "EvaluationRow",
    "Event",
    "FieldError",
    "FreeShare",
    "InvalidArgument",
    "Item",
    "Job",
    "JobCounts",
    "JobPhase",
    "JobPhases",
    "Json",
    "Live",
    "MigratedEmbeddings",
    "ModalityCapacity",
    "Model",
    "ModelCapacity",
    "ModelGate",
    "ModelSummary",
    "NewestVersion",
    "Order",
    "PrepareProgress",
    "Progress",
    "ProgressHistory",
    "ProgressPoint",
    "Promotion",
    "Query",
    "Quotas",
    "RawFolder",
    "RejectedSummary",
    "Retries",
    "SearchHit",
    "SearchResults",
    "SearchStatus",
    "ServedModel",
    "StoredItem",
    "StreamedEvent",
    "SummaryJob",
    "Unreachable",
    "Upload",
    "UploadProgress",
    "Version",
    "VersionSummary",
    "WaitTimeout",
    "Webhook",
    "Whoami",
    "WriteResult",
    "WrongServer",
]

# What a notebook shows of these types.
NOTEBOOK_HTML.update({Version: version_html, Candidate: candidate_html, Job: job_html})
