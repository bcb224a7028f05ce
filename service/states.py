"""The life of a job: its states, the legal moves between them, and the reasons for failure.

queued ──> validating ──> submitting ──> running ──> gating ──> published
  ^            │               │            │         │  ^ ├───> rejected ──┐
  │            │               │            │         v  │ └───> failed     │ approved by hand
  │            │               │            │        held │                 │
  │            │               │            │         │   └─────────────────┘
  │            ├───────────────┴────────────┴─────────┴────────> failed, cancelled
  ├── an attempt was lost ──────────────────┘           │
  ├── its parent is no longer the newest version ───────┘
  └── retry, by a user ─────────────────────────────────────── failed
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. Only the reconciler moves jobs, except for a user's cancel and retry."""

    QUEUED = "queued"  # waits for its turn; nothing of it runs anywhere
    VALIDATING = "validating"  # its shards are being read and checked
    SUBMITTING = "submitting"  # its attempt has a number and is being handed to the launcher
    RUNNING = "running"  # the launcher has accepted the attempt
    GATING = "gating"  # its candidate is complete and is being judged
    HELD = "held"  # its candidate passed, and waits for somebody's approval
    PUBLISHED = "published"  # its candidate is a version of the model
    REJECTED = "rejected"  # its candidate fell short of the policy; it is kept for a while
    FAILED = "failed"  # no candidate; a user can retry
    CANCELLED = "cancelled"  # a user stopped it


class FailureReason(StrEnum):
    """Why a job was rejected or has failed."""

    INVALID_DATASET = "invalid_dataset"  # the rows cannot be used; the dataset is quarantined
    STORAGE_UNAVAILABLE = "storage_unavailable"  # the shards could not be read in time
    LAUNCHER_REFUSED = "launcher_refused"  # the cluster answered, and did not take the attempt
    QUEUE_DEADLINE = "queue_deadline"  # the cluster took the attempt and never started it
    START_DEADLINE = "start_deadline"  # the attempt never reported progress
    RUN_DEADLINE = "run_deadline"  # the attempt did not end in time
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # each permitted attempt ended without a candidate
    TRAINING_FAILED = "training_failed"  # the attempt says that another one would fail alike
    STORE_DAMAGED = "store_damaged"  # what earlier datasets left is; the new one is not to blame
    HEADS_TOO_LARGE = "heads_too_large"  # a replica of the endpoint could not hold the version
    INVALID_CANDIDATE = "invalid_candidate"  # the candidate is damaged, or answers another question
    DRIFT_TOO_LARGE = "drift_too_large"  # an earlier dataset's scores moved beyond the bound
    FORGETTING_TOO_LARGE = (
        "forgetting_too_large"  # earlier datasets lost more recall than permitted
    )
    GAIN_TOO_SMALL = "gain_too_small"  # the new dataset gained less recall than asked for
    NOT_MEASURED = "not_measured"  # the policy asks for a figure that the candidate does not have
    REJECTED_BY_HAND = "rejected_by_hand"  # somebody looked at it and said no


LEGAL_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.VALIDATING, JobState.CANCELLED}),
    JobState.VALIDATING: frozenset({JobState.SUBMITTING, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUBMITTING: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.GATING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.GATING: frozenset(
        {
            JobState.PUBLISHED,
            JobState.HELD,
            JobState.REJECTED,
            JobState.FAILED,
            JobState.QUEUED,
        }
    ),
    JobState.HELD: frozenset({JobState.GATING, JobState.REJECTED, JobState.CANCELLED}),
    JobState.PUBLISHED: frozenset(),
    JobState.REJECTED: frozenset({JobState.GATING}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}

# Nothing happens to these by itself. A user's retry takes a failed job out again, and an approval
# by hand a rejected one.
TERMINAL = frozenset({JobState.PUBLISHED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED})

# One at a time per model: version t+1 grows from version t.
IN_FLIGHT = frozenset(
    {
        JobState.VALIDATING,
        JobState.SUBMITTING,
        JobState.RUNNING,
        JobState.GATING,
        JobState.HELD,
    }
)

# While judging, the outcome is a matter of milliseconds: there is nothing left to stop.
CANCELLABLE = frozenset(
    {
        JobState.QUEUED,
        JobState.VALIDATING,
        JobState.SUBMITTING,
        JobState.RUNNING,
        JobState.HELD,
    }
)


class IllegalMove(Exception):
    """A move that the table does not list: a mistake in this program, never of a user."""


def check_move(source: JobState, target: JobState) -> None:
    """Raises IllegalMove unless the table lists the move."""
    if target not in LEGAL_MOVES[source]:
        permitted = ", ".join(sorted(LEGAL_MOVES[source])) or "none, it is final"
        raise IllegalMove(f"{source} -> {target}; permitted from {source}: {permitted}")
