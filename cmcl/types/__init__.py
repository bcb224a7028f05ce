"""What the service answers, as the client hands it over. Fields that are new are kept, not refused."""

from cmcl.types.access import ApiKey, NewApiKey, Whoami
from cmcl.types.candidates import Agreement, Candidate, Observed
from cmcl.types.collections import Collection, Found, Hit, Item, Query, Searched, Written
from cmcl.types.datasets import Accepted, Dataset, DatasetSummary
from cmcl.types.embeddings import Embeddings, Migrated, ServedModel, Similarity
from cmcl.types.jobs import FINAL_STATES, Approval, Event, Job, JobProgress
from cmcl.types.models import BranchOrigin, Live, Model, Policy, Promotion
from cmcl.types.preflights import Preflight
from cmcl.types.uploads import Presigned, Upload, UploadPart, UploadProgress
from cmcl.types.versions import Certificate, EvaluationRow, Version, VersionSummary
from cmcl.types.webhooks import Delivery, NewWebhook, Webhook

__all__ = [
    "FINAL_STATES",
    "Accepted",
    "Agreement",
    "ApiKey",
    "Approval",
    "BranchOrigin",
    "Candidate",
    "Certificate",
    "Collection",
    "Dataset",
    "DatasetSummary",
    "Delivery",
    "Embeddings",
    "EvaluationRow",
    "Event",
    "Found",
    "Hit",
    "Item",
    "Job",
    "JobProgress",
    "Live",
    "Migrated",
    "Model",
    "NewApiKey",
    "NewWebhook",
    "Observed",
    "Policy",
    "Preflight",
    "Presigned",
    "Promotion",
    "Query",
    "Searched",
    "ServedModel",
    "Similarity",
    "Upload",
    "UploadPart",
    "UploadProgress",
    "Version",
    "VersionSummary",
    "Webhook",
    "Whoami",
    "Written",
]
