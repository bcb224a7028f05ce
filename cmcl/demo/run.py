"""The demo from start to end: start, post, watch, query, compare."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from cmcl.cli.progress import watch_with_bar
from cmcl.client import Client, CmclError, Json
from cmcl.contract.dataset import ShardRef
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Recall, VersionManifest
from cmcl.demo.queries import QueryLoad, QueryReport
from cmcl.demo.raw import RawFailure, RawReport, learn_raw
from cmcl.pictures import Memory, MemoryRow, forgetting_matrices
from cmcl.stack import LocalStack
from cmcl.stack_host import FolderLock, Ports

# --- The stream: a folder with `stream.json` and its Parquet files -------------------------------


@dataclass(frozen=True)
class StreamDataset:
    """A dataset of the stream."""

    name: str
    pair: ModalityPair
    train: Path
    evaluation: Path

    @property
    def shards(self) -> list[ShardRef]:
        return [ShardRef(uri=self.train.as_uri())]

    @property
    def evaluation_shards(self) -> list[ShardRef]:
        return [ShardRef(uri=self.evaluation.as_uri())]


@dataclass(frozen=True)
class Stream:
    """Datasets in order, and the width of each modality's features."""

    folder: Path
    modalities: dict[str, int]
    datasets: list[StreamDataset]

    def probe_rows(self, rows: int, datasets: int | None = None) -> dict[str, list[list[float]]]:
        """Return a few held-out features for queries, of every modality of the first datasets, or of all."""
        probes: dict[str, list[list[float]]] = {}
        for dataset in self.datasets[:datasets]:
            columns = zip(dataset.pair.modalities, ("feature_a", "feature_b"), strict=True)
            for modality, column in columns:
                if modality not in probes:
                    # Not `read_table`, for which pyarrow imports its datasets.
                    with pq.ParquetFile(dataset.evaluation) as file:
                        table = file.read(columns=[column]).slice(0, rows)
                    probes[modality] = table.column(column).to_pylist()
        return probes


def read_stream(folder: Path) -> Stream:
    """Read `stream.json`. Raises FileNotFoundError."""
    folder = folder.resolve()
    document = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    datasets = [
        StreamDataset(
            name=entry["name"],
            pair=ModalityPair.model_validate(entry["pair"]),
            train=folder / entry["train"]["file"],
            evaluation=folder / entry["evaluation"]["file"],
        )
        for entry in document["datasets"]
    ]
    return Stream(folder, document["modalities"], datasets)


# --- Its figures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamFigures:
    """Forgetting matrix of a stream and derived figures, as shares between 0 and 1.

    `at_1[i][j]`: recall of dataset j after version i + 1 (j ≤ i). Backward transfer (BWT) is the
    mean over earlier datasets of recall now minus recall when learned (arXiv 1706.08840).
    """

    names: list[str]
    at_1: list[list[float]]
    at_10: list[list[float]]
    drift: list[list[float]]

    @property
    def max_drift(self) -> float:
        """Return the largest relative drift of any earlier dataset in any version."""
        return max((value for row in self.drift for value in row), default=0.0)

    def memory(self) -> Memory:
        """Return recall at 1 for pictures."""
        none_yet = [None] * len(self.names)
        rows = [
            MemoryRow(index + 1, name, [*row, *none_yet[len(row) :]])
            for index, (name, row) in enumerate(zip(self.names, self.at_1, strict=True))
        ]
        return Memory(self.names, rows)

    def summary(self) -> dict[str, float]:
        """Return the four figures of a method."""
        return {
            "recall_at_1": round(fmean(self.at_1[-1]), 4),
            "recall_at_10": round(fmean(self.at_10[-1]), 4),
            "bwt_recall_at_1": round(backward_transfer(self.at_1), 4),
            "bwt_recall_at_10": round(backward_transfer(self.at_10), 4),
        }


def stream_figures(versions: Sequence[VersionManifest]) -> StreamFigures:
    """Compute the figures of consecutive versions whose datasets have held-out rows."""
    return StreamFigures(
        names=[version.learned[-1].name for version in versions],
        at_1=_matrix(versions, lambda recall: recall.at_1),
        at_10=_matrix(versions, lambda recall: recall.at_10),
        drift=[
            [version.report.drift[old.dataset].since_learned for old in version.learned[:-1]]
            for version in versions
        ],
    )


