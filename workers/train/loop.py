"""The training loop: one dataset, two heads, global batches divided among the ranks.

Every rank computes its share of the loss of the global batch.
Shapes: B rows of the global batch, L of them local, F and G raw widths, E width of the embeddings.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.model import TrainingSpec
from workers.methods.method import Batch, Method, ReplicaGroup, TrainingContext
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import Everywhere, positives, symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates, RotatedFeatures, trained_weight
from workers.nullspace.mask import UpdateSpace
from workers.train.distributed import (
    AsyncGather,
    World,
    all_gather_rows,
    all_reduce_sum,
    data_parallel,
    rank_slice,
)
from workers.train.rows import BatchPlan, LocalBatch, RotatedRows, Transform
from workers.train.run import Run, Tensors, UpdateDone, UpdateStats, part_of

Spaces = Mapping[str, UpdateSpace]

# Enough batches for a mean that is reported with two digits.
_BATCHES_OF_MEAN = 200
# A loss that is not finite makes all later ones so. Checking ten at once takes one collective and one
# synchronisation with the device; after every update, both would slow the update down.
_UPDATES_PER_CHECK = 10
# Adam's ε. An entry of the gradient below it is rounding (typical entries are about 1e-3), and divided
# by its own size it would become a step of the full rate, in a direction that depends on the number of
# ranks. PyTorch's default is 1e-8.
EPSILON = 1e-6


@dataclass(frozen=True)
class TrainedPair:
    """The trained change of each head in its update space, and the last batch's loss."""

    changes: tuple[Tensor, Tensor]
    final_loss: float
    updates: int
    temperature: float


def train_pair(
    method: Method,
    context: TrainingContext,
    spaces: Spaces,
    rows: RotatedRows,
    run: Run,
    saved: Tensors | None = None,
) -> TrainedPair:
    """Train the two heads of the pair on `rows`. The result is the same on all ranks.

    Continuing from `saved` gives the same result as an uninterrupted run. Raises TrainingDiverged, on
    all ranks after the same update, within ten updates of the first loss that is not finite.
    """
    plan = _plan(context)
    total = plan.updates(len(rows))
    training = _Training(method, context, spaces, run)
    if saved is not None:
        training.restore(saved)
        run.watcher.resumed(training.done)
    for batch in rows.batches(plan, run.here, training.done):
        should_log = run.watcher.should_log()
        training.record(should_log)
        training.update(batch, total)
        if training.done < total:
            run.checkpoints.save_if_due(training.done, training.state)
        stats = training.stats() if should_log else None
        run.watcher.update_done(UpdateDone(training.done, total, training.loss, stats))
    assert training.done == total, "an epoch had too few batches, or too many"
    return training.result()


