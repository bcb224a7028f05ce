"""Markdown page of `benchmarks.scale`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import listed, table
from benchmarks.scaling.forecast import BATCH
from benchmarks.scaling.model import TERMS
from benchmarks.scaling.rates import SOURCES

_QUESTION = (
    "Where does the time of an update go, on one rank and on many? Does a model with separately "
    "measured constants predict measured updates? What does it predict for clusters?"
)
_MODEL = """\
Global batch B, N ranks with L = B / N rows each; E width of the embeddings, I width of a head's
inputs.

| term | meaning |
|---|---|
| products | heads: 2 · 2 · L·I·E multiply-adds; scores: 1 + 2 times L·B·E with one rank, 2 + 2 times with several |
| passes | softmax of L·B scores (in two directions with several ranks), both heads with their optimizer (2·E·I entries), selection and normalisation of L·(I + E), packing for collectives |
| gather | each rank contributes L·E·4 bytes twice (2 bytes per number in bfloat16), L·16 of keys, L·12 of log-sums |
| reduce | each rank contributes 4 bytes for each free entry, head by head |
| waiting | three times per update all ranks wait for the slowest; a function of the preceding work in seconds |
| fixed | the interpreter's time, alone or under DDP: an update of almost no data, without collectives and waiting |
| read | streamed rows: reading and 2·L·I·I multiply-adds of rotation, if they take longer than the concurrent update or have no free core |

Once per dataset: one all-reduce of 8 · (I(I+1) + I² + 1) bytes of moments.

With more ranks than cores on this machine, computation is multiplied by N / cores. Products and
passes were measured with min(N, cores) concurrent processes, one after another in a cycle, so that
caches are as in an update; collectives with N ranks that enter them together. gloo runs on the same
cores as the ranks, so no collective is assumed to overlap with computation."""
_CALM = (
    "The machine was shared: constants and updates come from windows in which other processes used "
    "at most 5 % of the cores, or from the calmest windows if there were too few."
)
_FORECAST = (
    "No GPU was measured. The constants are listed below; collectives do not overlap with "
    "computation, and all cards are equally fast. Half of the entries are free, and rows are "
    "streamed in float16. Memory is not modelled: the scores of 65,536 rows do not fit on one card "
    "and need at least four."
)


def markdown(document: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """Render the page."""
    measured, updates, datasets, largest = (f"![{path.stem}]({path.name})" for path in pictures)
    forecast = document["forecast"]
    parts = [
        "# Time model of an update",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## The model\n" + _MODEL,
        "## Constants of this machine\n" + _CALM + "\n\n" + _constants(document),
        "## Prediction and measurement\n" + _verdict(document["updates"]) + f"\n\n{measured}\n",
        _tested(document["updates"]),
        "## Forecast\n" + _FORECAST + "\n\n" + listed({**SOURCES, **document["assumed"]}),
        f"{updates}\n\n{_forecast(forecast['updates'])}",
        "### Largest term by number of GPUs\n"
        + _crossings(forecast["takes over"])
        + f"\n\n{largest}",
        "### Whole datasets\n" + _datasets(forecast["datasets"]) + f"\n\n{datasets}",
    ]
    return "\n\n".join(parts) + "\n"


def _constants(document: Mapping[str, Any]) -> str:
    """Return the largest size of each curve, by number of processes. The JSON has all points."""
    rows = []
    for kind, groups in (("own", document["own"]), ("shared", document["shared"])):
        for processes, constants in groups.items():
            for name, points in constants.items():
                size, seconds = max((float(size), points[size]) for size in points)
                cells = [f"{size:,.3g}" if size < 1 else f"{size:,.0f}", f"{1000 * seconds:.3f}"]
                rows.append([name, processes, *cells, _rate(name, size, seconds, kind)])
    return table(("constant", "processes", "largest size", "ms", "that is"), sorted(rows))


def _rate(name: str, size: float, seconds: float, kind: str) -> str:
    if "product" in name:
        return f"{2 * size * 1024**2 / seconds / 1e9:.0f} GFLOP/s"
    if name == "waiting":
        return f"after {1000 * size:.1f} ms of work"
    if kind == "shared" or name == "read":
        return f"{size / seconds / 2**20:.0f} MiB/s"
    return f"{1e9 * seconds / size:.2f} ns each"


def _verdict(updates: Sequence[Mapping[str, Any]]) -> str:
    errors = sorted(abs(one["error"]) for one in updates)
    within = sum(error <= 0.15 for error in errors)
    return (
        f"{within} of {len(errors)} predictions are within 15 % of the measurement; the median "
        "error is "
        f"{errors[len(errors) // 2]:.0%}, the largest {errors[-1]:.0%}."
    )


def _tested(updates: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in updates:
        terms = [f"{1000 * one['predicted'][term]:.1f}" for term in TERMS]
        total = 1000 * sum(one["predicted"][term] for term in TERMS)
        measured = one["measured"]
        rows.append(
            [
                f"{one['width']}{', streamed' if one['streamed'] else ''}",
                *(str(one[name]) for name in ("batch", "ranks")),
                *terms,
                f"{total:.1f}",
                f"{1000 * measured['median']:.1f}",
                f"{one['error']:+.0%}",
                f"{measured['windows']} ({measured['calm_windows']})",
            ]
        )
    head = ("width", "batch", "ranks", *(f"{term} ms" for term in TERMS))
    return table((*head, "predicted", "measured", "error", "windows (calm)"), rows)


def _forecast(updates: Sequence[Mapping[str, Any]]) -> str:
    found = [one for one in updates if one["batch"] == BATCH and one["ranks"] in (1, 8, 64, 256)]
    rows = [
        [
            *(str(one[name]) for name in ("width", "ranks")),
            *(f"{1000 * one[term]:.2f}" for term in TERMS),
            f"{BATCH / sum(one[term] for term in TERMS):,.0f}",
        ]
        for one in found
    ]
    return table(("width", "GPUs", *(f"{term} ms" for term in TERMS), "rows / s"), rows)


def _crossings(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            str(one["width"]),
            f"{one['batch']:,}",
            ", ".join(f"{term} from {ranks}" for ranks, term in one["largest"]),
        ]
        for one in found
    ]
    return table(("width", "batch", "the largest term, from this number of GPUs"), rows)


def _datasets(datasets: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{one['pairs']:.0e}",
            str(one["width"]),
            str(one["ranks"]),
            *(f"{one[name]:,.1f}" for name in ("reading shards", "summing moments")),
            *(f"{one[name]:,.1f}" for name in ("decompositions", "updates")),
            f"{one['seconds'] / 3600:,.2f}",
        ]
        for one in datasets
        if one["width"] in (1024, 4096) and one["ranks"] in (8, 256)
    ]
    head = ("pairs", "width", "GPUs", "reading shards s", "moments s", "decompositions s")
    return table((*head, "ten passes s", "hours in all"), rows)
