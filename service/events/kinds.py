"""What can happen: the kinds of events, in one place, with what each means."""

from enum import StrEnum


class EventKind(StrEnum):
    """A kind of event. Those of jobs are named after the state that the job is in from then on."""

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
    EventKind.JOB_QUEUED: "a dataset's job waits for its turn: it is new, an attempt of it was "
    "lost, or somebody wants it tried again",
    EventKind.JOB_VALIDATING: "its shards are being read and checked",
    EventKind.JOB_SUBMITTING: "an attempt is being handed to the cluster",
    EventKind.JOB_RUNNING: "the cluster has accepted the attempt",
    EventKind.JOB_GATING: "its candidate is complete and is being judged",
    EventKind.JOB_HELD: "its candidate passed, and waits for somebody's approval",
    EventKind.JOB_PUBLISHED: "its candidate is a version of the model",
    EventKind.JOB_REJECTED: "its candidate fell short of the policy, or somebody said no",
    EventKind.JOB_FAILED: "it has no candidate; it can be tried again",
    EventKind.JOB_CANCELLED: "somebody stopped it",
    EventKind.JOB_CANCEL_REQUESTED: "somebody wants it stopped; it is not yet",
    EventKind.VERSION_PUBLISHED: "a new version is in place, and answers from now on",
    EventKind.VERSION_PROMOTED: "somebody let another version answer",
    EventKind.VERSION_ROLLED_BACK: "somebody went back to the version that answered before",
    EventKind.VERSION_RETIRED: "somebody took a version out of use",
    EventKind.CANDIDATE_BEGAN: "a version is on trial beside the one that answers",
    EventKind.CANDIDATE_CHANGED: "other callers see it, other bounds hold, or it is compared with "
    "another version; `observed` is what was seen until then",
    EventKind.CANDIDATE_PROMOTED: "the version on trial answers from now on, by its rule or by hand",
    EventKind.CANDIDATE_ABORTED: "the trial ended without that: a bound was broken, a replica "
    "could not load it, another version came, or somebody said so",
    EventKind.MODEL_BRANCHED: "a new model starts from a version of another one",
    EventKind.MODEL_POLICY: "somebody changed what a candidate must show",
    EventKind.MODEL_DELETED: "somebody deleted the model",
    EventKind.DATASET_DELETED: "somebody deleted the dataset",
    EventKind.PREFLIGHT_DONE: "what a dataset would meet is known",
    EventKind.PREFLIGHT_FAILED: "a pre-flight has no answer",
    EventKind.WEBHOOK_TEST: "somebody tries a webhook; goes to that webhook alone",
}

# After these a job rests, until somebody takes it out again by hand.
FINAL = frozenset(
    {
        EventKind.JOB_PUBLISHED,
        EventKind.JOB_REJECTED,
        EventKind.JOB_FAILED,
        EventKind.JOB_CANCELLED,
    }
)

# What a webhook is told that does not say what it wants: what somebody would act upon.
WORTH_A_MESSAGE = (
    EventKind.JOB_HELD,
    EventKind.JOB_REJECTED,
    EventKind.JOB_FAILED,
    EventKind.VERSION_PUBLISHED,
    EventKind.VERSION_PROMOTED,
    EventKind.VERSION_ROLLED_BACK,
    EventKind.CANDIDATE_ABORTED,
)
