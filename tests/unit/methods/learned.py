"""Models that have learned small datasets with the product's code."""

import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.method import TrainingContext
from workers.methods.preserve import Preserve
from workers.model.heads import PairedRows
from workers.model.pair import PairInEigenCoordinates
from workers.train.certify import PastDataset
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory

IMAGE_TEXT = ModalityPair(first="image", second="text")
AUDIO_IMAGE = ModalityPair(first="audio", second="image")
TEXT_AUDIO = ModalityPair(first="text", second="audio")
TRAINING = TrainingSpec(epochs=6, batch_size=32, learning_rate=3e-3)
SPEC = ModelSpec(width=12, modalities={"image": 20, "text": 9, "audio": 14}, training=TRAINING)


def raw_rows(pair: ModalityPair, seed: int, rows: int = 256) -> PairedRows:
    """Pairs that share a latent of rank 6, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 6, generator=generator)
    sides = []
    for modality in pair.modalities:
        mixing = torch.Generator().manual_seed(sum(map(ord, modality)))
        width = SPEC.widths[modality]
        clean = shared @ torch.randn(6, width, generator=mixing)
        sides.append(clean + 0.3 * torch.randn(rows, width, generator=generator) + 1.0)
    keys = torch.arange(rows)
    return PairedRows(sides[0], sides[1], keys, keys)


def learn_one(
    spec: ModelSpec, before: ModelState, pair: ModalityPair, seed: int, *earlier: PastDataset
) -> TrainingResult:
    task = Task(pair, RowsInMemory(raw_rows(pair, seed)), seed, earlier)
    return learn(spec, before, task)


def random_context(pair: ModalityPair, *datasets: ModalityPair) -> TrainingContext:
    """Heads that have learned what their moments say, more or less: true pairs score higher."""
    model_state = initial_state(SPEC)
    for seed, dataset in enumerate(datasets):
        model_state = learn_one(SPEC, model_state, dataset, seed).model_state
    double = {name: weight.double() for name, weight in model_state.heads.weights.items()}
    heads = model_state.heads.replaced(double)
    return TrainingContext(heads, model_state.memory, {}, pair, TRAINING, seed=0)


def moved_pair(context: TrainingContext) -> PairInEigenCoordinates:
    """The pair somewhere on its way, in float64."""
    spaces = Preserve(0.8).update_spaces(context)
    first, second = ((context.heads.weights[m], spaces[m]) for m in context.pair.modalities)
    pair = PairInEigenCoordinates(first, second)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for change in pair.changes:
            change.copy_(0.2 * torch.randn(change.shape, generator=generator, dtype=torch.float64))
    return pair
