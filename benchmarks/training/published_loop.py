"""The loop of the published training script (arXiv 2503.14963), with Hugging Face's Trainer.

One step is one batch from a torch DataLoader; the gradient of each head is projected densely on
both sides, then AdamW rescales it. Logging, checkpoints and progress bars are off. Loss as
published: one direction, temperature 1, no normalisation. Needs `make bench-training`'s lock.
Shapes: E width of the embeddings, I of a side.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.training.loops import Sides
from benchmarks.training.timing import WindowTimer

_RATE, _DECAY = 1e-4, 1e-3
_KEPT = 2


class Pairs(Dataset[dict[str, Tensor]]):
    """Pairs by index, for torch's DataLoader."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides

    def __len__(self) -> int:
        return len(self._sides)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"first": self._sides.first_NI[index], "second": self._sides.second_NJ[index]}


class Heads(nn.Module):
    """Two linear heads. Returns the loss, as Trainer requires."""

    def __init__(self, width: int, sides: Sides) -> None:
        super().__init__()
        self.first = nn.Linear(sides.first_NI.shape[1], width)
        self.second = nn.Linear(sides.second_NJ.shape[1], width)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        scores_BB = self.first(first) @ self.second(second).mT
        return {"loss": cross_entropy(scores_BB, torch.arange(len(scores_BB)))}


@dataclass
class ProjectGradients(TrainerCallback):  # type: ignore[misc]
    """Replaces each gradient by G − P_out G P_in, after backward and clipping, before AdamW.

    The projections are random with half of the full rank; their values do not affect the time.
    """

    projectors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    windows: WindowTimer

    @torch.no_grad()
    def on_pre_optimizer_step(self, *_: Any, model: Heads, **__: Any) -> None:
        for head, (outputs_EE, inputs_II) in zip(
            (model.first, model.second), self.projectors, strict=True
        ):
            gradient_EI = head.weight.grad
            assert gradient_EI is not None
            gradient_EI -= outputs_EE @ gradient_EI @ inputs_II

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the end of an update."""
        self.windows.tick()


@dataclass(frozen=True)
class PublishedLoop:
    """The same rows through Trainer. `folder`: its output folder."""

    sides: Sides
    width: int
    batch: int
    folder: Path

    def run(self, windows: WindowTimer, updates: int) -> None:
        """Do `updates` updates of a new pair of heads."""
        widths = self.sides.first_NI.shape[1], self.sides.second_NJ.shape[1]
        first, second = ((_projection(self.width), _projection(inputs)) for inputs in widths)
        trainer = Trainer(
            model=Heads(self.width, self.sides),
            args=_arguments(self.batch, updates, self.folder),
            train_dataset=Pairs(self.sides),
            callbacks=[ProjectGradients((first, second), windows)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _projection(width: int) -> Tensor:
    turn_II: Tensor = torch.linalg.qr(torch.randn(width, width)).Q
    half_IK = turn_II[:, : width // _KEPT]
    return half_IK @ half_IK.mT


def _arguments(batch: int, updates: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=updates,
        learning_rate=_RATE,
        weight_decay=_DECAY,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
    )
