"""Kinds of events."""

from enum import StrEnum


class EventKind(StrEnum):
    """A kind of event. Those of jobs are named after the state that the job has entered."""

    JOB_QUEUED = "job.queued"
    JOB_PREPARING = "job.preparing"
    JOB_PREPARED = "job.prepared"
    JOB_SUBMITTING = "job.submitting"
    JOB_RUNNING = "job.running"
    JOB_GATING = "job.gating"
    JOB_HELD = "job.held"
    JOB_PUBLISHED = "job.published"
    JOB_REPORTED = "job.reported"
    JOB_EVALUATED = "job.evaluated"
    JOB_REJECTED = "job.rejected"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    VERSION_PUBLISHED = "version.published"
    VERSION_PROMOTED = "version.promoted"
    VERSION_ROLLED_BACK = "version.rolled_back"
    VERSION_RETIRED = "version.retired"
    MODEL_BRANCHED = "model.branched"
    MODEL_GATE = "model.gate"
    MODEL_MODALITY = "model.modality"
    MODEL_DELETED = "model.deleted"
    DATASET_DELETED = "dataset.deleted"
    WEBHOOK_TEST = "webhook.test"
