"""What the page says about states, reasons, numbers and errors: a sentence each, and what to do next."""

from dataclasses import dataclass
from typing import Literal

from cmcl.contract.api.events import EventKind
from cmcl.contract.api.jobs import FailureReason, JobState

Tone = Literal["good", "busy", "wait", "hold", "bad", "quiet"]


@dataclass(frozen=True)
class Saying:
    """A state as the page shows it: a word, its colour and sign, and a sentence."""

    label: str
    tone: Tone
    sentence: str


# Kinds of jobs and versions that are marked.
KINDS: dict[str, Saying] = {
    "unlearn": Saying(
        "unlearns", "quiet", "Its version never saw the dataset: heads are solved without it."
    ),
    "merge": Saying(
        "merges", "quiet", "Its version has also learned the datasets of another model's version."
    ),
}

STATES: dict[str, Saying] = {
    JobState.QUEUED: Saying("queued", "wait", "The job waits; nothing of it runs yet."),
    JobState.PREPARING: Saying(
        "preparing", "busy", "The rows of its dataset are read, checked and encoded on the cluster."
    ),
    JobState.PREPARED: Saying(
        "prepared", "wait", "The rows are ready. The job waits until the model's earlier jobs end."
    ),
    JobState.SUBMITTING: Saying(
        "submitting", "busy", "An attempt is being submitted to the cluster."
    ),
    JobState.RUNNING: Saying("running", "busy", "The cluster trains the dataset."),
    JobState.GATING: Saying("judging", "busy", "The candidate is compared with the model's gate."),
    JobState.HELD: Saying(
        "held", "hold", "The candidate meets the gate and waits until a person approves it."
    ),
    JobState.PUBLISHED: Saying("published", "good", "The candidate is a version of the model."),
    JobState.REPORTED: Saying("reported", "good", "The dry run is complete; nothing was kept."),
    JobState.EVALUATED: Saying(
        "measured",
        "good",
        "The dataset is not learned. It is measured with the live version, if there is one, and with every later one.",
    ),
    JobState.REJECTED: Saying(
        "rejected", "bad", "The candidate is not published. The model is unchanged."
    ),
    JobState.FAILED: Saying("failed", "bad", "There is no candidate. The model is unchanged."),
    JobState.CANCELLED: Saying(
        "cancelled", "quiet", "The job was cancelled. The model is unchanged."
    ),
}

EVENT_TONES: dict[str, Tone] = {
    **{f"job.{state}": saying.tone for state, saying in STATES.items()},
    EventKind.JOB_CANCEL_REQUESTED: "hold",
    EventKind.VERSION_PUBLISHED: "good",
    EventKind.VERSION_PROMOTED: "good",
    EventKind.VERSION_ROLLED_BACK: "hold",
}

# A state has one word wherever the page names it.
EVENT_LABELS: dict[str, str] = {
    **{kind: kind.replace(".", " ").replace("_", " ") for kind in EventKind},
    **{f"job.{state}": f"job {saying.label}" for state, saying in STATES.items()},
}

PHASES: dict[str, str] = {
    "waiting": "The resident ranks are busy with another attempt.",
    "starting": "The processes start and read the parent version.",
    "reading": "Rows are read, and copied to a local disk if they are many.",
    "moments": "Counts and sums of the features are computed, which later protect this dataset.",
    "training": "The two heads are trained; the mask removes what would change earlier scores.",
    "limiting": "The change is shrunk until the drift is within its bound.",
    "certifying": "Drift and recall of earlier datasets are measured.",
    "writing": "The candidate is written to object storage.",
    "done": "The candidate is complete.",
    "planning": "The files are listed and divided into units.",
    "encoding": "Encoders compute the features of raw rows.",
    "finishing": "Held-out rows are set aside and the manifest is written.",
    "reporting": "The report of the dry run is computed.",
}


@dataclass(frozen=True)
class Remedy:
    """Why something ended, and what to do next. `needs_other_data`: a retry would end for the same reason."""

    sentence: str
    next_step: str
    needs_other_data: bool = False


