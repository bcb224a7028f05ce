"""What each kind of event means."""

from cmcl.contract.event import EventKind

MEANINGS: dict[EventKind, str] = {
    EventKind.JOB_QUEUED: "the job is queued: it is new, or it was retried",
    EventKind.JOB_PREPARING: "its rows are read, checked and encoded on the cluster",
    EventKind.JOB_PREPARED: "its rows are ready and it waits for its turn, the first time or after an attempt was lost",
    EventKind.JOB_SUBMITTING: "an attempt is being submitted to the cluster",
    EventKind.JOB_RUNNING: "the cluster has accepted the attempt",
    EventKind.JOB_GATING: "its candidate is complete and is being judged",
    EventKind.JOB_HELD: "its candidate meets the policy and waits for manual approval",
    EventKind.JOB_PUBLISHED: "its candidate was published as a version of the model",
    EventKind.JOB_REPORTED: "it was a dry run, and its report is complete",
    EventKind.JOB_EVALUATED: "its dataset is measured and not learned: with the live version, if there is one, and from now on with every later one",
    EventKind.JOB_REJECTED: "its candidate missed the policy, or was rejected manually",
    EventKind.JOB_FAILED: "it failed without a candidate; it can be retried",
    EventKind.JOB_CANCELLED: "it was cancelled",
    EventKind.JOB_CANCEL_REQUESTED: "its cancellation was requested and is in progress",
    EventKind.VERSION_PUBLISHED: "a new version is stored and live",
    EventKind.VERSION_PROMOTED: "a version was made live",
    EventKind.VERSION_ROLLED_BACK: "the previously live version was made live again",
    EventKind.VERSION_RETIRED: "a version was retired",
    EventKind.CANARY_STARTED: "the canary of a version has started",
    EventKind.CANARY_CHANGED: "shares or bounds of the canary changed, or the live version did; `observed` has the figures so far",
    EventKind.CANARY_PROMOTED: "the canary was made live, by its rule or manually",
    EventKind.CANARY_ABORTED: "the canary ended without promotion: a bound was missed, a replica could not load the version, another version was published, or it was ended manually",
    EventKind.MODEL_BRANCHED: "a model was branched from a version of another one",
    EventKind.MODEL_POLICY: "the policy was changed",
    EventKind.MODEL_MODALITY: "a modality was added",
    EventKind.MODEL_DELETED: "the model was deleted",
    EventKind.DATASET_DELETED: "the dataset was deleted",
    EventKind.WEBHOOK_TEST: "a test message; sent to that webhook only",
}

# A job ends with these, unless a user retries or approves it.
FINAL = frozenset(
    {
        EventKind.JOB_PUBLISHED,
        EventKind.JOB_REPORTED,
        EventKind.JOB_EVALUATED,
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
    EventKind.CANARY_ABORTED,
)