def draw(models: Mapping[str, StreamFigures], path: Path) -> None:
    """Draw what earlier datasets lost in each model."""
    panels = {name: figures.memory() for name, figures in models.items()}
    path.write_text(forgetting_matrices(panels) + "\n", encoding="utf-8")


def backward_transfer(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean over all but the last dataset of (now − when learned); 0 for one dataset."""
    last = matrix[-1]
    return fmean(last[j] - matrix[j][j] for j in range(len(last) - 1)) if len(last) > 1 else 0.0


def _matrix(
    versions: Sequence[VersionManifest], value: Callable[[Recall], float]
) -> list[list[float]]:
    return [
        [value(version.report.evaluation[old.dataset]) for old in version.learned]
        for version in versions
    ]


def version_table(figures: StreamFigures, seconds_to_live: list[float]) -> Table:
    """Table of versions: recall, backward transfer, drift and time to live."""
    table = Table(
        title="improve: what each version learned, and what the earlier datasets lost",
        caption="R@1: the nearest row has the query's label, or the item of its partner where rows have none; "
        "R@10: a row with the item of its partner is among the ten nearest",
    )
    table.add_column("#")
    table.add_column("dataset", no_wrap=True)
    for heading in ("R@1", "R@10", "BWT R@1", "BWT R@10", "drift", "to live"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(figures.names):
        table.add_row(
            str(index + 1),
            name,
            _percent(figures.at_1[index][index]),
            _percent(figures.at_10[index][index]),
            _points(backward_transfer(figures.at_1[: index + 1])),
            _points(backward_transfer(figures.at_10[: index + 1])),
            f"{max(figures.drift[index], default=0.0):.3f}",
            f"{seconds_to_live[index]:.1f} s",
        )
    return table


def comparison_table(
    models: Mapping[str, StreamFigures], to_live: Mapping[str, Sequence[float]]
) -> Table:
    """Table of the models at the end of the stream, a column for each."""
    table = Table(title="The same stream under both policies and without protection")
    table.add_column("final, mean over datasets")
    for name in models:
        table.add_column(name, justify="right")
    summaries = [figures.summary() for figures in models.values()]
    for label, key in (("R@1", "recall_at_1"), ("R@10", "recall_at_10")):
        table.add_row(label, *(_percent(each[key]) for each in summaries))
    for label, key in (("BWT R@1", "bwt_recall_at_1"), ("BWT R@10", "bwt_recall_at_10")):
        table.add_row(label, *(_points(each[key]) for each in summaries))
    table.add_row(
        "largest drift of old scores", *(f"{each.max_drift:.3f}" for each in models.values())
    )
    table.add_row("seconds to live, median", *(f"{median(to_live[name]):.1f}" for name in models))
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


# --- The demo -------------------------------------------------------------------------------------

# The models that learn the stream side by side, by what each specification says of how it learns.
DEFAULT, UNPROTECTED = "improve", "unprotected"
MODELS: Mapping[str, Mapping[str, str]] = {
    DEFAULT: {"policy": "improve"},
    "preserve": {"policy": "preserve"},
    UNPROTECTED: {"method": "vanilla"},
}
# Marks a folder of the demo, which may be emptied.
_MARK = ".cmcl-demo"
_SWAP_SECONDS = 120.0
# Features of each modality that are queried.
_PROBES = 4


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    stream: Path
    raw: Path
    folder: Path
    ranks: int = 2
    queries_per_second: float = 200.0
    # Encoders of the raw pairs, by the names that `MODALITIES` of `raw.py` binds to.
    encoders: tuple[EncoderSpec, ...] = ()
    plugins: Path | None = None


class DemoError(Exception):
    """The demo cannot continue: a job without a version, or a folder with other files."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo and return the exit code."""
    stream = read_stream(options.stream)
    _empty(options.folder)
    stack = LocalStack(
        options.folder,
        Ports.free(),
        options.ranks,
        allowed_prefixes=(stream.folder.as_uri(),),
        encoders=options.encoders,
        plugins=options.plugins,
        report=lambda line: console.print(line, markup=False, highlight=False),
    )
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        console.print(f"control plane {stack.service_url}, embeddings {stack.embeddings_url}")
        console.print(f"watch it at {stack.page_url}")
        load = _query_load(stack, stream, options.queries_per_second)
        models = _learn_stream(client, stream, load, console)
        raw = _learn_raw(client, options.raw, console)
        queries = load.stop()
    figures = {model.name: stream_figures(model.versions) for model in models}
    to_live = {model.name: model.to_live for model in models}
    picture = options.folder / "forgetting.svg"
    draw(figures, picture)
    console.print(version_table(figures[DEFAULT], to_live[DEFAULT]))
    console.print(comparison_table(figures, to_live))
    for model in models:
        console.print(f"{model.name}: {model.work()}", markup=False, highlight=False)
    _print_queries(console, queries)
    _print_raw(console, raw)
    console.print(f"forgetting matrix: {picture}")
    document = _document(models, queries)
    print(json.dumps({**document, "raw": raw.document()}), flush=True)
    within = all(
        model.bound is None or figures[model.name].max_drift <= model.bound for model in models
    )
    return 0 if within and not queries.failures and not raw.failures else 1


@dataclass
class DemoModel:
    """One of the models that learn the stream, its versions, and the jobs that made them."""

    name: str
    spec: ModelSpec
    versions: list[VersionManifest] = field(default_factory=list)
    # Seconds from each POST to the first response of its version.
    to_live: list[float] = field(default_factory=list)
    # Share of the gradient's square that the mask removed, for each dataset that was trained on rows.
    removed: list[float] = field(default_factory=list)

    @property
    def bound(self) -> float | None:
        """The largest permitted drift."""
        return self.spec.drift_bound

    @property
    def ranks(self) -> int:
        """Ranks that trained the last version."""
        return self.versions[-1].report.ranks

    @property
    def updates(self) -> int:
        """Updates of all versions."""
        return sum(version.report.updates for version in self.versions)

    def work(self) -> str:
        """What its ranks did, in one line."""
        solution = self.versions[-1].report.solution
        if solution:
            rows = sum(line.rows for line in self.versions[-1].learned)
            return (
                f"moments of {rows:,} rows summed over {self.ranks} ranks; {solution.directions} directions solved "
                f"for all datasets together; {self.updates:,} updates of the polish on rows drawn from moments"
            )
        trained = [each for each in self.versions if each.report.protection]
        updates = sum(each.report.updates for each in trained)
        ran = f"DDP on {self.ranks} ranks, {updates:,} updates for {len(trained)} datasets"
        if self.spec.policy is None:
            return f"{ran}, gradients all-reduced; nothing blocked"
        blocked = 100 * fmean(self.removed) if self.removed else 0.0
        return (
            f"{ran}, gradients projected and all-reduced: {blocked:.1f} % of the gradient's square was blocked; "
            f"the first dataset was solved from the moments of {self.versions[0].learned[0].rows:,} rows"
        )

    def document(self) -> Json:
        """Its part of the demo's last line."""
        figures = stream_figures(self.versions)
        return {
            **figures.summary(),
            "max_drift": round(figures.max_drift, 4),
            "ranks": self.ranks,
            "updates": self.updates,
            "seconds_post_to_live": self.to_live,
        }


def _empty(folder: Path) -> None:
    """Empty the folder of an earlier demo. Raises DemoError if it has other files, and StackError if a
    demo is running in it."""
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARK).exists()):
            raise DemoError(
                f"{folder} was not made by an earlier demo and would be emptied; choose another --folder"
            )
        # Fails while a demo is running there.
        FolderLock(folder).release()
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


