"""Symmetric InfoNCE with several positives.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

import torch
from torch import Tensor


def positives(
    first_keys_L: Tensor, second_keys_L: Tensor, first_keys_B: Tensor, second_keys_B: Tensor
) -> Tensor:
    """Which rows share an item (bool, L × B): the same first or the same second feature.

    Rows with the same caption or label text are positives of each other; as negatives they would
    push apart what is the same.
    """
    return (first_keys_L[:, None] == first_keys_B) | (second_keys_L[:, None] == second_keys_B)


def info_nce(scores_LB: Tensor, positive_LB: Tensor) -> Tensor:
    """Sum over local rows of the mean −log p(positive | row); scores are divided by temperature.

    With one positive a row this is InfoNCE (arXiv 1807.03748); with several, the outer form of
    supervised contrastive learning (arXiv 2004.11362, eq. 2).
    """
    log_share_LB = scores_LB.log_softmax(dim=1)
    target_LB = positive_LB / positive_LB.sum(dim=1, keepdim=True)
    return -(log_share_LB * target_LB).sum()


def symmetric_info_nce(
    local: tuple[Tensor, Tensor],
    everywhere: tuple[Tensor, Tensor],
    positive_LB: Tensor,
    temperature: Tensor | float,
) -> Tensor:
    """Both directions averaged, divided by the rows of the *global* batch.

    Summed over ranks this is the loss of the whole batch in one process.
    """
    (first_LE, second_LE), (first_BE, second_BE) = local, everywhere
    forward_LB = first_LE / temperature @ second_BE.mT
    # Alone, the local rows are the batch, and one product has the scores of both directions.
    alone = first_LE is first_BE and second_LE is second_BE
    backward_LB = forward_LB.mT if alone else second_LE / temperature @ first_BE.mT
    total = info_nce(forward_LB, positive_LB) + info_nce(backward_LB, positive_LB)
    return total / (2 * len(first_BE))


def unit(embedding_BE: Tensor) -> Tensor:
    """Rows at unit length."""
    return torch.nn.functional.normalize(embedding_BE, dim=1)
