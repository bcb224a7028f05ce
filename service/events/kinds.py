"""The kinds of events, and what each means."""

from enum import StrEnum


class EventKind(StrEnum):
    """A kind of event. Those of jobs are named after the state that the job has entered."""

    JOB_QUEUED = "job.queued"
    JOB_VALIDATING = "job.validating"
    JOB_SUBMITTING = "job.submitting"
    JOB_RUNNING = "job.running"
    JOB_GATING = "job.gating"
    JOB_HELD = "job.held"
    JOB_PUBLISHED = "job.published"
    JOB_REJECTED = "job.rejected"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    VERSION_PUBLISHED = "version.published"
    VERSION_PROMOTED = "version.promoted"
    VERSION_ROLLED_BACK = "version.rolled_back"
    VERSION_RETIRED = "version.retired"
    CANDIDATE_BEGAN = "candidate.began"
    CANDIDATE_CHANGED = "candidate.changed"
    CANDIDATE_PROMOTED = "candidate.promoted"
    CANDIDATE_ABORTED = "candidate.aborted"
    MODEL_BRANCHED = "model.branched"
    MODEL_POLICY = "model.policy"
    MODEL_DELETED = "model.deleted"
    DATASET_DELETED = "dataset.deleted"
    PREFLIGHT_DONE = "preflight.done"
    PREFLIGHT_FAILED = "preflight.failed"
    WEBHOOK_TEST = "webhook.test"


MEANINGS: dict[EventKind, str] = {
    EventKind.JOB_QUEUED: "the job waits for its turn: it is new, an attempt was lost, or a user retries it",
    EventKind.JOB_VALIDATING: "its shards are being read and checked",
    EventKind.JOB_SUBMITTING: "an attempt is being submitted to the cluster",
    EventKind.JOB_RUNNING: "the cluster has accepted the attempt",
    EventKind.JOB_GATING: "its candidate is complete and is being judged",
    EventKind.JOB_HELD: "its candidate passed and waits for an approval",
    EventKind.JOB_PUBLISHED: "its candidate is a version of the model",
    EventKind.JOB_REJECTED: "its candidate was rejected by the policy or by a user",
    EventKind.JOB_FAILED: "it has no candidate; a user can retry it",
    EventKind.JOB_CANCELLED: "a user cancelled it",
    EventKind.JOB_CANCEL_REQUESTED: "a user asked to cancel it; it is still running",
    EventKind.VERSION_PUBLISHED: "a new version is stored and live",
    EventKind.VERSION_PROMOTED: "a user made another version live",
    EventKind.VERSION_ROLLED_BACK: "a user returned to the version that was live before",
    EventKind.VERSION_RETIRED: "a user retired a version",
    EventKind.CANDIDATE_BEGAN: "a version is the canary beside the live one",
    EventKind.CANDIDATE_CHANGED: "other callers get the canary, its rule changed, or the live version did; `observed` is what was observed until then",
    EventKind.CANDIDATE_PROMOTED: "the canary is live, by its rule or by a user",
    EventKind.CANDIDATE_ABORTED: "the canary ended without a promotion: a bound was broken, a replica could not load it, another version replaced it, or a user ended it",
    EventKind.MODEL_BRANCHED: "a new model starts from a version of another one",
    EventKind.MODEL_POLICY: "a user changed the policy for candidates",
    EventKind.MODEL_DELETED: "a user deleted the model",
    EventKind.DATASET_DELETED: "a user deleted the dataset",
    EventKind.PREFLIGHT_DONE: "a pre-flight has a result",
    EventKind.PREFLIGHT_FAILED: "a pre-flight ended without a result",
    EventKind.WEBHOOK_TEST: "a user tests a webhook; sent to that webhook alone",
}

# A job ends with these, unless a user retries or approves it.
FINAL = frozenset(
    {
        EventKind.JOB_PUBLISHED,
        EventKind.JOB_REJECTED,
        EventKind.JOB_FAILED,
        EventKind.JOB_CANCELLED,
    }
)

# The default for webhooks: events that call for an action.
WORTH_A_MESSAGE = (
    EventKind.JOB_HELD,
    EventKind.JOB_REJECTED,
    EventKind.JOB_FAILED,
    EventKind.VERSION_PUBLISHED,
    EventKind.VERSION_PROMOTED,
    EventKind.VERSION_ROLLED_BACK,
    EventKind.CANDIDATE_ABORTED,
)
