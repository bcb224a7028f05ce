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

from cmcl.contract.api.jobs import JobState

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
        {JobState.PUBLISHED, JobState.HELD, JobState.REJECTED, JobState.FAILED, JobState.PREPARED}
    ),
    JobState.HELD: frozenset({JobState.GATING, JobState.REJECTED, JobState.CANCELLED}),
    JobState.PUBLISHED: frozenset(),
    JobState.REPORTED: frozenset(),
    JobState.EVALUATED: frozenset(),
    JobState.REJECTED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}

# At most one per model: version t+1 is trained from version t.
IN_FLIGHT = frozenset({JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD})

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
    if target not in LEGAL_MOVES[source]:
        permitted = ", ".join(sorted(LEGAL_MOVES[source])) or "none, it is final"
        raise IllegalMove(f"{source} -> {target}; permitted from {source}: {permitted}")
