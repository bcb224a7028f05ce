"""Numbers, sizes and times as people read them; each number with its unit."""

import math
import re
from datetime import UTC, datetime

from markupsafe import Markup

from cmcl.contract.errors import shortened
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from cmcl.pictures import scales

# Shown in place of a value that is not known. Readers of screens say nothing for the dash alone.
NOTHING = Markup(
    '<span class="none"><span aria-hidden="true">–</span><span class="sr">none</span></span>'
)

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_NOW = 10
_LONGEST_AGO = 30 * _DAY
_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_MOST_DIGITS = 15
_PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+=*")


def number(value: float | None, digits: int = 3) -> str | Markup:
    """A whole number with groups of three digits, or another one with `digits` significant digits."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or (
        math.isfinite(value)
        and (value.is_integer() or abs(value) >= 1000)
        and abs(value) < 10**_MOST_DIGITS
    ):
        text = f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    else:
        text = _significant(value, digits)
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str | Markup:
    """A share of 1 in percent, with `digits` decimals."""
    if share is None:
        return NOTHING
    return f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def points(change: float | None) -> str | Markup:
    """A change of a share in percentage points, with its sign."""
    if change is None:
        return NOTHING
    rounded = round(100 * change, 1)
    sign = "±" if rounded == 0 else "+" if rounded > 0 else "\N{MINUS SIGN}"
    return f"{sign}{abs(rounded):.1f}\N{NARROW NO-BREAK SPACE}points"


def is_lost(change: float) -> bool:
    """Whether a change is below zero as `points` shows it."""
    return round(100 * change, 1) < 0


def size(number_of_bytes: float | None) -> str | Markup:
    if number_of_bytes is None:
        return NOTHING
    value, unit = float(number_of_bytes), 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.0f}" if unit == 0 or value >= 100 else f"{value:.1f}"
    return f"{text}\N{NARROW NO-BREAK SPACE}{_SIZES[unit]}"


def duration(seconds: float | None) -> str | Markup:
    """A time span with its two largest units."""
    return NOTHING if seconds is None else scales.duration(seconds)


def ago(moment: datetime, now: datetime) -> str:
    """How long ago a moment was, or its date. `static/times.js` says the same."""
    seconds = (now - moment).total_seconds()
    if seconds < -_NOW or seconds >= _LONGEST_AGO:
        return moment.astimezone(UTC).strftime("%Y-%m-%d" if seconds > 0 else "%Y-%m-%d %H:%M UTC")
    if seconds < _NOW:
        return "just now"
    for span, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= span:
            return f"{int(seconds // span)} {unit} ago"
    return f"{int(seconds)} s ago"


def when(moment: datetime | None, now: datetime) -> Markup:
    """A moment relative to now, with the whole time as its title."""
    if moment is None:
        return NOTHING
    utc = moment.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.strftime("%Y-%m-%dT%H:%M:%SZ"), utc.strftime("%Y-%m-%d %H:%M:%S UTC"), ago(moment, now)
    )


def plural(count: int, singular: str, several: str = "") -> str:
    return f"{number(count)} {singular if count == 1 else several or singular + 's'}"


def done_share(progress: Progress | PrepareProgress) -> float | None:
    """The share of the work of a phase that is done: updates of a training, or rows of a preparation; None: not known."""
    if isinstance(progress, Progress):
        done, total = progress.updates_done, progress.updates_total
        return done / total if total and progress.phase == "training" else None
    return progress.rows_done / progress.rows_total if progress.rows_total else None


def _significant(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):.10f}".rstrip("0").rstrip(".") if "e" in text else text


def is_picture(value: object) -> bool:
    """Whether a value is a small picture in itself; no address is one, because pictures of other hosts are not loaded."""
    return isinstance(value, str) and _PICTURE.fullmatch(value) is not None


# The beginnings of the bytes of a picture, in base64.
_MEDIA_TYPES = {"/9j/": "jpeg", "iVBOR": "png", "UklGR": "webp", "R0lGOD": "gif"}
# An MP3 of layer III, in base64.
_MP3 = re.compile(r"//[I-Po-v][A-Za-z0-9+/]+=*")
# Fields of payloads that say in words what an item is, the best first.
_WORDS = ("caption", "text", "title", "label", "name")


def picture_of(item: object) -> str | None:
    """The picture of an item as an address that holds it: its thumbnail, else a small picture in its payload."""
    thumbnail = getattr(item, "thumbnail", None) or ""
    for beginning, kind in _MEDIA_TYPES.items():
        address = f"data:image/{kind};base64,{thumbnail}"
        if thumbnail.startswith(beginning) and is_picture(address):
            return address
    payload = getattr(item, "payload", None) or {}
    return next((value for value in payload.values() if is_picture(value)), None)


def sound_of(item: object) -> str | None:
    """The excerpt of a sound as an address that holds it: its thumbnail, if that is an MP3."""
    thumbnail = getattr(item, "thumbnail", None) or ""
    return f"data:audio/mpeg;base64,{thumbnail}" if _MP3.fullmatch(thumbnail) else None


def words_of(item: object) -> str | None:
    """What an item says: a text of its payload, or the label of a held-out row."""
    payload = {"label": getattr(item, "label", None), **(getattr(item, "payload", None) or {})}
    texts = [payload[name] for name in _WORDS if payload.get(name)]
    return next((each for each in texts if isinstance(each, str)), None)


TESTS = {"picture": is_picture, "lost": is_lost}
FILTERS = {
    "number": number,
    "percent": percent,
    "points": points,
    "size": size,
    "duration": duration,
    "cut": shortened,
    "plural": plural,
    "done_share": done_share,
    "picture_of": picture_of,
    "sound_of": sound_of,
    "words_of": words_of,
}
