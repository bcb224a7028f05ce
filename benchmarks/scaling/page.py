"""The page of `benchmarks.scale`, in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import listed, table
from benchmarks.scaling.cluster import SOURCES
from benchmarks.scaling.forecast import BATCH
from benchmarks.scaling.model import TERMS

_QUESTION = (
    "Where does the time of an update go, on one rank and on many? Does a model whose constants are "
    "measured one by one predict updates that are measured? What does it say of clusters?"
)
_MODEL = """\
Global batch B, N ranks, L = B / N rows of each; E width of the embeddings, I of what a head reads.

| term | what it is |
|---|---|
| products | heads: 2 · 2 · L·I·E multiply-adds; scores: 1 + 2 times L·B·E alone, 2 + 2 times with others |
| passes | softmax of L·B scores (in two directions with others), both heads with their optimizer (2·E·I entries), selecting and unit length of L·(I + E), packing of what travels |
| gather | each rank gives L·E·4 bytes twice (2 bytes a number in bfloat16), L·16 of keys, L·12 of log-sums |
| reduce | each rank gives 4 bytes for each free entry, head by head |
| waiting | three times an update the last rank is waited for; by the seconds of work before |
| fixed | the interpreter's time, alone or under DDP: an update of next to no numbers, less collectives and waiting |
| read | streamed rows: reading and 2·L·I·I multiply-adds of rotation, where they take longer than the update beside them or find no core of their own |

Once for a dataset: one all-reduce of 8 · (I(I+1) + I² + 1) bytes of moments.

On this machine ranks beyond the cores take turns: what a rank computes is multiplied by N / cores.
Products and passes were measured with min(N, cores) processes at once, each once and then the next, so
that caches are as in an update; collectives with N, which come to them at once. gloo takes
the cores that the ranks compute with, so nothing of a collective is taken to be hidden."""
_CALM = (
    "Others used the machine, too: constants and updates are of windows in which others used at most "
    "5 % of the cores, or of the calmest where there were too few."
)
_FORECAST = (
    "No GPU was measured. The constants are these; collectives hide behind nothing, and nobody waits "
    "for a slower card. Half of the entries are free, rows are streamed in float16. Room is not "
    "modelled: the scores of 65,536 rows do not fit into one card, and take from four on."
)


def markdown(document: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """Question, machine, model, test, forecast."""
    measured, updates, datasets, largest = (f"![{path.stem}]({path.name})" for path in pictures)
    forecast = document["forecast"]
    parts = [
        "# A model of time",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## The model\n" + _MODEL,
        "## Constants of this machine\n" + _CALM + "\n\n" + _constants(document),
        "## Prediction and measurement\n" + _verdict(document["updates"]) + f"\n\n{measured}\n",
        _tested(document["updates"]),
        "## Forecast\n" + _FORECAST + "\n\n" + listed({**SOURCES, **document["assumed"]}),
        f"{updates}\n\n{_forecast(forecast['updates'])}",
        "### Who takes over where\n" + _crossings(forecast["takes over"]) + f"\n\n{largest}",
        "### Whole datasets\n" + _datasets(forecast["datasets"]) + f"\n\n{datasets}",
    ]
    return "\n\n".join(parts) + "\n"


def _constants(document: Mapping[str, Any]) -> str:
    """The largest size of each curve, for each number of processes; all points are in the JSON."""
    rows = []
    for kind, groups in (("own", document["own"]), ("shared", document["shared"])):
        for processes, constants in groups.items():
            for name, points in constants.items():
                size, seconds = max((float(size), points[size]) for size in points)
                told = [f"{size:,.3g}" if size < 1 else f"{size:,.0f}", f"{1000 * seconds:.3f}"]
                rows.append([name, processes, *told, _rate(name, size, seconds, kind)])
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
        f"{within} of {len(errors)} predictions lie within 15 % of the measurement; the median error is "
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
    return table(("width", "batch", "the largest term, from so many GPUs on"), rows)


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