REASONS: dict[str, Remedy] = {
    FailureReason.INVALID_DATASET: Remedy(
        "The rows of the dataset cannot be used.",
        "Correct the rows that the message names and post the dataset again, or permit a larger share of rows to be left out.",
        needs_other_data=True,
    ),
    FailureReason.ENCODER_MISMATCH: Remedy(
        "An encoder is not the one that computed the earlier features of the model.",
        "Post the dataset again with features of the encoder that the model shows, or create a model for the new encoder.",
        needs_other_data=True,
    ),
    FailureReason.ENCODER_UNAVAILABLE: Remedy(
        "An encoder does not start on the cluster.",
        "Ask the operator to check its declaration and the memory of the cluster; then retry the job.",
    ),
    FailureReason.PREPARE_DEADLINE: Remedy(
        "The preparation of the rows made no progress for too long.",
        "Check that the cluster has room for the driver; then retry the job.",
    ),
    FailureReason.LAUNCHER_REJECTED: Remedy(
        "The cluster rejected the attempt.", "Correct what the message names; then retry the job."
    ),
    FailureReason.QUEUE_DEADLINE: Remedy(
        "The cluster accepted the attempt but did not start it in time.",
        "Free resources of the cluster or add nodes; then retry the job.",
    ),
    FailureReason.START_DEADLINE: Remedy(
        "The attempt never reported progress.",
        "Read the log of the attempt; check images and resources; then retry the job.",
    ),
    FailureReason.RUN_DEADLINE: Remedy(
        "The attempt did not end in time.",
        "Add ranks, split the dataset, or raise CMCL_RUN_DEADLINE_SECONDS; then retry the job.",
    ),
    FailureReason.ATTEMPTS_EXHAUSTED: Remedy(
        "Each permitted attempt ended without a candidate.",
        "Read the log of the last attempt; a common cause is too little memory. Then retry the job.",
    ),
    FailureReason.TRAINING_FAILED: Remedy(
        "The attempt reported a failure that another attempt would repeat.",
        "Correct what the message names, and post the dataset again; if it is the specification, to a new model.",
        needs_other_data=True,
    ),
    FailureReason.STORE_DAMAGED: Remedy(
        "Stored data of earlier datasets is damaged.",
        "Ask the operator to restore it: docs/disaster.md of the project has the steps. Then retry the job.",
    ),
    FailureReason.CANNOT_COMBINE: Remedy(
        "An earlier job has changed what this one was to unlearn or merge.",
        "The message says what prevents it. Remove that, then retry the job.",
    ),
    FailureReason.HEADS_TOO_LARGE: Remedy(
        "A replica of the endpoint could not hold the version.",
        "Use a smaller width or fewer modalities, or ask the operator for a larger CMCL_HEADS_BYTES_MAX; then retry the job.",
    ),
    FailureReason.INVALID_CANDIDATE: Remedy(
        "The candidate is damaged or does not match its job.",
        "Retry the job. If it happens again, check the object storage.",
    ),
    FailureReason.DRIFT_TOO_LARGE: Remedy(
        "Scores of an earlier dataset moved further than the bound permits.",
        "Compare the certificate with the bound. If the drift is acceptable, permit a larger one in the gate and retry the job.",
    ),
    FailureReason.FORGETTING_TOO_LARGE: Remedy(
        "Earlier datasets lost more recall than the gate permits.",
        "Look which dataset lost most. If that is acceptable, permit a larger loss in the gate and retry the job.",
    ),
    FailureReason.GAIN_TOO_SMALL: Remedy(
        "The new dataset gained less recall than the gate asks for.",
        "Check the pairs of the dataset and its held-out rows, and the capacity that is left.",
    ),
    FailureReason.NOT_MEASURED: Remedy(
        "The gate needs a measurement that the candidate lacks.",
        "Retry the job if the bound is newer than it; otherwise post the dataset with held-out rows, or remove that bound and retry.",
    ),
    FailureReason.REJECTED_BY_HAND: Remedy(
        "A person rejected the candidate.",
        "Read the reason. A retry learns the dataset again, from the newest version.",
    ),
}

# By the end of a problem's type.
NEXT_STEPS: dict[str, str] = {
    "not-found": "It may have been deleted, or it belongs to another owner. Start from the overview.",
    "forbidden": "Sign in with a key that has the scope, or ask its owner's administrator for one.",
    "unauthorized": "Sign in again.",
    "conflict": "It has changed, or its state does not permit this. Go back, look at it again, and decide again.",
    "precondition-failed": "Another person or program changed it after you opened the page. Go back, reload, and decide again.",
    "invalid-request": "Go back and correct the value.",
    "too-many-requests": "Wait some seconds, then try again.",
    "database-unavailable": "Nothing was changed. The page works again once the database does; try again in a moment.",
    "storage-unavailable": "Nothing was changed. Try again in a moment.",
    "issuer-unavailable": "Try again in a moment, or sign in with a key.",
    "internal-error": "Try again. If it happens again, give the request id to the operator.",
}

