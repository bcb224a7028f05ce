"""`cmcl adopt`: vectors of another model's store become features of a modality, and items of a collection.

Reading needs pyarrow, and NumPy or lance for their files. The source is only read.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from cmcl.cli.console import say, stderr
from cmcl.cli.datasets import report_view
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_QUERY_URL,
    DEFAULT_URL,
    AsJson,
    EmbeddingsUrl,
    OfModel,
    Url,
    Yes,
    from_options,
)
from cmcl.cli.progress import duration, follow
from cmcl.client import Client, InvalidArgument, Item, WriteResult
from cmcl.contract.encoder import EncoderIdentity, Media

_KIND = "adopted"
_ROWS_AT_ONCE = 4096
# Seconds of one core for each row and for each byte of its vector, as measured (docs/benchmarks/adopt.md).
_SECONDS_PER_ROW, _SECONDS_PER_BYTE = 0.0002, 1e-7
_VECTOR_COLUMNS = ("vector", "embedding", "feature")


@dataclass(frozen=True)
class Vectors:
    """Vectors of a file or folder: Parquet, Arrow, a table of Lance, or `X.npy` beside `X.ids.npy` or `X.ids.txt`.

    `data`: a dataset of pyarrow. `vector`: the column of vectors; `id` has the ids, and `payload` what else can be stored.
    """

    data: Any
    vector: str
    payload: tuple[str, ...]
    rows: int
    width: int

    @classmethod
    def open(cls, path: Path) -> "Vectors":
        """Open it and find its columns. Raises CommandError, InvalidArgument."""
        if not path.exists():
            raise InvalidArgument(f"no such file or folder: {str(path)!r}")
        try:
            data = _opened(path)
            columns = {field.name: field.type for field in data.schema}
            named = [name for name, kind in columns.items() if _is_vector(kind)]
            vector = next((name for name in _VECTOR_COLUMNS if name in named), None)
            if vector is None and len(named) == 1:
                (vector,) = named
            if vector is None or "id" not in columns:
                listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
                raise CommandError(
                    f"{path}: it needs a column id, and one of vectors: the only list of floats, or "
                    f"{', '.join(_VECTOR_COLUMNS)}; it has {listed}"
                )
            payload = [name for name, kind in columns.items() if _is_plain(kind) and name != "id"]
            first = data.head(1, columns=[vector]).column(0)
        except (ImportError, OSError, ValueError, TypeError) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        rows = data.count_rows()
        if not rows or not first[0].is_valid:
            raise CommandError(f"{path} has no vectors")
        return cls(data, vector, tuple(payload), rows, len(first[0]))

    def batches(self, ids: Any = None) -> Iterator[tuple[list[str], list[list[float]], list[Any]]]:
        """Yield ids, vectors and payloads; of the rows with these ids, if given. Raises CommandError."""
        compute = import_module("pyarrow.compute")
        columns = ["id", self.vector, *self.payload]
        for read in self.data.to_batches(columns=columns, batch_size=_ROWS_AT_ONCE):
            texts = compute.cast(read.column("id"), "string")
            batch = read.set_column(0, "id", texts)
            if ids is not None:
                batch = batch.filter(compute.is_in(texts, value_set=ids))
            names, vectors = batch.column("id").to_pylist(), batch.column(self.vector).to_pylist()
            for name, vector in zip(names, vectors, strict=True):
                if name is None or vector is None or len(vector) != self.width:
                    found = "no vector" if vector is None else f"{len(vector)} numbers"
                    raise CommandError(
                        f"the row with id {name!r} has {found}; each needs an id and {self.width}"
                    )
            yield names, vectors, batch.select(list(self.payload)).to_pylist()

    def by_id(self, where: str, ids: Any = None) -> dict[str, list[float]]:
        """Return the vectors by id; of these ids, if given. Raises CommandError if an id is repeated."""
        found: dict[str, list[float]] = {}
        for names, vectors, _ in self.batches(ids):
            for name, vector in zip(names, vectors, strict=True):
                if name in found:
                    raise CommandError(
                        f"{where} has the id {name!r} more than once; keep one of its vectors"
                    )
                found[name] = vector
        return found


def _opened(path: Path) -> Any:
    if path.suffix == ".lance":
        return import_module("lance").dataset(str(path))
    dataset = import_module("pyarrow.dataset")
    if path.suffix != ".npy":
        arrow = path.suffix in (".arrow", ".ipc", ".feather")
        return dataset.dataset(path, format="ipc" if arrow else "parquet")
    np, pa = import_module("numpy"), import_module("pyarrow")
    vectors = np.load(path, mmap_mode="r")
    named, texts = path.with_suffix(".ids.npy"), path.with_suffix(".ids.txt")
    if not named.exists() and not texts.exists():
        raise CommandError(
            f"{path} has no ids: write them to {named.name} or, by line, {texts.name}"
        )
    ids = np.load(named).tolist() if named.exists() else texts.read_text("utf-8").splitlines()
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise CommandError(f"{path} has the shape {vectors.shape}, and there are {len(ids)} ids")
    lists = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
    return dataset.dataset(pa.table({"id": [str(each) for each in ids], "vector": lists}))


def _is_vector(kind: Any) -> bool:
    types = import_module("pyarrow").types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_floating(kind.value_type))


def _is_plain(kind: Any) -> bool:
    types = import_module("pyarrow").types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind)
    return bool(is_text or is_number or types.is_boolean(kind))


def adopt(  # noqa: PLR0913 - where from, as what, where to
    source: Annotated[
        Path,
        typer.Argument(
            help="vectors: Parquet, Arrow, a table of Lance, or X.npy beside X.ids.npy or X.ids.txt"
        ),
    ],
    modality: Annotated[
        str, typer.Option("--as", help="modality whose features they become; made if it is missing")
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="what made them, NAME or NAME@REVISION, e.g. openai/text-embedding-3-small@2024-01"
        ),
    ],
    collection: Annotated[
        str, typer.Option(help="collection of the model, to which they are added")
    ],
    model: OfModel,
    *,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="vectors of some of the same ids by the encoder of --aligned-to; not needed for a modality that is learned"
        ),
    ] = None,
    aligned_to: Annotated[
        str | None, typer.Option(help="modality of the same items whose encoder the model has")
    ] = None,
    takes: Annotated[Media, typer.Option(help="what the encoder of a new modality takes")] = "text",
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Make another model's stored vectors searchable: learn pairs of some of them, then add all as items.

    Nothing is written to the source. Prints what it costs, and how well they will be found, and asks.
    """
    vectors = Vectors.open(source)
    name, _, revision = encoder.partition("@")
    identity = from_options(
        EncoderIdentity,
        {
            "kind": _KIND,
            "adapter": 1,
            "model": name,
            "revision": revision or None,
            "takes": takes,
            "width": vectors.width,
        },
        option="--encoder",
    )
    target = _Target(model, modality, identity)
    bytes_ = 4 * vectors.rows * vectors.width
    expected = vectors.rows * _SECONDS_PER_ROW + bytes_ * _SECONDS_PER_BYTE
    _tell(
        f"{vectors.rows:,} vectors of width {vectors.width}, {bytes_ / 1e6:,.0f} MB as float32, "
        f"about {duration(expected)} with one core for the endpoint"
    )
    with Client(url, embeddings_url=embeddings_url) as client:
        is_learned = target.is_learned(client)
        if is_learned and sample is not None:
            raise InvalidArgument(f"{modality!r} is learned: leave out --sample, or post a dataset")
        if not is_learned and (sample is None or aligned_to is None):
            raise InvalidArgument(f"{modality!r} is not learned: give --sample and --aligned-to")
        # Before anything is learned. Raises NotFound if it does not exist.
        searched = client.collection(collection).model
        if searched.partition("@")[0] != model:
            raise CommandError(f"the collection {collection!r} is of {searched}, not of {model}")
        if sample is None or aligned_to is None:
            if not yes:
                typer.confirm("Add them?", abort=True, err=True)
        else:
            with tempfile.TemporaryDirectory(prefix="cmcl-adopt-") as folder:
                pairs = _write_pairs(Path(folder) / "pairs.parquet", vectors, sample)
                job = target.learn(client, aligned_to, pairs, is_confirmed=yes)
                version = follow(client, job, as_json).version or 0
            # The endpoint takes the items when it has the version.
            _, rows, _ = next(vectors.batches())
            client.embed(model, modality, rows[:1], min_version=version)
        _add(client, collection, modality, vectors, as_json)


