"""The optimizer that trains the changes of two heads: elementwise, so that blocked entries stay."""

import torch

from workers.contract.model import TrainingSpec
from workers.train.objective import GlobalLoss

_MOMENTUM = 0.9


def optimizer_for(objective: GlobalLoss, spec: TrainingSpec) -> torch.optim.Optimizer:
    """What the spec names. Decay acts on the change and not on the head, nor on a temperature.

    Fused: 1 ms instead of 7 to 11 for a change of 1024 × 1024.
    """
    groups = [
        {"params": list(objective.pair.changes), "weight_decay": spec.weight_decay},
        {"params": [objective.log_temperature], "weight_decay": 0.0},
    ]
    match spec.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=_MOMENTUM, fused=True)
