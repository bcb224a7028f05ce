"""`cmcl embed`, `search` and `collection`: commands of the embeddings endpoint, and parsing of what they send."""

import base64
import binascii
import io
import json
import re
import struct
import wave
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from dataclasses import fields as fields_of
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, fields, say, show, show_all, stderr, table
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_QUERY_URL,
    AsJson,
    EmbeddingsUrl,
    OfModel,
    QueriedModel,
    Yes,
)
from cmcl.client import (
    Client,
    CmclError,
    Collection,
    InvalidArgument,
    Item,
    Query,
    SearchHit,
    SearchResults,
    SearchStatus,
    WriteResult,
)
from cmcl.client.endpoint import Inputs
from cmcl.client.raw_folder import (
    FILE_NAME,
    MEDIA_SUFFIXES,
    check_inside,
    manifest_records,
    visible_files,
)
from cmcl.contract.api.endpoint import FloatType, Span, VectorType
from cmcl.contract.dataset import MANIFESTS

app = typer.Typer(
    no_args_is_help=True,
    help="Collections of items, searched with the live version of their model.",
)


# Of one request; one with files waits until they are encoded.
_LINES_AT_ONCE, _FILES_AT_ONCE = 1000, 32

CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="name of the collection")]


def _counts(by_modality: Mapping[str, int] | None) -> str | None:
    counts = (f"{modality} {count}" for modality, count in (by_modality or {}).items())
    return ", ".join(counts) or None


def _progress(status: SearchStatus | None) -> str | None:
    """How much of the next version's vectors is computed."""
    if status is None or status.progress is None:
        return None
    left = "" if status.seconds_left is None else f", {status.seconds_left:.0f} s left"
    return f"{status.progress:.0%}{left}"


def _span(at: Span | None) -> str | None:
    """Seconds or pages; one number where a part begins and ends on the same page."""
    if at is None:
        return None
    return " to ".join(dict.fromkeys(f"{each:.10g}" for each in (at.start, at.end)))


_COLUMNS: Columns[Collection] = {
    "collection": lambda each: each.id,
    "model": lambda each: each.model,
    "revision": lambda each: each.revision,
    "version": lambda each: each.searched.version if each.searched else None,
    "rows": lambda each: _counts(each.searched.rows) if each.searched else None,
    "next": lambda each: _progress(each.searched),
}
_HITS: Columns[SearchHit] = {
    "score": lambda hit: hit.score,
    "id": lambda hit: hit.id,
    "modality": lambda hit: hit.modality,
    "parent": lambda hit: hit.parent,
    "at": lambda hit: _span(hit.at),
    "source": lambda hit: hit.source,
    "payload": lambda hit: json.dumps(hit.payload, ensure_ascii=False) if hit.payload else None,
}
# Shown where a hit has one: most collections have none of them.
_OPTIONAL = ("parent", "at", "source")


