"""Markdown page of `benchmarks.rank_invariance`."""

from collections.abc import Mapping
from typing import Any

_HEAD = """\
# The same result with any number of ranks

**Question.** How much do heads, loss curve, moments and certificate of 2, 3 and 4 ranks differ from
those of one, and how many bytes does an update send?

The second dataset of the example stream, for a model that learned the first on one rank: mask and
replay, one known and one new modality, batch sizes that are not multiples of the number of ranks,
real processes connected by gloo, float32. Every rank is compared. *streamed*: rows come from their
shard through virtual shards on the local disk; there is one shard, so all ranks read the same one.

This does not hold across *versions*: heads that differ in the seventh digit have eigenvectors that
differ more where eigenvalues are close together, and the next dataset is learned in that basis
(docs/log.md).

"""
_TABLE = """\
| rows | ranks | heads | losses | certificate | moments, relative |
|---|---|---|---|---|---|
"""
_BYTES = """
Largest differences from one rank. The goal is 1e-5 for heads and losses.

## Bytes of an update
*given*: bytes that a rank passes to collectives, counted by cmcl; *formula*: decision 15; *wire*:
bytes between all ranks counted by the kernel, including headers, compared with the value that
follows from the formula (each rank's rows go to all others; a ring all-reduce sends 2 (N − 1) / N
of the payload per rank). The formula assumes ⌈B/N⌉ rows, as with rows in memory; with streamed rows
a rank may have one more in some batches, and all ranks send as many as the longest. The mask
protects the directions of 99.99 % of earlier scores, so that a part of the gradient is not sent.

| rows | ranks | free entries | given | formula | wire | from the formula | ratio |
|---|---|---|---|---|---|---|---|
"""


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    result = document["result"]
    gaps = "".join(
        f"| {one['rows']} | {one['ranks']} | {one['heads']:.1e} | {one['losses']:.1e} "
        f"| {one['certificate']:.1e} | {one['moments']:.1e} |\n"
        for one in result
    )
    several = [one for one in result if one["ranks"] > 1]
    return _HEAD + _TABLE + gaps + _BYTES + "".join(map(_bytes, several)) + _listed(document)


def _bytes(one: Mapping[str, Any]) -> str:
    ratio = one["wire"] / one["wire_formula"] if one["wire"] else float("nan")
    return (
        f"| {one['rows']} | {one['ranks']} | {one['free_share']:.1%} | {one['given']:,.0f} "
        f"| {one['formula']:,.0f} | {one['wire']:,.0f} | {one['wire_formula']:,.0f} | {ratio:.3f} |\n"
    )


def _listed(document: Mapping[str, Any]) -> str:
    lines = [
        f"| {name.replace('_', ' ')} | {value} |"
        for part in ("machine", "configuration")
        for name, value in document[part].items()
    ]
    return "\n## Machine and configuration\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"
