"""The life of a job: its states, the legal moves between them, and the reasons for failure.

queued ──> preparing ──> prepared ──> submitting ──> running ──> gating ──> published
  ^            │  │         ^  │           │            │         │  ^ └───> rejected, failed
  │            │  │         │  │           │            │         v  │ approved
  │            │  │         │  │           │            │        held┴─────> rejected
  │            ├──│─────────│──┴───────────┴────────────┴─────────┴────────> failed, cancelled
  │            │  └─ a dry run ──> reported             │         │
  │            │            ├── an attempt was lost ────┘         │
  │            │            ├── its parent is no longer the newest version
  │            │            └── of prepared and running, if it is measured only ──> evaluated
  └── retry, by a user ─────────────────────────────────────── failed, rejected
"""

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job. Only the reconciler changes it, except for a user's cancel and retry."""

    QUEUED = "queued"  # waiting; nothing of it runs. A job that reads no rows moves to prepared
    PREPARING = "preparing"  # its rows are read, checked and encoded on the cluster
    PREPARED = "prepared"  # its rows are ready; it waits for the model's earlier jobs
    SUBMITTING = "submitting"  # its attempt has a number and is being submitted to the launcher
    RUNNING = "running"  # the launcher has accepted the attempt
    GATING = "gating"  # its candidate is complete and is being judged
    HELD = "held"  # its candidate passed and waits for manual approval
    PUBLISHED = "published"  # its candidate is a version of the model
    REPORTED = "reported"  # it was a dry run, and its report is complete
    EVALUATED = "evaluated"  # its dataset is measured only, and was measured with the live version
    REJECTED = "rejected"  # its candidate violates the gate; a user can retry
    FAILED = "failed"  # no candidate; a user can retry
    CANCELLED = "cancelled"  # a user stopped it


class FailureReason(StrEnum):
    """Why a job was rejected or has failed."""

    INVALID_DATASET = "invalid_dataset"  # the rows cannot be used; the dataset is quarantined
    ENCODER_MISMATCH = "encoder_mismatch"  # an encoder is not that of the earlier features
    ENCODER_UNAVAILABLE = "encoder_unavailable"  # an encoder does not start, or an item ends it
    PREPARE_DEADLINE = "prepare_deadline"  # its preparation made no progress for too long
    LAUNCHER_REFUSED = "launcher_refused"  # the cluster refused the attempt
    QUEUE_DEADLINE = "queue_deadline"  # the cluster accepted the attempt but never started it
    START_DEADLINE = "start_deadline"  # the attempt never reported progress
    RUN_DEADLINE = "run_deadline"  # the attempt did not end in time
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # each permitted attempt ended without a candidate
    TRAINING_FAILED = "training_failed"  # the attempt reported a permanent failure
    STORE_DAMAGED = "store_damaged"  # stored data of earlier datasets is damaged
    CANNOT_COMBINE = "cannot_combine"  # what it would unlearn or merge is not what it was
    HEADS_TOO_LARGE = "heads_too_large"  # a replica of the endpoint could not hold the version
    INVALID_CANDIDATE = "invalid_candidate"  # the candidate is damaged or does not match its job
    DRIFT_TOO_LARGE = "drift_too_large"  # an earlier dataset's scores moved beyond the bound
    FORGETTING_TOO_LARGE = (
        "forgetting_too_large"  # earlier datasets lost more recall than permitted
    )
    GAIN_TOO_SMALL = "gain_too_small"  # the new dataset gained less recall than asked for
    NOT_MEASURED = "not_measured"  # the gate needs a measurement that the candidate lacks
    REJECTED_BY_HAND = "rejected_by_hand"  # a user rejected it


LEGAL_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PREPARING, JobState.PREPARED, JobState.CANCELLED}),
    JobState.PREPARING: frozenset(
        {JobState.PREPARED, JobState.REPORTED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PREPARED: frozenset(
        {JobState.SUBMITTING, JobState.EVALUATED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.SUBMITTING: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {
            JobState.GATING,
            JobState.EVALUATED,
            JobState.PREPARED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    JobState.GATING: frozenset(
        {
            JobState.PUBLISHED,
            JobState.HELD,
            JobState.REJECTED,
            JobState.FAILED,
            JobState.PREPARED,
        }
    ),
    JobState.HELD: frozenset({JobState.GATING, JobState.REJECTED, JobState.CANCELLED}),
    JobState.PUBLISHED: frozenset(),
    JobState.REPORTED: frozenset(),
    JobState.EVALUATED: frozenset(),
    JobState.REJECTED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}

# Final, except that a user can retry a failed or rejected job.
TERMINAL = frozenset(
    {
        JobState.PUBLISHED,
        JobState.REPORTED,
        JobState.EVALUATED,
        JobState.REJECTED,
        JobState.FAILED,
        JobState.CANCELLED,
    }
)

# At most one per model: version t+1 is trained from version t.
IN_FLIGHT = frozenset(
    {
        JobState.SUBMITTING,
        JobState.RUNNING,
        JobState.GATING,
        JobState.HELD,
    }
)

# Not while gating: that takes milliseconds, and nothing runs that could be stopped.
CANCELLABLE = frozenset(
    {
        JobState.QUEUED,
        JobState.PREPARING,
        JobState.PREPARED,
        JobState.SUBMITTING,
        JobState.RUNNING,
        JobState.HELD,
    }
)


class IllegalMove(Exception):
    """A move that the table does not list: a bug, never a user's mistake."""


def check_move(source: JobState, target: JobState) -> None:
    """Raises IllegalMove unless the table lists the move."""
    if target not in LEGAL_MOVES[source]:
        permitted = ", ".join(sorted(LEGAL_MOVES[source])) or "none, it is final"
        raise IllegalMove(f"{source} -> {target}; permitted from {source}: {permitted}")