@app.command("create")
def create_collection(  # noqa: PLR0913 - the properties of a collection
    name: CollectionName,
    model: OfModel,
    *,
    feature_type: Annotated[
        FloatType, typer.Option(help="how features are stored; float16 takes half the space")
    ] = "float32",
    vector_type: Annotated[
        VectorType,
        typer.Option(help="how vectors are stored; float16 takes half the space, bit a 32nd"),
    ] = "float32",
    dimensions: Annotated[
        int | None,
        typer.Option(help="how many numbers of each vector to keep, the first ones", min=1),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="field of payloads that is searched by --words; repeatable"),
    ] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Create a collection, searched with the live version of the model."""
    with Client(embeddings_url=embeddings_url) as client:
        made = client.create_collection(
            name,
            model,
            feature_type,
            vector_type=vector_type,
            dimensions=dimensions,
            text_fields=text_field or (),
        )
    show(made, as_json, _view)


@app.command("list")
def list_collections(
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """List collections."""
    with Client(embeddings_url=embeddings_url) as client:
        hint = "no collections yet; create one: cmcl collection create NAME --model MODEL"
        show_all(client.collections(), as_json, _COLUMNS, hint)


@app.command("show")
def show_collection(
    name: CollectionName, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """Show a collection: stored state, and search state of the responding replica."""
    with Client(embeddings_url=embeddings_url) as client:
        show(client.collection(name), as_json, _view)


@app.command("delete")
def delete_collection(
    name: CollectionName, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, yes: Yes = False
) -> None:
    """Delete a collection with all its items."""
    if not yes:
        typer.confirm(f"Delete collection {name} with all its items?", abort=True)
    with Client(embeddings_url=embeddings_url) as client:
        client.delete_collection(name)


@app.command("add")
def add_items(  # noqa: PLR0913 - how files become items
    name: CollectionName,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: id, modality, feature or text, payload; with --modality a picture, sound or "
            "video, or a folder of them",
        ),
    ],
    *,
    modality: Annotated[
        str | None, typer.Option(help="modality of the raw files; it must be bound to an encoder")
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="make an item of each window of a recording")
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option(
            "--thumbnails",
            help="keep a small picture of each picture or video, or three seconds of each sound",
        ),
    ] = False,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Add items from a file or a folder. Items with the same ids are replaced.

    Files that the encoder cannot read are listed and left out. A folder's metadata.jsonl, metadata.csv, manifest.jsonl or manifest.csv names the files and their payloads.
    """
    if modality is None:
        if parts or thumbnails:
            raise CommandError("--parts and --thumbnails are of raw files: name their --modality")
        items, size = read_items(file), _LINES_AT_ONCE
    else:
        raw = RawItems(modality, in_parts=parts, thumbnail=thumbnails or None)
        items, size = raw.read(file), _FILES_AT_ONCE
    added, left_out, written = 0, 0, None
    with Client(embeddings_url=embeddings_url) as client:
        try:
            while batch := list(islice(items, size)):
                newest, unreadable = _add(client, name, batch)
                written = newest or written
                left_out += unreadable
                added += len(batch) - unreadable
        except BaseException:
            if added:
                _tell(
                    f"{added:,} items of {file} were added to {name}; added again, they are replaced"
                )
            raise
    if written is None:
        raise CommandError(f"no file of {file} can be read" if left_out else f"{file} has no items")
    others = f", {left_out:,} left out" if left_out else ""
    say(
        f"{added:,} items added{others}; {name} is at revision {written.revision}", written, as_json
    )


def _add(client: Client, name: str, batch: list[Item]) -> tuple[WriteResult | None, int]:
    """Return the result of the last change, and how many files the encoder cannot read: half of a batch after half."""
    try:
        return client.add_items(name, batch, len(batch)), 0
    except CmclError as error:
        if error.code != "unreadable_item":
            raise
        if len(batch) == 1:
            _tell(f"left out {batch[0].id}: {error}")
            return None, 1
    half = len(batch) // 2
    (first, one), (second, other) = (
        _add(client, name, each) for each in (batch[:half], batch[half:])
    )
    return second or first, one + other


def _tell(message: str) -> None:
    stderr().print(message, highlight=False, markup=False, soft_wrap=True)


@app.command("remove")
def remove_items(
    name: CollectionName,
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="ids of items")],
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Remove items by id."""
    with Client(embeddings_url=embeddings_url) as client:
        written = client.remove_items(name, ids)
    say(f"{name} is at revision {written.revision}", written, as_json)


@app.command("export")
def export_collection(
    name: CollectionName,
    out: Annotated[Path, typer.Option(help="file to write")],
    form: Annotated[
        Literal["parquet", "arrow"],
        typer.Option("--format", help="arrow: a stream of Arrow IPC"),
    ] = "parquet",
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
) -> None:
    """Export the items with their vectors for another vector store."""
    with Client(embeddings_url=embeddings_url) as client:
        out.write_bytes(client.export_collection(name, form))


def search(  # noqa: PLR0913 - the options of a search
    name: CollectionName,
    modality: Annotated[
        str | None,
        typer.Argument(metavar="MODALITY", help="modality of the query; default text, for --text"),
    ] = None,
    feature: Annotated[
        Path | None, typer.Argument(metavar="FEATURE", help="JSON file with one feature")
    ] = None,
    *,
    text: Annotated[
        str | None, typer.Option(help="text to search with; needs an encoder at the endpoint")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="file to search with, e.g. an image; needs an encoder"),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            help="words to find in the collection's text fields; with a query the two rankings are fused"
        ),
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option(help="search only items of this modality; repeatable")
    ] = None,
    where: Annotated[str | None, typer.Option(help="filter over payloads, as JSON")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="number of results")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="compare with every item, without the index")
    ] = False,
    by_parent: Annotated[
        bool, typer.Option("--by-parent", help="of parts with the same parent only the best one")
    ] = False,
    min_revision: Annotated[int, typer.Option(help="wait for this revision of the collection")] = 0,
    min_version: Annotated[int, typer.Option(help="wait for this version")] = 0,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Search a collection for the items nearest to a feature, a text or a file, or by words.

    With --json each result has its thumbnail, if it has one.
    """
    has_query = any(each is not None for each in (modality, feature, text, data))
    if not has_query and words is None:
        raise typer.BadParameter("give a query (MODALITY FEATURE, or --text), --words, or both")
    query = read_query(modality, feature, text, data) if has_query else None
    wanted = parse_filter(where)
    with Client(embeddings_url=embeddings_url) as client:
        found = client.search(
            name,
            query,
            top_k,
            words=words,
            modalities=among or None,
            filter=wanted,
            exact=exact,
            by_parent=by_parent,
            include=("source", "thumbnail") if as_json else ("source",),
            min_revision=min_revision,
            min_version=min_version,
        )
    show(found, as_json, _found)