@dataclass(frozen=True)
class _Target:
    """The modality of a model that vectors by this encoder become."""

    model: str
    modality: str
    identity: EncoderIdentity

    def is_learned(self, client: Client) -> bool:
        """Whether the model has learned features of this encoder. Raises CommandError if they are of another one."""
        found = client.model(self.model)
        known = found.modalities.get(self.modality)
        name = f"{self.modality!r} of {self.model}"
        if known is not None and known.width != self.identity.width:
            raise CommandError(
                f"the vectors have width {self.identity.width}, and {name} has {known.width}"
            )
        if not found.head_version:
            raise CommandError(
                f"{self.model} has no version yet: learn a dataset with the new encoder first"
            )
        before = found.encoders.get(self.modality)
        # Later vectors of the same encoder need no --takes.
        if before and before.difference(self.identity.model_copy(update={"takes": before.takes})):
            raise CommandError(
                f"the features of {name} are by {_title(before)}, and these vectors by {_title(self.identity)}: "
                "scores between them mean nothing. Adopt them as another modality"
            )
        lineage = client.version(self.model, found.head_version).lineage
        is_learned = any(self.modality in line.pair.modalities for line in lineage)
        if is_learned and before is None:
            raise CommandError(f"the encoder of {name} was not declared; choose another modality")
        return is_learned

    def learn(self, client: Client, aligned_to: str, pairs: Path, *, is_confirmed: bool) -> str:
        """Report on the pairs, ask, and post them. Returns the job."""
        client.add_modality(self.model, self.modality, self.identity.width, aligned_to=aligned_to)
        name = f"{self.modality.replace('_', '-')}-sample"
        pair, encoders = (self.modality, aligned_to), {self.modality: self.identity}
        checked = client.dry_run(self.model, name, pair, [pairs], encoders=encoders, timeout=inf)
        stderr().print(report_view(checked))
        if checked.report is None or checked.report.refusals:
            raise CommandError("the pairs cannot be learned")
        if not is_confirmed:
            typer.confirm("Learn the pairs and add all vectors?", abort=True, err=True)
        return client.add_dataset(self.model, name, pair, [pairs], encoders=encoders).job.id


