"""What does it cost to swap an encoder without encoding stored items again?

`python -m benchmarks.encoder_swap DIR` learns the first datasets of a folder in order, then one more of pairs (old
feature, new feature) for a sample of items. The new features are those of stand-ins for a new encoder: `rotated` is a
random rotation of the old ones, `other` a random nonlinear map to another width, with noise. It prints recall with
vectors that the version before the swap has stored. docs/encoder-swap.md has the guide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.chain import Dataset, learn_one
from benchmarks.command_line import OneLineParser, table
from benchmarks.folder import read_stream
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model.evaluation import HeldOut, recall
from workers.model.heads import ModalityHeads
from workers.model.loss import unit
from workers.model.rows import PairedRows
from workers.train.certify import PastDataset, weights_of
from workers.train.learn import initial_state

# The modality of the new encoder; the folder's own have one letter each.
NEW = "swapped"
_OTHER_WIDTH = 640
_NOISE = 0.02

Encode = Callable[[Tensor], Tensor]


def rotation(width: int) -> Encode:
    """A random rotation of unit features: nothing is lost, and no coordinate is kept."""
    generator = torch.Generator().manual_seed(1)
    turn_II = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return lambda raw_NI: unit(raw_NI.float()) @ turn_II


def other_encoder(width: int) -> Encode:
    """Rectified random projections of unit features with noise: part of what the old encoder sees is lost."""
    generator = torch.Generator().manual_seed(2)
    map_IK = torch.randn(width, _OTHER_WIDTH, generator=generator)

    def encode(raw_NI: Tensor) -> Tensor:
        noise = torch.Generator().manual_seed(len(raw_NI))
        clean_NK = (unit(raw_NI.float()) @ map_IK).relu()
        return clean_NK + _NOISE * torch.randn(clean_NK.shape, generator=noise)

    return encode


@dataclass(frozen=True)
class Swapped:
    """The heads before and after the swap, and the largest drift of an earlier dataset since it was learned."""

    before: ModalityHeads
    after: ModalityHeads
    drift: float


def swap(
    stream: Sequence[Dataset], probe: Dataset, spec: ModelSpec, encode: Encode, rows: int
) -> Swapped:
    """Learn the stream, and then pairs (old, new) of `rows` items of the probe's first modality."""
    state, past = initial_state(spec), tuple[PastDataset, ...]()
    for dataset in stream:
        learned = learn_one(spec, state, dataset, past)
        state = learned.model_state
        then = weights_of(dataset.pair, state.heads)
        past = (*past, PastDataset.held(dataset.name, dataset.pair, learned.moments, then))
    items = probe.training.at(slice(rows))
    pairs = PairedRows(
        items.first_NI, encode(items.first_NI), items.first_keys_N, items.first_keys_N
    )
    pair = ModalityPair(first=probe.pair.first, second=NEW)
    dataset = Dataset("swap", pair, pairs, probe.held_out)
    after = learn_one(spec, state, dataset, past).model_state.heads
    return Swapped(state.heads, after, max(one.drift(after) for one in past))


def measured(probe: Dataset, heads: Swapped, encode: Encode) -> dict[str, float]:
    """Recall on the probe's held-out rows, which the swap has not seen.

    before: the old encoder, before the swap. stored items: partners as queries after the swap, on vectors of items that
    the old encoder stored. new items: the new encoder with partners' vectors that were stored before. report: the new
    encoder with partners, both after the swap: what the version reports of a dataset (new, partner) that is measured
    only. same item: the new encoder's query finds the stored vector of its own item first.
    """
    held, pair = probe.held_out, probe.pair
    items_NI, partners_NJ = held.rows.first_NI, held.rows.second_NJ
    stored_items = heads.before.embed(pair.first, items_NI)
    stored_partners = heads.before.embed(pair.second, partners_NJ)
    new_items = heads.after.embed(NEW, encode(items_NI))
    new_partners = heads.after.embed(pair.second, partners_NJ)
    itself = HeldOut(replace(held.rows, second_keys_N=held.rows.first_keys_N), None)
    return {
        "before": recall(stored_items, stored_partners, held).at_10,
        "stored items": recall(stored_items, new_partners, held).at_10,
        "new items": recall(new_items, stored_partners, held).at_10,
        "report": recall(new_items, new_partners, held).at_10,
        "same item": recall(new_items, stored_items, itself).at_1,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table in per cent."""
    parser = OneLineParser(prog="python -m benchmarks.encoder_swap", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument("--datasets", type=int, default=3, help="how many are learned (default: 3)")
    parser.add_argument("--width", type=int, default=256, help="of the embeddings (default: 256)")
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000], help="of the sample")
    parser.add_argument("--policies", nargs="+", default=["improve", "preserve"])
    options = parser.parse_args(arguments)
    stream = read_stream(options.folder)
    learned, probe = stream.datasets[: options.datasets], stream.datasets[0]
    width = stream.widths[probe.pair.first]
    encoders = {"rotated": (rotation(width), width), "other": (other_encoder(width), _OTHER_WIDTH)}
    lines: list[list[object]] = []
    names: list[str] = []
    for policy in options.policies:
        for name, (encode, new_width) in encoders.items():
            spec = ModelSpec.model_validate(
                {
                    "width": options.width,
                    "modalities": {**stream.widths, NEW: new_width},
                    "policy": policy,
                }
            )
            for rows in options.rows:
                heads = swap(learned, probe, spec, encode, rows)
                found = measured(probe, heads, encode)
                names = list(found)
                shares = (f"{100 * share:.1f}" for share in found.values())
                lines.append([policy, name, rows, *shares, f"{heads.drift:.2f}"])
    print(table(["policy", "encoder", "rows", *names, "drift"], lines))


if __name__ == "__main__":
    main()
