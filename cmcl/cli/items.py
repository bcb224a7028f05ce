"""Parsing of features and items from JSON files, JSON lines and options."""

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import typer

from cmcl.cli.errors import CommandError
from cmcl.client import InvalidArgument, Item, Query

ItemOrQuery = TypeVar("ItemOrQuery", Item, Query)

_CONTENTS = ("feature", "text", "data")
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


def read_query(modality: str, feature: Path | None, text: str | None, data: Path | None) -> Query:
    """Return the query. Raises BadParameter unless exactly one input is given; CommandError."""
    if sum(each is not None for each in (feature, text, data)) != 1:
        raise typer.BadParameter(f"give exactly one of {_WAYS}")
    if feature is not None:
        rows = read_features(feature)
        if len(rows) != 1:
            raise CommandError(f"{feature} has {len(rows)} features; a search takes exactly one")
        return Query(modality, rows[0])
    return Query(modality, text=text, data=None if data is None else _bytes(data))


def read_features(path: Path) -> list[list[float]]:
    """Read one feature or a list of features. Raises CommandError. The endpoint checks widths."""
    rows = parse_json(_text(path, "for a text use --text"), str(path))
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise CommandError(f"{path}: write one feature (a list of numbers) or a list of features")
    return [_numbers(row, str(path)) for row in rows]


def read_queries(path: Path) -> list[Query]:
    """Read one item or a list of items, without ids. Raises CommandError."""
    document = parse_json(_text(path), str(path))
    items = document if isinstance(document, list) else [document]
    return [_parsed(Query, item, f"{path}, item {n}") for n, item in enumerate(items, start=1)]


def read_items(path: Path) -> Iterator[Item]:
    """Iterate over items of a collection, one JSON object per line. Raises CommandError."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _parsed(Item, parse_json(_as_text(line, path), where), where)


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


def _parsed(kind: type[ItemOrQuery], value: object, where: str) -> ItemOrQuery:
    permitted = {each.name: each.default is MISSING for each in fields(kind)}
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
    return kind(**{**value, **_contents(value, where)})


def _contents(value: Mapping[str, Any], where: str) -> dict[str, object]:
    """Decode `feature` to numbers and `data` to bytes. In JSON both may be base64."""
    contents: dict[str, object] = {}
    if (feature := value.get("feature")) is not None:
        if isinstance(feature, str):
            feature = _unpacked(_decoded(feature, f"{where}: 'feature'"), where)
        contents["feature"] = _numbers(feature, f"{where}: 'feature'")
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


def _text(path: Path, hint: str = "") -> str:
    return _as_text(_bytes(path, hint), path)


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


def _bytes(path: Path, hint: str = "") -> bytes:
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