class _Training:
    """The state that changes from update to update."""

    def __init__(self, method: Method, context: TrainingContext, spaces: Spaces, run: Run) -> None:
        self._spec = spec = context.training
        self._here = run.here
        self._pair = _pair(context, spaces).to(run.device)
        self._rule = method.update_rule(context, self._pair)
        recipe = context.recipe
        objective = GlobalLoss(self._pair, spec, run.here, recipe.unit_length).to(run.device)
        heads = (self._pair.first, self._pair.second)
        free = {head.change_EI: head.free_EI.bool() for head in heads}
        self._wrapped = data_parallel(objective, free, run.here)
        self._optimizer = optimizer_for(self._pair, spec.learning_rate, recipe.weight_decay)
        self._average = TailAverage(self._pair.changes, recipe.averaged_share)
        self._group = ReplicaGroup(
            run.here.size,
            partial(rank_slice, here=run.here),
            partial(all_gather_rows, here=run.here),
        )
        self.loss, self.done = torch.zeros((), device=run.device), 0
        self._unchecked: list[Tensor] = []
        self._final_loss = math.nan

    def update(self, batch: LocalBatch, total: int) -> None:
        """One step of the optimizer."""
        self._optimizer.zero_grad(set_to_none=True)
        global_batch = Batch(partial(self._wrapped, batch), batch.everywhere, self._group)
        self.loss = self._rule.backward(global_batch) / self._here.size
        self._optimizer.step()
        self._rule.after_update(self._optimizer.param_groups[0]["lr"])
        self.done += 1
        self._average.after_update(self.done / total)
        self._unchecked.append(self.loss)
        assert len(self._unchecked) <= _UPDATES_PER_CHECK
        if self.done % _UPDATES_PER_CHECK == 0 or self.done == total:
            self._check_losses(total)

    def _check_losses(self, total: int) -> None:
        """Raises TrainingDiverged for the first loss of the latest updates that is not finite."""
        losses = all_reduce_sum(torch.stack(self._unchecked), self._here)
        self._unchecked = []
        for update, loss in enumerate(losses, start=self.done - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of update {update} of {total} is {loss}")
        self._final_loss = losses[-1]

    def _diverged(self, what: str) -> TrainingDiverged:
        spec = self._spec
        return TrainingDiverged(
            f"the training diverged: {what}; create a model with a smaller training.learning_rate "
            f"(now {spec.learning_rate:g}) or a larger training.temperature (now {spec.temperature:g})"
        )

    def record(self, should_log: bool) -> None:
        """Let the next update record what `stats` needs."""
        self._pair.record_gradients(should_log)

    def stats(self) -> UpdateStats:
        """Statistics of the last update."""
        pair = self._pair
        return UpdateStats(pair.gradient_norm(), pair.removed_share(), pair.drift_so_far())

    def result(self) -> TrainedPair:
        """The trained changes. Raises TrainingDiverged if they are not finite."""
        assert not self._unchecked, "a loss was not checked"
        changes = self._average.values()
        # No loss is computed after the last update. All ranks must agree on the outcome, and blocked
        # entries are not reduced, so they could differ.
        odd = torch.stack([(~change_EI.isfinite()).any() for change_EI in changes])
        if any(all_reduce_sum(odd.float(), self._here)):
            raise self._diverged(f"the heads are not finite after the last update, {self.done}")
        return TrainedPair(changes, self._final_loss, self.done, self._spec.temperature)

    def state(self) -> Tensors:
        """All that the next update depends on, equal on all ranks."""
        parts = {
            "heads": {name: value.detach() for name, value in self._parameters().items()},
            "optimizer": optimizer_state(self._optimizer),
            "average": self._average.state(),
            "rule": self._rule.state(),
        }
        named = {f"{part}/{name}": value for part in parts for name, value in parts[part].items()}
        return {"done": torch.tensor(self.done), **named}

    @torch.no_grad()
    def restore(self, saved: Tensors) -> None:
        """Set the state that `state` returned."""
        self.done = int(saved["done"])
        for name, parameter in self._parameters().items():
            parameter.copy_(saved[f"heads/{name}"])
        restore_optimizer(self._optimizer, part_of(saved, "optimizer"))
        self._average.restore(part_of(saved, "average"))
        self._rule.restore(part_of(saved, "rule"))

    def _parameters(self) -> dict[str, nn.Parameter]:
        first, second = self._pair.changes
        return {"first": first, "second": second}


def new_heads(
    context: TrainingContext, spaces: Spaces, changes: tuple[Tensor, Tensor]
) -> ModalityHeads:
    """The parent's heads with these changes, in the original coordinates."""
    weights = context.heads.weights
    return context.heads.replaced(
        {
            modality: trained_weight(weights[modality], change, spaces[modality])
            for modality, change in zip(context.pair.modalities, changes, strict=True)
        }
    )


@torch.no_grad()
def mean_loss(
    context: TrainingContext,
    spaces: Spaces,
    rows: RotatedRows,
    run: Run,
    changes: tuple[Tensor, Tensor],
) -> float:
    """Mean loss with these changes over one epoch, or over the first batches of a long one."""
    pair = _pair(context, spaces).to(run.device)
    for parameter, change_EI in zip(pair.changes, changes, strict=True):
        parameter.copy_(change_EI)
    unit_length = context.recipe.unit_length
    objective = GlobalLoss(pair, context.training, run.here, unit_length).to(run.device)
    with closing(rows.batches(replace(_plan(context), epochs=1), run.here)) as batches:
        losses = [objective(batch) / run.here.size for batch in islice(batches, _BATCHES_OF_MEAN)]
    (mean,) = all_reduce_sum(torch.stack(losses).mean(dim=0, keepdim=True), run.here)
    return mean


def _plan(context: TrainingContext) -> BatchPlan:
    spec = context.training
    return BatchPlan(spec.batch_size, spec.epochs, context.seed)


def _pair(context: TrainingContext, spaces: Spaces) -> PairInEigenCoordinates:
    first, second = (
        (context.heads.weights[modality], spaces[modality]) for modality in context.pair.modalities
    )
    return PairInEigenCoordinates(first, second)


def rotation_of(context: TrainingContext, spaces: Spaces, device: torch.device) -> Transform:
    """The transform from raw rows to the input coordinates of the heads, on the device."""
    first, second = (
        RotatedFeatures.from_space(
            context.heads.conditioning.get(modality),
            context.heads.lifts.get(modality),
            spaces[modality],
            device,
        )
        for modality in context.pair.modalities
    )

    def transform(raw: PairedRows) -> PairedRows:
        rows = raw.to(device)
        return replace(rows, first_NI=first(rows.first_NI), second_NJ=second(rows.second_NJ))

    return transform


class GlobalLoss(nn.Module):
    """InfoNCE of a global batch. Holds the trained parameters: the changes of both heads."""

    def __init__(
        self,
        pair: PairInEigenCoordinates,
        spec: TrainingSpec,
        here: World,
        unit_length: bool = True,
    ) -> None:
        super().__init__()
        self.pair, self._spec, self._here, self._unit_length = pair, spec, here, unit_length

    def forward(self, batch: LocalBatch) -> Tensor:
        """This rank's share of the loss, times the number of ranks: gradients are averaged.

        Gathers are asynchronous: keys and the first embeddings are sent while the second head computes.
        """
        gather = partial(AsyncGather, lengths=batch.lengths, here=self._here)
        rows, is_bfloat16 = batch.rows, self._spec.precision == "bfloat16"
        own_keys = rows.first_keys_N, rows.second_keys_N
        keys = gather(torch.stack(own_keys, dim=1))
        with torch.autocast(rows.first_NI.device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
            first_LE = self._as_scored(self.pair.first_outputs(rows.first_NI))
            first = gather(first_LE.detach())
            second_LE = self._as_scored(self.pair.second(rows.second_NJ))
            second = gather(second_LE.detach())
            positive_LB = positives(*own_keys, *keys.wait().unbind(dim=1))
            assert positive_LB.shape == (len(rows), sum(batch.lengths))
            everywhere = Everywhere(
                first.wait(), second.wait(), lambda rows_LX: gather(rows_LX).wait()
            )
            share = symmetric_info_nce(
                (first_LE, second_LE),
                positive_LB,
                self._spec.temperature,
                everywhere if self._here.size > 1 else None,
            )
        return share * self._here.size

    def _as_scored(self, outputs_LE: Tensor) -> Tensor:
        """At unit length, computed in float32 at least, unless the recipe leaves lengths as they are."""
        if not self._unit_length:
            return outputs_LE
        exact = torch.promote_types(outputs_LE.dtype, torch.float32)
        return unit(outputs_LE.to(exact)).to(outputs_LE.dtype)


def optimizer_for(
    pair: PairInEigenCoordinates, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over the changes of both heads. It is elementwise, so blocked entries stay at zero.

    Weight decay acts on the change of the heads, not on the heads. Fused: 1 ms instead of 7 to 11 for a change of
    1024 × 1024.
    """
    return torch.optim.AdamW(
        pair.changes, lr=learning_rate, weight_decay=weight_decay, eps=EPSILON, fused=True
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimizer, by number of the parameter and name of the buffer."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": value
        for number, buffers in state.items()
        for name, value in buffers.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Set the state that `optimizer_state` returned."""
    buffers: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split("/")
        buffers.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": buffers, "param_groups": groups})


class TailAverage:
    """Mean of the parameters over the last `share` of all updates; 0 means the last iterate.

    The mean over the tail of training generalises better than the last iterate (Polyak and Juditsky
    1992; arXiv 1803.05407) and costs one addition per update. It is linear, so entries that are
    blocked in every iterate are blocked in the mean.
    """

    def __init__(self, parameters: "tuple[nn.Parameter, nn.Parameter]", share: float) -> None:
        self._parameters, self._share, self._count = parameters, share, 0
        self._means = [torch.zeros_like(parameter) for parameter in parameters] if share else []

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Include the parameters. `progress` is the share of all updates that are done."""
        assert 0 < progress <= 1
        if not self._share or progress <= 1 - self._share:
            return
        self._count += 1
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            # Running mean: m ← m + (x − m) / n.
            mean.lerp_(parameter.detach(), 1 / self._count)

    def values(self) -> tuple[Tensor, Tensor]:
        """The mean, or the parameters themselves if nothing was averaged."""
        last = [parameter.detach() for parameter in self._parameters]
        first, second = self._means if self._count else last
        return first, second

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        means = {str(side): mean for side, mean in enumerate(self._means)}
        return {"count": torch.tensor(self._count), **means}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set the state that `state` returned."""
        self._count = int(state["count"])
        for side, mean in enumerate(self._means):
            mean.copy_(state[str(side)])
