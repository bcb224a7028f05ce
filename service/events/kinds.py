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
    EventKind.JOB_QUEUED: "the job is queued: it is new, an attempt was lost, or it was retried",
    EventKind.JOB_VALIDATING: "its shards are being validated",
    EventKind.JOB_SUBMITTING: "an attempt is being submitted to the cluster",
    EventKind.JOB_RUNNING: "the cluster has accepted the attempt",
    EventKind.JOB_GATING: "its candidate is complete and is being judged",
    EventKind.JOB_HELD: "its candidate meets the policy and waits for manual approval",
    EventKind.JOB_PUBLISHED: "its candidate was published as a version of the model",
    EventKind.JOB_REJECTED: "its candidate missed the policy, or was rejected manually",
    EventKind.JOB_FAILED: "it failed without a candidate; it can be retried",
    EventKind.JOB_CANCELLED: "it was cancelled",
    EventKind.JOB_CANCEL_REQUESTED: "its cancellation was requested and is in progress",
    EventKind.VERSION_PUBLISHED: "a new version is stored and live",
    EventKind.VERSION_PROMOTED: "a version was made live",
    EventKind.VERSION_ROLLED_BACK: "the previously live version was made live again",
    EventKind.VERSION_RETIRED: "a version was retired",
    EventKind.CANDIDATE_BEGAN: "the canary of a version has started",
    EventKind.CANDIDATE_CHANGED: "shares or bounds of the canary changed, or the live version did; `observed` has the figures so far",
    EventKind.CANDIDATE_PROMOTED: "the canary was made live, by its rule or manually",
    EventKind.CANDIDATE_ABORTED: "the canary ended without promotion: a bound was missed, a replica could not load the version, another version was published, or it was ended manually",
    EventKind.MODEL_BRANCHED: "a model was branched from a version of another one",
    EventKind.MODEL_POLICY: "the policy was changed",
    EventKind.MODEL_DELETED: "the model was deleted",
    EventKind.DATASET_DELETED: "the dataset was deleted",
    EventKind.PREFLIGHT_DONE: "a pre-flight has its result",
    EventKind.PREFLIGHT_FAILED: "a pre-flight failed",
    EventKind.WEBHOOK_TEST: "a test message; sent to that webhook only",
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