def _view(collection: Collection) -> RenderableType:
    values = {title: value(collection) for title, value in _COLUMNS.items()}
    searched = collection.searched
    return fields(
        {
            **values,
            "not learned": _counts(searched.not_learned) if searched else None,
            "features": collection.feature_type,
            "vectors": collection.vector_type,
            "dimensions": collection.dimensions,
            "text fields": ", ".join(collection.text_fields) or None,
            "problem": searched.problem if searched else None,
        }
    )


def _found(found: SearchResults) -> RenderableType:
    how = "exact" if found.exact else "approximate"
    answered = f"by {found.model}, revision {found.revision}, {how}"
    columns = {
        name: value
        for name, value in _HITS.items()
        if name not in _OPTIONAL or any(map(value, found.data))
    }
    hits = table(found.data, columns) if found.data else Text("no results")
    return Group(hits, Text(answered, style="dim"))


def embed(  # noqa: PLR0913 - one option for each kind of input
    model: QueriedModel,
    modality: Annotated[
        str | None,
        typer.Argument(metavar="MODALITY", help="modality of the input; default text, for --text"),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Argument(metavar="FEATURES", help="JSON file with one feature or a list of them"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="text to embed; the modality must be bound to an encoder; repeatable"),
    ] = None,
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="picture, sound or video to embed with its encoder; repeatable"),
    ] = None,
    numbers: Annotated[
        list[str] | None,
        typer.Option(help="raw numbers to embed, such as 48.85,2.35; repeatable"),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(help="how many numbers of each embedding to print, the first ones", min=1),
    ] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Embed features, or raw items of one kind. Prints one JSON document, with or without --json."""
    if sum(map(bool, (features, text, data, numbers))) != 1:
        raise typer.BadParameter(
            "give exactly one of a FEATURES file, --text TEXT, --data FILE and --numbers A,B"
        )
    if modality is None and not text:
        raise typer.BadParameter("the MODALITY is missing")
    name = modality or "text"
    inputs: Inputs = text or []
    if features is not None:
        inputs = read_features(features)
    elif data:
        inputs = [Query(name, data=read_file(path)) for path in data]
    elif numbers:
        inputs = [Query(name, numbers=parse_numbers(each)) for each in numbers]
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.embed(model, name, inputs, dimensions)
    print(json.dumps({"version": answer.version, "embeddings": answer.vectors}))


# --- Features, items and files that commands send ------------------------------------------------

_CONTENTS = ("feature", "text", "data", "numbers")
# Encoded in seconds, and below the 8 MiB that a file may have by default.
_PIECE_SECONDS = 30
# As in JSON: a code such as 0123 stays a text.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?")
_WAYS = "a FEATURE file, --text TEXT or --data FILE"
# First bytes of formats that users may pass instead of JSON.
_FORMATS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "a ZIP archive or npz",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "npy",
    b"\x1f\x8b": "gzip",
}


def read_query(
    modality: str | None, feature: Path | None, text: str | None, data: Path | None
) -> Query:
    """Return the query. Raises BadParameter unless exactly one input is given; CommandError."""
    if sum(each is not None for each in (feature, text, data)) != 1:
        raise typer.BadParameter(f"give exactly one of {_WAYS}")
    if modality is None and text is None:
        raise typer.BadParameter("the MODALITY is missing")
    modality = modality or "text"
    if feature is not None:
        rows = read_features(feature)
        if len(rows) != 1:
            raise CommandError(f"{feature} has {len(rows)} features; a search takes exactly one")
        return Query(modality, rows[0])
    return Query(modality, text=text, data=None if data is None else read_file(data))


def read_features(path: Path) -> list[list[float]]:
    """Read one feature or a list of features. Raises CommandError. The endpoint checks widths."""
    rows = parse_json(_as_text(read_file(path, "for a text use --text"), path), str(path))
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise CommandError(f"{path}: write one feature (a list of numbers) or a list of features")
    return [_numbers(row, str(path)) for row in rows]


def read_items(path: Path) -> Iterator[Item]:
    """Iterate over items of a collection, one JSON object per line. Raises CommandError."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _item(parse_json(_as_text(line, path), where), where)


