"""Recognise the form of a file by its first bytes; names are not reliable."""

import codecs

from workers.files import formats
from workers.files.columns import FEATURES
from workers.prepare.forms.lines import BYTE_ORDER_MARK, CSV, JSONL
from workers.prepare.forms.parquet import PARQUET, column_names
from workers.prepare.forms.record import Form
from workers.prepare.forms.tar import MAGIC, MAGIC_OFFSET, TAR
from workers.prepare.stored_file import StoredFile

FORMS = {form.name: form for form in (JSONL, CSV, PARQUET, TAR)}
_FIRST_BYTES = 512
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def form_of(file: StoredFile) -> Form | None:
    """Return the form of a file of raw rows; None for a file of features.

    Parquet holds features if it has a column of them. Raises InvalidDataset for any other file.
    """
    first = file.read_range(0, _FIRST_BYTES)
    known = formats.format_by_magic(first)
    if known is formats.PARQUET:
        return None if set(FEATURES).intersection(column_names(file)) else PARQUET
    if known is not None:
        return None
    if first[MAGIC_OFFSET:].startswith(MAGIC):
        return TAR
    if (mistaken := formats.mistaken_format(first)) is not None:
        raise file.wrong(mistaken)
    return _text_form(first, file)


def _text_form(first: bytes, file: StoredFile) -> Form:
    text = first.removeprefix(BYTE_ORDER_MARK).lstrip()
    if first.startswith(_UTF_16):
        raise file.wrong("it is UTF-16; write it as UTF-8")
    if text.startswith(b"{"):
        return JSONL
    if text.startswith(b"["):
        raise file.wrong(
            "it is a JSON array; write one object a line, without brackets around them"
        )
    if not text or not _is_text(text.partition(b"\n")[0]):
        raise file.wrong(
            "by its first bytes it is no file of rows (JSONL, CSV with a header, Parquet, tar), and none of "
            "features (Parquet, Arrow IPC, npz, safetensors, HDF5)"
        )
    return CSV


def _is_text(line: bytes) -> bool:
    """Return whether a line can be a header: UTF-8, perhaps cut within a character."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