def _title(identity: EncoderIdentity) -> str:
    name = identity.model or identity.kind
    return f"{name}@{identity.revision}" if identity.revision else name


def _write_pairs(path: Path, vectors: Vectors, sample: Path) -> Path:
    """Write pairs of equal ids as Parquet. Raises CommandError without any, or if an id is repeated."""
    pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    own = Vectors.open(sample)
    new = own.by_id("the sample")
    stored = vectors.by_id("the source", pa.array(list(new), pa.string()))
    if not stored:
        raise CommandError(f"{sample} and the vectors have no id in common")
    _tell(f"{len(stored):,} of {own.rows:,} ids of {sample} are among the vectors")
    lists = [
        pa.array(rows, pa.list_(pa.float32(), width))
        for rows, width in (
            (list(stored.values()), vectors.width),
            ([new[each] for each in stored], own.width),
        )
    ]
    table = {"id": list(stored), "feature_a": lists[0], "feature_b": lists[1]}
    parquet.write_table(pa.table(table), path)
    return path


def _add(client: Client, collection: str, modality: str, vectors: Vectors, as_json: bool) -> None:
    written: WriteResult | None = None
    began, added = time.monotonic(), 0
    batches = track(
        vectors.batches(),
        f"adding to {collection}",
        total=-(-vectors.rows // _ROWS_AT_ONCE),
        console=stderr(),
        transient=True,
    )
    for ids, rows, payloads in batches:
        items = [
            Item(
                id_,
                modality,
                feature=row,
                payload={name: value for name, value in payload.items() if value is not None}
                or None,
            )
            for id_, row, payload in zip(ids, rows, payloads, strict=True)
        ]
        written = client.add_items(collection, items, _ROWS_AT_ONCE)
        added += len(items)
    if written is None:
        raise CommandError("the source no longer has vectors")
    took = duration(time.monotonic() - began)
    say(
        f"{added:,} vectors added in {took}; {collection} is at revision {written.revision}",
        written,
        as_json,
    )


def _tell(line: str) -> None:
    stderr().print(line, highlight=False, markup=False, soft_wrap=True)