@dataclass(frozen=True)
class RawItems:
    """How files become items of a collection.

    `in_parts`: for an item of each window; WAV files are sent in pieces. `thumbnail`: True to make one.
    """

    modality: str
    in_parts: bool = False
    thumbnail: bool | None = None

    def read(self, path: Path) -> Iterator[Item]:
        """Iterate over a file, or those that the manifest of a folder names, or its pictures, sounds and videos.

        Ids are names in the folder. Raises CommandError, InvalidArgument.
        """
        if not path.is_dir():
            yield from self._items(path, path.name)
            return
        manifest = next((path / name for name in MANIFESTS if (path / name).is_file()), None)
        if manifest is not None:
            yield from self._in_manifest(manifest)
            return
        files = [file for file in visible_files(path) if file.suffix.lower() in MEDIA_SUFFIXES]
        if not files:
            permitted = ", ".join(sorted(MEDIA_SUFFIXES))
            raise CommandError(f"{path} has no picture, sound or video ({permitted})")
        # Before the first item is sent: a folder is added as a whole, as far as can be seen.
        if broken := [file for file in files if not file.is_file()]:
            raise CommandError(
                f"{broken[0]} is a link to {broken[0].readlink()}, which does not exist ({len(broken)} of "
                f"{len(files)} files); nothing was added"
            )
        for file in files:
            yield from self._items(file, file.relative_to(path).as_posix())

    def _in_manifest(self, manifest: Path) -> Iterator[Item]:
        """Yield the items of its rows. Columns other than the file, the id and the source are the payload."""
        columns = (f"{self.modality}_{FILE_NAME}", FILE_NAME)
        for line, record in manifest_records(manifest):
            payload = {name: _plain(value, manifest) for name, value in record.items()}
            names = [
                str(name) for name in map(payload.pop, columns, [None] * 2) if name is not None
            ]
            if not names:
                raise CommandError(f"{manifest}, line {line}: no column {' or '.join(columns)}")
            file = manifest.parent / names[0]
            check_inside(file, manifest.parent.resolve())
            id_, source = payload.pop("id", None), payload.pop("source", None)
            kept = {name: value for name, value in payload.items() if value is not None}
            yield from self._items(
                file,
                names[0] if id_ is None else str(id_),
                kept or None,
                None if source is None else str(source),
            )

    def _items(
        self,
        file: Path,
        id_: str,
        payload: Mapping[str, Any] | None = None,
        source: str | None = None,
    ) -> Iterator[Item]:
        data = read_file(file)
        for start, piece in _pieces(data) if self.in_parts else [(None, data)]:
            yield Item(
                id_,
                self.modality,
                data=piece,
                payload=payload,
                start=start,
                parts=self.in_parts,
                source=source,
                thumbnail=self.thumbnail,
            )


def _plain(value: object, manifest: Path) -> object:
    """Return a value of a payload; in CSV numbers, true and false are those, and an empty field is none."""
    if manifest.suffix.lower() != ".csv" or not isinstance(value, str):
        return value
    if not value:
        return None
    return json.loads(value) if _NUMBER.fullmatch(value) or value in ("true", "false") else value