def _query_load(stack: LocalStack, stream: Stream, rate: float) -> QueryLoad:
    probes = stream.probe_rows(_PROBES, datasets=1)
    return QueryLoad("127.0.0.1", stack.ports.embeddings, DEFAULT, probes, rate)


def _learn_stream(
    client: Client, stream: Stream, load: QueryLoad, console: Console
) -> list[DemoModel]:
    """Post each dataset to one model after the other, in order; all live models are queried throughout."""
    models = [
        DemoModel(name, ModelSpec.model_validate({"modalities": stream.modalities, **learns}))
        for name, learns in MODELS.items()
    ]
    for model in models:
        client.create_model(model.name, model.spec)
    probes = dict[str, list[list[float]]]()
    for version, dataset in enumerate(stream.datasets, start=1):
        known, probes = probes, stream.probe_rows(_PROBES, datasets=version)
        new = {name: rows for name, rows in probes.items() if name not in known}
        for model in models:
            _learn(client, model, dataset, load, console)
            if (version, model.name) == (1, DEFAULT):
                load.start()
            elif new:
                load.add(model.name, new)
    return models


def _learn_raw(client: Client, folder: Path, console: Console) -> RawReport:
    """Learn the raw datasets, and query the model at the same time. Raises DemoError."""
    try:
        return learn_raw(client, folder, console)
    except RawFailure as error:
        raise DemoError(str(error)) from error


