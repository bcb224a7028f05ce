"""What the measurements of versions mean: a sentence each, which a page shows beside the number."""

MEASURES: dict[str, tuple[str, str]] = {
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
    "optimality": (
        "Optimality",
        "The loss of each earlier dataset beside the lowest that heads of this width can reach on it alone. Far above the lowest and above −1: forgotten. Far above the lowest and near −1: never learned so well.",
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
    "digest": (
        "Digest",
        "A checksum of the file. Every reader verifies it.",
    ),
}
