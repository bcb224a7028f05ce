"""The page of `benchmarks.rank_invariance`, in Markdown."""

from collections.abc import Mapping
from typing import Any

_HEAD = """\
# One result whatever the number of ranks

**Question.** How far are heads, loss curve, moments and certificate of 2, 3 and 4 ranks from those of
one, and how many bytes does an update send?

The second dataset of the example stream, for a model that one rank has taught the first: mask and
replay, one modality known and one new; batches that the ranks do not divide; real processes joined by
gloo; float32. Every rank is compared. *streamed*: rows from their shard through the local disk, in lanes;
there is one shard, so all ranks read the same one.

Across *versions* no such promise can be made: heads that differ in the seventh digit have eigenvectors
that differ more where eigenvalues lie close together, and the next dataset is learned in these
(docs/log.md).

"""
_TABLE = """\
| rows | ranks | heads | losses | certificate | moments, relative |
|---|---|---|---|---|---|
"""
_BYTES = """
Largest differences from one rank. The goal is 1e-5 for heads and losses.

## Bytes of an update
*given*: what a rank hands to collectives, by our own count; *formula*: decision 15; *wire*: what the
kernel counts between all ranks, headers included, beside what follows from the formula (each rank's rows
go to all others; a ring reduces with 2 (N − 1) / N of the payload a rank). The formula has ⌈B/N⌉ rows, as
ranks with rows in memory have; of streamed rows a rank's lanes may have one more in some batches, and all
ranks send as many as the longest. The mask blocks what holds 99.99 % of earlier scores, so that there is
something that does not travel.

| rows | ranks | free entries | given | formula | wire | from the formula | ratio |
|---|---|---|---|---|---|---|---|
"""


def markdown(document: Mapping[str, Any]) -> str:
    """Question, result, machine, configuration."""
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
