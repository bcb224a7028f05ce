"""SVG elements as text: names that are safe in XML, text of a bounded width, and numbers.

Names come from users. They are escaped, lose what XML does not permit and what would reorder the text
around them, and are cut to the width that they have, with the whole in a `<title>`.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from cmcl.pictures.theme import fill, stroke

# Font sizes in pixels.
TEXT, SMALL = 12.0, 11.0
ELLIPSIS = "…"
# A `<title>` longer than this is cut: a page with a hundred names stays small.
_LONGEST_TITLE = 1000
_BRIEF = 60
# Width of a mark of a key, with the space behind it.
_MARK = 30.0
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Embeddings, overrides and isolates, which reach beyond the name that has them.
_REORDERS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_SPACES = re.compile(r"\s+")
_ISOLATE, _END_OF_ISOLATE = "\u2068", "\u2069"
_RIGHT_TO_LEFT = {"R", "AL", "AN"}
# Widths in em, of the widest fonts in use: a label may be narrower than computed, and never wider.
_NARROW = dict.fromkeys("!'(),-./:;I[]fijlrt| ", 0.4) | dict.fromkeys("MW@%mw", 0.98)
_DIGIT, _LOWER, _UPPER, _WIDE = 0.64, 0.62, 0.75, 1.35


def clean(text: str) -> str:
    """Return `text` on one line, without what XML does not permit and without control of direction."""
    return _SPACES.sub(" ", _REORDERS.sub("", _NO_XML.sub("\ufffd", text))).strip()


def escape(text: str) -> str:
    """Escape text for content and for attributes in double quotes."""
    escaped = _NO_XML.sub("\ufffd", text).replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace(">", "&gt;").replace('"', "&quot;")


def isolated(name: str) -> str:
    """Return a name so that text from right to left does not reorder what stands beside it."""
    name = clean(name)
    if any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in name):
        return f"{_ISOLATE}{name}{_END_OF_ISOLATE}"
    return name


def brief(name: str) -> str:
    """Return a name for a sentence: isolated, and cut to 60 characters."""
    name = clean(name)
    return isolated(name if len(name) <= _BRIEF else name[: _BRIEF - 1].rstrip() + ELLIPSIS)


def text_width(text: str, size: float = TEXT) -> float:
    """Return an upper estimate of the width of a text in pixels."""
    return size * sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if letter in _NARROW:
        return _NARROW[letter]
    if letter.isascii():
        return _DIGIT if letter.isdecimal() else _UPPER if letter.isupper() else _LOWER
    kind = unicodedata.category(letter)
    if kind in ("Mn", "Me", "Cf"):
        return 0.0
    is_wide = unicodedata.east_asian_width(letter) in "WF" or kind in ("So", "Co", "Cn")
    return _WIDE if is_wide else _UPPER if letter.isupper() else _LOWER + 0.06


def cut(text: str, width: float, size: float = TEXT) -> str:
    """Return as much of a text as fits into `width` pixels, with an ellipsis if that is not all."""
    text = clean(text)
    fitting = _fitting(text, width / size)
    if fitting == len(text):
        return text
    kept = list(text[: _fitting(text, width / size - 1)])
    # A joiner or a modifier without what it joins would change the ellipsis.
    while kept and unicodedata.category(kept[-1]) in ("Cf", "Mn", "Me", "Sk", "Zs"):
        kept.pop()
    return "".join(kept) + ELLIPSIS


def _fitting(text: str, room: float) -> int:
    """Return how many letters fit into `room` em."""
    for index, letter in enumerate(text):
        room -= _letter_width(letter)
        if room < 0:
            return index
    return len(text)


def number(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def element(name: str, attributes: Mapping[str, str | float], content: str = "") -> str:
    """Return an element. `content` is markup; values of attributes are escaped."""
    written = "".join(
        f' {key}="{number(value) if isinstance(value, int | float) else escape(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def title(text: str) -> str:
    """Return a `<title>`, which is what a pointer shows and a screen reader says."""
    text = clean(text)
    if len(text) > _LONGEST_TITLE:
        text = f"{text[:_LONGEST_TITLE]}{ELLIPSIS} ({len(text)} characters)"
    return f"<title>{escape(text)}</title>"


def group(content: str, attributes: Mapping[str, str | float]) -> str:
    """Return elements that share attributes; nothing where there are none."""
    return element("g", attributes, content) if content else ""


def text(
    at: tuple[float, float],
    content: str,
    *,
    colour: str = "ink",
    anchor: str = "start",
    **attributes: str | float,
) -> str:
    """Return a text with its baseline at `at`. Underscores in names of attributes stand for hyphens."""
    written: dict[str, str | float] = {"x": at[0], "y": at[1], **fill(colour)}
    if anchor != "start":
        written["text-anchor"] = anchor
    written |= {key.replace("_", "-"): value for key, value in attributes.items()}
    return element("text", written, escape(content))


def named(  # noqa: PLR0913 - how a name is shown
    at: tuple[float, float],
    name: str,
    width: float,
    *,
    size: float = TEXT,
    colour: str = "ink",
    anchor: str = "start",
    struck: bool = False,
) -> str:
    """Return a user's name, cut to `width` pixels, with the whole in its title if it was cut.

    `struck`: with a line through it.
    """
    shown, whole = cut(name, width, size), clean(name)
    written: dict[str, str | float] = {"x": at[0], "y": at[1], **fill(colour)}
    if anchor != "start":
        written["text-anchor"] = anchor
    if size != TEXT:
        written["font-size"] = size
    if struck:
        written["text-decoration"] = "line-through"
    content = escape(isolated(shown))
    return element("text", written, content if shown == whole else content + title(whole))


def line(
    start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1
) -> str:
    """Return a straight line."""
    path = f"M{number(start[0])} {number(start[1])}L{number(end[0])} {number(end[1])}"
    return element("path", {"d": path, **stroke(colour, width)})


def rectangle(
    corner: tuple[float, float], size: tuple[float, float], colour: str, radius: float = 0
) -> str:
    """Return a filled rectangle. A size below zero counts as zero."""
    attributes: dict[str, str | float] = {
        "x": corner[0],
        "y": corner[1],
        "width": max(0.0, size[0]),
        "height": max(0.0, size[1]),
    }
    if radius:
        attributes["rx"] = radius
    return element("rect", attributes | fill(colour))


def key(
    entries: Sequence[tuple[Callable[[float, float], str], str]],
    left: float,
    top: float,
    width: float,
) -> tuple[str, float]:
    """Return marks with their words, as many in a line as fit into the picture, and the height.

    A mark is drawn around the point that it gets, in a width of 24 pixels.
    """
    x, y, drawn = left, top + 14.0, []
    for mark, words in entries:
        wide = text_width(words, SMALL)
        if x > left and x + _MARK + wide > width - 4:
            x, y = left, y + 18
        drawn.append(mark(x + 12, y - 4))
        at = (x + _MARK, y)
        drawn.append(named(at, words, width - 4 - at[0], size=SMALL, colour="muted"))
        x += _MARK + wide + 20
    return "".join(drawn), y + 6 - top
