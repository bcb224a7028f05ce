"""Convert the values of a row to an id, a label and the raw bytes of two items. Raises BadRow with the reason.

Raw bytes do not depend on the form of the file: texts are UTF-8, numbers are float64 and features are float32,
little endian. Therefore equal rows have equal digests.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from workers.files.columns import LONGEST_TEXT
from workers.files.shards import wrong_values
from workers.prepare.forms.record import BadRow, FileName, Member
from workers.prepare.raw_rows import SideSpec

_SEPARATORS = re.compile(r"[\s,;]+")
# Of raw numbers, before they are counted.
_LONGEST_NUMBERS = 1 << 20

RawItem = bytes | FileName | Member


def id_of(values: Mapping[str, Any]) -> str:
    """Return the id as text. Raises BadRow."""
    value = values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _short_text(value, "id")


def label_of(values: Mapping[str, Any], has_labels: bool) -> str | None:
    """Return the label; None in a file without labels. Raises BadRow."""
    if not has_labels:
        return None
    if values.get("label") is None:
        raise BadRow(
            "it has no label, and other rows of the file have one: label all rows, or none"
        )
    return _short_text(values["label"], "label")


def item_of(values: Mapping[str, Any], side: SideSpec) -> RawItem:
    """Return one item: its raw bytes, or where they are. Raises BadRow."""
    inline, name = values.get(side.modality), None
    if not _is_numbers(side):
        name = values.get(f"{side.modality}_file_name")
    if inline is not None and name is not None:
        raise BadRow(f"it has both {side.modality} and {side.modality}_file_name")
    if name is not None:
        return FileName(_text(name, f"{side.modality}_file_name"))
    if inline is None:
        raise BadRow(f"it has no {side.modality}")
    return inline if isinstance(inline, Member) else _inline(inline, side)


def _inline(inline: object, side: SideSpec) -> bytes:
    if side.encoder is None or _is_numbers(side):
        return _numbers(inline, side)
    if side.encoder.takes == "text":
        return checked_bytes(_text(inline, side.modality).encode(), side)
    if not isinstance(inline, bytes):
        raise BadRow(
            f"its {side.modality} must be a file: write its name into {side.modality}_file_name"
        )
    return checked_bytes(inline, side)


def item_in_file(data: bytes, side: SideSpec) -> bytes:
    """Return the raw bytes of an item from the content of its file or member. Raises BadRow."""
    if side.encoder is None or _is_numbers(side):
        try:
            return _numbers(orjson.loads(data), side)
        except orjson.JSONDecodeError as error:
            raise BadRow(f"its {side.modality} is not JSON: {error}") from error
    if side.encoder.takes == "text":
        # Editors write a line end, and some a byte order mark; neither is part of the text.
        data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        _text(data, side.modality)
    return checked_bytes(data, side)


def checked_bytes(data: bytes, side: SideSpec) -> bytes:
    """Check the size of an item, and that a text has characters. Raises BadRow."""
    if side.encoder is None:
        return data
    if not data or (side.encoder.takes == "text" and not data.strip()):
        raise BadRow(f"its {side.modality} is empty")
    check_size(len(data), side)
    return data


def check_size(size: int, side: SideSpec) -> None:
    """Raises BadRow if an item of `size` bytes is too large."""
    most = largest(side)
    if size > most:
        raise BadRow(
            f"its {side.modality} has {'more than ' if size == most + 1 else ''}"
            f"{min(size, most) if size == most + 1 else size} bytes; at most {most} are permitted"
        )


def largest(side: SideSpec) -> int:
    """Return the permitted size of an item in bytes."""
    return _LONGEST_NUMBERS if side.encoder is None else side.encoder.max_item_bytes


def _is_numbers(side: SideSpec) -> bool:
    """Return whether items are lists of numbers: for an encoder, or features."""
    return side.encoder is None or side.encoder.takes == "numbers"


def _short_text(value: object, what: str) -> str:
    if value is None or value in ("", b""):
        raise BadRow(f"it has no {what}")
    text = _text(value, what)
    size = len(text.encode())
    if size > LONGEST_TEXT:
        raise BadRow(f"its {what} has {size} bytes; at most {LONGEST_TEXT} are permitted")
    return text


def _text(value: object, what: str) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeDecodeError as error:
        raise BadRow(f"its {what} is not UTF-8: byte {error.start} is invalid") from error
    except UnicodeEncodeError as error:  # bytes of CSV that are not UTF-8 became surrogates
        raise BadRow(f"its {what} is not UTF-8: character {error.start} is invalid") from error
    raise BadRow(f"its {what} must be text, is {_kind(value)}")


def _numbers(value: object, side: SideSpec) -> bytes:
    """Return the bytes of a list of numbers, or of text with numbers or a JSON list."""
    if isinstance(value, str | bytes):
        value = _parsed(_text(value, side.modality), side)
    if not isinstance(value, list | np.ndarray):
        raise BadRow(f"its {side.modality} must be a list of numbers, is {_kind(value)}")
    if isinstance(value, list):
        wrong = next((each for each in value if type(each) not in (int, float)), None)
        if wrong is not None or None in value:
            raise BadRow(f"its {side.modality} has {_kind(wrong)} among the numbers")
    if not len(value):
        raise BadRow(f"its {side.modality} has no numbers")
    if side.encoder is None:
        return _feature(value, side)
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0: equal values have equal bytes.
        numbers = np.asarray(value, "<f8") + 0.0
    if not np.isfinite(numbers).all():
        raise BadRow(f"its {side.modality} has NaN or infinity")
    check_size(numbers.nbytes, side)
    return numbers.tobytes()


def _feature(value: "list[float] | np.ndarray", side: SideSpec) -> bytes:
    if len(value) != side.width:
        raise BadRow(
            f"its {side.modality} has {len(value)} numbers, the model declares {side.width}"
        )
    with np.errstate(over="ignore"):
        feature_F = np.asarray(value, "<f8").astype("<f4") + np.float32(0)
    for _, found, permitted in wrong_values(feature_F[None]):
        raise BadRow(f"its {side.modality} {found}{permitted}")
    return feature_F.tobytes()


def _parsed(text: str, side: SideSpec) -> object:
    """Parse numbers in text, as in CSV: `48.86 2.35`, `48.86,2.35` or `[48.86, 2.35]`."""
    text = text.strip()
    if len(text) > _LONGEST_NUMBERS:
        raise BadRow(f"its {side.modality} has {len(text)} characters, at most {_LONGEST_NUMBERS}")
    try:
        if text.startswith("["):
            return orjson.loads(text)
        return [float(part) for part in _SEPARATORS.split(text) if part]
    except ValueError as error:
        raise BadRow(f"its {side.modality} is no list of numbers: {text[:100]!r}") from error


def _kind(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text"}
    names |= {"int": "a number", "float": "a number", "bool": "a truth value", "bytes": "bytes"}
    return names.get(type(value).__name__, type(value).__name__)