EXPLANATIONS: dict[str, tuple[str, str]] = {
    "live": ("Live version", "The version that answers requests at the endpoint."),
    "newest": (
        "Newest version",
        "The last version that was published. The next dataset is learned from it, even if another version is live.",
    ),
    "drift": (
        "Drift",
        "How far the scores of an earlier dataset have moved since it was learned, relative to their size. 0 % means unchanged; 10 % means that the root mean square change is a tenth of the scores.",
    ),
    "recall": (
        "R@1",
        "Share of held-out queries whose first result is a hit, both directions averaged. A hit is the query's own row; a row with an equal item, where items repeat; or one with the same label, where rows have labels. Rows that score the same come before a hit. 100 % is perfect.",
    ),
    "capacity": (
        "Free share",
        "Share of the entries of a head that the next dataset may still change. Near 0 %, new datasets are learned badly.",
    ),
    "rows": ("Rows", "Pairs to train on, without held-out and rejected ones."),
    "held_out": (
        "Held-out rows",
        "Rows that are not trained on. Recall is measured on them with each version.",
    ),
    "rejected": ("Rejected rows", "Rows that were left out, each with a reason."),
    "eta": (
        "Remaining time",
        "Estimated from the rate of the present phase; later phases are not included.",
    ),
    "familiarity": (
        "Familiarity",
        "How much more of the features is in directions of earlier data than of random ones. A low value means that another encoder may have made them.",
    ),
    "loss": (
        "Loss",
        "Contrastive loss of the last batch; lower is better. Values of different datasets do not compare.",
    ),
    "removed_share": (
        "Removed share",
        "Share of the gradient's square that the mask removes, because it would change scores of earlier datasets.",
    ),
    "attempt": (
        "Attempt",
        "A run of the job on the cluster. A lost attempt is repeated from its last checkpoint.",
    ),
    "rate": ("Rows per second", "Rows read in a second, over all ranks."),
    "updates": ("Updates", "Steps of the optimizer."),
    "generation": ("Generation", "The number of promotions of the model so far."),
    "gate": (
        "Gate",
        "The conditions that a candidate must meet to be published. A bound that is not set is not checked.",
    ),
    "encoder": (
        "Encoder",
        "The frozen model that turns raw items into features. Its identity is fixed by the first dataset.",
    ),
    "score": (
        "Score",
        "Cosine of the two vectors, from -1 to 1; 1 means the same direction. Scores of one version compare with each other, not with those of another version.",
    ),
    "revision": ("Revision", "It grows with each write. A search answers from one revision."),
    "owner": ("Owner", "The tenant. A key sees the things of its owner and nothing else."),
    "ranks": ("Ranks", "Processes that share each batch."),
    "mean_recall": (
        "Mean recall",
        "Recall on the held-out rows of each dataset, averaged over the datasets that have some.",
    ),
    "mean_change": (
        "Mean change",
        "Change of R@1 since each earlier dataset was learned, in percentage points, averaged over those with held-out rows. Below 0: forgotten.",
    ),
    "gain": (
        "Gain",
        "R@1 on the new dataset's held-out rows above that of the parent, in percentage points.",
    ),
    "lost_most": (
        "Lost most",
        "The smallest change of R@1 of an earlier dataset since it was learned, in percentage points: above 0, none lost. Changes below half a point are noise of small held-out sets.",
    ),
    "quality": (
        "Loss from moments",
        "The spectral contrastive loss of a dataset over all its rows, scaled so that the version that learned it has −1. Lower is better; 0 is as good as no scores at all.",
    ),
    "lowest_loss": (
        "Lowest loss",
        "The lowest loss that any two heads of this width reach on the dataset alone.",
    ),
    "blocked": (
        "Blocked",
        "Share of the entries of a head that this update could not change, because that would change scores of earlier datasets.",
    ),
    "input_directions": (
        "Directions of the features",
        "Directions that hold most of the energy of the features seen so far. When all are used, every further dataset meets protected ones.",
    ),
    "output_directions": (
        "Directions of the embeddings",
        "Directions of the embeddings that earlier datasets use. Entries are blocked where both kinds of directions are used.",
    ),
    "moments": (
        "Moments",
        "Counts, sums and second moments of the features of a dataset. They are kept instead of its rows.",
    ),
    "forecast": (
        "Forecast",
        "Each further dataset of the modality takes the same part of what is free as the latest four did on average. An order of magnitude.",
    ),
    "datasets_left": (
        "Datasets left",
        "How many more datasets of the modality leave at least 10 % of its head free, by the forecast.",
    ),
    "taken": (
        "Taken by each",
        "The part of what is still free that a dataset of the modality takes, on average of the latest four.",
    ),
    "gap": (
        "Gap to the lowest loss",
        "Mean loss of the earlier datasets above the lowest that heads of this width reach on each of them alone. 0: nothing was given up.",
    ),
    "learned_pair": (
        "Learned pair",
        "Two modalities of which at least one dataset was learned: its rows pair them.",
    ),
    "emergent_pair": (
        "Pair that was never trained",
        "Two modalities that have datasets with a common partner, directly or over several. Their scores have a meaning without a dataset of the pair.",
    ),
    "feature_width": (
        "Width of the features",
        "Numbers of each feature vector of the modality, before its head.",
    ),
    "solved_directions": (
        "Directions",
        "Directions that the heads use, of the width of the embeddings: those in which the two halves of any dataset agree. In the others, the embeddings are zero.",
    ),
    "ridge": (
        "Ridge",
        "Regularization of the whitening, relative to the typical variance of the features. Two halves of each dataset choose it, and count its directions.",
    ),
    "lift": (
        "Lift",
        "Random features that are appended to those of the modality, so that the head is not linear.",
    ),
    "groups": (
        "Groups",
        "Modalities that datasets connect. Between two groups, no score has a meaning.",
    ),
    "shrinkage": (
        "Shrinkage",
        "After training, the change of the heads is made smaller until the drift is within its bound. It costs some of the new dataset's loss.",
    ),
    "temperature": (
        "Temperature",
        "By which scores are divided in the loss; smaller means sharper. At the end of the training.",
    ),
    "digest": ("Digest", "A checksum of the file. Every reader verifies it."),
}