def _pieces(data: bytes) -> Iterator[tuple[float | None, bytes]]:
    """Yield the pieces of a WAV file, and the second at which each begins; any other file as it is."""
    try:
        with wave.open(io.BytesIO(data)) as recording:
            rate = recording.getframerate()
            for start in range(0, max(1, recording.getnframes()), _PIECE_SECONDS * rate):
                piece = io.BytesIO()
                with wave.open(piece, "wb") as out:
                    out.setparams(recording.getparams())
                    out.writeframes(recording.readframes(_PIECE_SECONDS * rate))
                yield start / rate, piece.getvalue()
    # ValueError: a rate of 0.
    except (wave.Error, EOFError, ValueError):
        yield None, data


def parse_numbers(text: str) -> list[float]:
    """Parse numbers with commas between them. Raises BadParameter."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r}: write numbers with commas between them, such as 48.85,2.35"
        ) from error


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """Parse the option --where. Raises BadParameter. The endpoint checks the filter."""
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not valid JSON: {error}", param_hint="--where") from error
    if not isinstance(parsed, dict):
        raise typer.BadParameter("must be a JSON object, see docs/search.md", param_hint="--where")
    return parsed


def parse_json(text: str, where: str) -> Any:
    """Parse JSON. Raises CommandError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{where} is not valid JSON: {error}") from error


def _item(value: object, where: str) -> Item:
    permitted = {each.name: each.default is MISSING for each in fields_of(Item)}
    if not isinstance(value, Mapping):
        raise CommandError(f"{where}: an item must be a JSON object with {', '.join(permitted)}")
    for name, is_required in permitted.items():
        if is_required and name not in value:
            raise CommandError(f"{where}: {name!r} is missing")
        if is_required and not isinstance(value[name], str):
            raise CommandError(f"{where}: {name!r} is {value[name]!r}; it must be a string")
    for name in value:
        if name not in permitted:
            raise CommandError(
                f"{where}: unknown field {name!r}; permitted: {', '.join(permitted)}"
            )
    given = [name for name in _CONTENTS if value.get(name) is not None]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no content"
        raise CommandError(
            f"{where}: the item {found}; it needs exactly one of {', '.join(_CONTENTS)}"
        )
    return Item(**{**value, **_contents(value, where)})


def _contents(value: Mapping[str, Any], where: str) -> dict[str, object]:
    """Decode `feature` to numbers and `data` to bytes. In JSON both may be base64."""
    contents: dict[str, object] = {}
    if (feature := value.get("feature")) is not None:
        if isinstance(feature, str):
            feature = _unpacked(_decoded(feature, f"{where}: 'feature'"), where)
        contents["feature"] = _numbers(feature, f"{where}: 'feature'")
    if (numbers := value.get("numbers")) is not None:
        contents["numbers"] = _numbers(numbers, f"{where}: 'numbers'")
    if (data := value.get("data")) is not None:
        contents["data"] = _decoded(data, f"{where}: 'data'")
    return contents


def _numbers(row: object, where: str) -> list[float]:
    if not isinstance(row, list) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in row
    ):
        raise CommandError(f"{where}: a feature must be a list of numbers")
    return row


def _decoded(text: object, where: str) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CommandError(f"{where} is not base64: {error}") from error


def _unpacked(data: bytes, where: str) -> list[float]:
    if len(data) % 4:
        raise CommandError(
            f"{where}: 'feature' has {len(data)} bytes; float32 needs a multiple of 4"
        )
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _as_text(content: bytes, path: Path) -> str:
    """Decode UTF-8. Raises CommandError, which names the format of known binary files."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    found = next((name for first, name in _FORMATS.items() if content.startswith(first)), None)
    looks = f"looks like {found}" if found else "is not UTF-8 text"
    raise CommandError(
        f"{path} {looks}; features must be JSON, and items JSON objects, one per line"
    )


def read_file(path: Path, hint: str = "") -> bytes:
    """Read a file. Raises InvalidArgument, CommandError."""
    with _opened(path, hint) as file:
        return file.read()


def _opened(path: Path, hint: str = "") -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise InvalidArgument(
            f"no such file: {str(path)!r}{f'; {hint}' if hint else ''}"
        ) from error
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