def _learn(
    client: Client, model: DemoModel, dataset: StreamDataset, load: QueryLoad, console: Console
) -> None:
    """Post a dataset, and wait until its version answers."""
    posted = time.monotonic()
    accepted = client.add_dataset(
        model.name, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
    )
    title = f"{model.name:<11} {dataset.name:<12} {dataset.pair!s:<12}"
    job = watch_with_bar(client, accepted.job.id, title, console)
    if job.state != "published":
        raise DemoError(f"{dataset.name} ended as {job.state} for {model.name}: {job.message}")
    version = len(model.versions) + 1
    answered = (
        load.wait_for(f"{model.name}@{version}", _SWAP_SECONDS)
        if version > 1
        else _wait_until_live(client, model.name, dataset)
    )
    if answered is None:
        raise DemoError(
            f"version {version} of {model.name} was not live within {_SWAP_SECONDS:g} s"
        )
    model.to_live.append(round(answered - posted, 2))
    model.versions.append(client.version(model.name, version).manifest)
    points = client.progress(job.id).points
    removed = [point.removed_share for point in points if point.removed_share is not None]
    if removed:
        model.removed.append(fmean(removed))


def _wait_until_live(client: Client, model: str, dataset: StreamDataset) -> float | None:
    """Wait until the first version of a model answers. Return the time (time.monotonic), or None."""
    modality = dataset.pair.first
    row = [1.0] * client.model(model).modalities[modality].width
    deadline = time.monotonic() + _SWAP_SECONDS
    while time.monotonic() < deadline:
        with suppress(CmclError):
            client.embed(model, modality, [row])
            return time.monotonic()
        time.sleep(0.05)
    return None


def _print_queries(console: Console, queries: QueryReport) -> None:
    console.print(
        f"queries: {queries.sent} sent, {len(queries.failures)} failed, "
        f"p50 {1000 * queries.percentile(0.5):.1f} ms, p99 {1000 * queries.percentile(0.99):.1f} ms, "
        f"versions seen {sorted(queries.first_seen)}"
    )
    for failure in queries.failures[:5]:
        console.print(f"  failed: {failure}")


def _print_raw(console: Console, raw: RawReport) -> None:
    figures = raw.document()
    console.print(
        f"raw data: {figures['rows']} rows encoded at {figures['encode_rows_per_second']} rows per second, "
        f"{figures['rejected_rows']} left out; {figures['raw_queries']} raw queries, "
        f"{figures['failed_raw_queries']} failed"
    )
    for dataset in raw.datasets:
        for row in dataset.rejected.first if dataset.rejected else ():
            console.print(f"  left out: {row.place}: {row.reason}")
    for failure in raw.failures[:5]:
        console.print(f"  failed: {failure}")


def _document(models: list[DemoModel], queries: QueryReport) -> Json:
    policies = {model.name: model.document() for model in models}
    default, unprotected = policies[DEFAULT], policies[UNPROTECTED]
    figures = ("recall_at_1", "recall_at_10", "bwt_recall_at_1", "bwt_recall_at_10", "max_drift")
    seen = [version.rpartition("@") for version in queries.first_seen]
    return {
        "datasets": len(models[0].versions),
        "versions": len(models[0].versions),
        "queries": queries.sent,
        "failed_queries": len(queries.failures),
        "versions_seen": sorted(int(number) for model, _, number in seen if model == DEFAULT),
        **{name: default[name] for name in (*figures, "seconds_post_to_live")},
        "unprotected": {name: unprotected[name] for name in figures},
        "policies": policies,
        "query_seconds_p50": round(queries.percentile(0.5), 4),
        "query_seconds_p99": round(queries.percentile(0.99), 4),
    }
