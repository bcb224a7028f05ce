"""A typed client for both servers: the control plane and the embeddings endpoint.

`Client` is synchronous, `AsyncClient` asynchronous. `_async` defines every call, one module per noun;
`make docs` generates `_sync` from it. Unknown fields of a response are kept.
"""

from cmcl.client._async.client import AsyncClient as AsyncClient
from cmcl.client._sync.client import Client as Client
from cmcl.client.connection import DEFAULT_EMBEDDINGS_URL as DEFAULT_EMBEDDINGS_URL
from cmcl.client.connection import DEFAULT_SERVICE_URL as DEFAULT_SERVICE_URL
from cmcl.client.connection import Retries as Retries
from cmcl.client.endpoint import Embeddings as Embeddings
from cmcl.client.endpoint import Item as Item
from cmcl.client.endpoint import MigratedEmbeddings as MigratedEmbeddings
from cmcl.client.endpoint import Query as Query
from cmcl.client.errors import CmclError as CmclError
from cmcl.client.errors import FieldError as FieldError
from cmcl.client.errors import InvalidArgument as InvalidArgument
from cmcl.client.errors import Json as Json
from cmcl.client.errors import Unreachable as Unreachable
from cmcl.client.errors import WaitTimeout as WaitTimeout
from cmcl.client.errors import WrongServer as WrongServer
from cmcl.client.files import UploadProgress as UploadProgress
from cmcl.client.notebook import candidate_html, job_html, version_html
from cmcl.client.raw_folder import RawFolder as RawFolder
from cmcl.client.wire import Order as Order
from cmcl.contract.api.access import ApiKey as ApiKey
from cmcl.contract.api.access import CreatedKey as CreatedKey
from cmcl.contract.api.access import Quotas as Quotas
from cmcl.contract.api.access import Whoami as Whoami
from cmcl.contract.api.datasets import AcceptedDataset as AcceptedDataset
from cmcl.contract.api.datasets import Dataset as Dataset
from cmcl.contract.api.datasets import DatasetSummary as DatasetSummary
from cmcl.contract.api.datasets import Upload as Upload
from cmcl.contract.api.endpoint import Collection as Collection
from cmcl.contract.api.endpoint import SearchHit as SearchHit
from cmcl.contract.api.endpoint import SearchResults as SearchResults
from cmcl.contract.api.endpoint import SearchStatus as SearchStatus
from cmcl.contract.api.endpoint import ServedModel as ServedModel
from cmcl.contract.api.endpoint import StoredItem as StoredItem
from cmcl.contract.api.endpoint import WriteResult as WriteResult
from cmcl.contract.api.events import CreatedWebhook as CreatedWebhook
from cmcl.contract.api.events import Delivery as Delivery
from cmcl.contract.api.events import Event as Event
from cmcl.contract.api.events import StreamedEvent as StreamedEvent
from cmcl.contract.api.events import Webhook as Webhook
from cmcl.contract.api.jobs import FINAL_STATES as FINAL_STATES
from cmcl.contract.api.jobs import Approval as Approval
from cmcl.contract.api.jobs import Attempt as Attempt
from cmcl.contract.api.jobs import AttemptLog as AttemptLog
from cmcl.contract.api.jobs import Bound as Bound
from cmcl.contract.api.jobs import Candidate as Candidate
from cmcl.contract.api.jobs import CandidateDataset as CandidateDataset
from cmcl.contract.api.jobs import CapacityChange as CapacityChange
from cmcl.contract.api.jobs import Job as Job
from cmcl.contract.api.jobs import JobPhase as JobPhase
from cmcl.contract.api.jobs import JobPhases as JobPhases
from cmcl.contract.api.jobs import ProgressHistory as ProgressHistory
from cmcl.contract.api.jobs import ProgressPoint as ProgressPoint
from cmcl.contract.api.jobs import RejectedSummary as RejectedSummary
from cmcl.contract.api.models import BranchOrigin as BranchOrigin
from cmcl.contract.api.models import Encoder as Encoder
from cmcl.contract.api.models import JobCounts as JobCounts
from cmcl.contract.api.models import Model as Model
from cmcl.contract.api.models import ModelGate as ModelGate
from cmcl.contract.api.models import ModelSummary as ModelSummary
from cmcl.contract.api.models import NewestVersion as NewestVersion
from cmcl.contract.api.models import QueryDrift as QueryDrift
from cmcl.contract.api.models import SummaryJob as SummaryJob
from cmcl.contract.api.versions import Certificate as Certificate
from cmcl.contract.api.versions import DatasetFigures as DatasetFigures
from cmcl.contract.api.versions import EvaluationRow as EvaluationRow
from cmcl.contract.api.versions import FreeShare as FreeShare
from cmcl.contract.api.versions import Live as Live
from cmcl.contract.api.versions import ModalityCapacity as ModalityCapacity
from cmcl.contract.api.versions import ModelCapacity as ModelCapacity
from cmcl.contract.api.versions import Promotion as Promotion
from cmcl.contract.api.versions import Version as Version
from cmcl.contract.api.versions import VersionSummary as VersionSummary
from cmcl.contract.job import Progress as Progress
from cmcl.contract.prepare import PrepareProgress as PrepareProgress
from cmcl.contract.responses import NOTEBOOK_HTML

# What a notebook shows of these types.
NOTEBOOK_HTML.update({Version: version_html, Candidate: candidate_html, Job: job_html})