# What the page confirms after a form, by the word in the address.
DONE: dict[str, str] = {
    "session-ended": "The session was ended.",
    "cancelled": "The job is being cancelled.",
    "retried": "The job is queued again.",
    "approved": "The candidate was approved.",
    "rejected": "The candidate was rejected.",
    "sealed": "The dataset was sealed, and its job is queued.",
    "promoted": "The version was promoted. Replicas load it within seconds.",
    "rolled-back": "The model was rolled back. Replicas switch within seconds.",
    "retired": "The version was retired.",
    "model-created": "The model was created. Its first dataset becomes its first version.",
    "dataset-posted": "The dataset was posted. This is its job.",
    "dataset-known": "The same files were posted before. This is their job; no other was started.",
    "key-revoked": "The key was revoked, and its sessions have ended. Replicas of the endpoint refuse it within seconds.",
    "webhook-tested": "A test message is on its way. Its delivery is the first of the list.",
    "webhook-deleted": "The webhook was deleted.",
}

# What each kind of event means.
MEANINGS: dict[EventKind, str] = {
    EventKind.JOB_QUEUED: "the job is queued: it is new, or it was retried",
    EventKind.JOB_PREPARING: "its rows are read, checked and encoded on the cluster",
    EventKind.JOB_PREPARED: "its rows are ready and it waits for its turn, the first time or after an attempt was lost",
    EventKind.JOB_SUBMITTING: "an attempt is being submitted to the cluster",
    EventKind.JOB_RUNNING: "the cluster has accepted the attempt",
    EventKind.JOB_GATING: "its candidate is complete and is being judged",
    EventKind.JOB_HELD: "its candidate meets the gate and waits for manual approval",
    EventKind.JOB_PUBLISHED: "its candidate was published as a version of the model",
    EventKind.JOB_REPORTED: "it was a dry run, and its report is complete",
    EventKind.JOB_EVALUATED: "its dataset is measured and not learned: with the live version, if there is one, and from now on with every later one",
    EventKind.JOB_REJECTED: "its candidate missed the gate, or was rejected manually; it can be retried",
    EventKind.JOB_FAILED: "it failed without a candidate",
    EventKind.JOB_CANCELLED: "it was cancelled",
    EventKind.JOB_CANCEL_REQUESTED: "its cancellation was requested and is in progress",
    EventKind.VERSION_PUBLISHED: "a new version is stored and live",
    EventKind.VERSION_PROMOTED: "a version was made live",
    EventKind.VERSION_ROLLED_BACK: "the previously live version was made live again",
    EventKind.VERSION_RETIRED: "a version was retired",
    EventKind.MODEL_BRANCHED: "a model was branched from a version of another one",
    EventKind.MODEL_GATE: "the gate was changed",
    EventKind.MODEL_MODALITY: "a modality was added",
    EventKind.MODEL_DELETED: "the model was deleted",
    EventKind.DATASET_DELETED: "the dataset was deleted",
    EventKind.WEBHOOK_TEST: "a test message; sent to that webhook only",
}
