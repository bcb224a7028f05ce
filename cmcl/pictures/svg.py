"""SVG elements as text: names that are safe in XML, text of a bounded width, and numbers.

Names come from users. They are escaped, lose what XML does not permit and what would reorder the text
around them, and are cut to the width that they have, with the whole in a `<title>`.
"""

import re
import unicodedata
from collections.abc import Mapping

from cmcl.pictures.theme import fill, stroke

# Font sizes in pixels.
TEXT, SMALL = 12.0, 11.0
ELLIPSIS = "…"
# A `<title>` longer than this is cut: a page with a hundred names stays small.
_LONGEST_TITLE = 1000
_BRIEF = 60
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


def text(  # noqa: PLR0913 - how a text looks
    at: tuple[float, float],
    content: str,
    width: float | None = None,
    *,
    size: float = TEXT,
    colour: str = "ink",
    anchor: str = "start",
    weight: str = "",
    decoration: str = "",
) -> str:
    """Return a text with its baseline at `at`, cut to `width` pixels, with the whole in its title if it was cut."""
    whole = clean(content)
    shown = whole if width is None else cut(whole, width, size)
    written: dict[str, str | float] = {"x": at[0], "y": at[1], **fill(colour)}
    if anchor != "start":
        written["text-anchor"] = anchor
    if size != TEXT:
        written["font-size"] = size
    if weight:
        written["font-weight"] = weight
    if decoration:
        written["text-decoration"] = decoration
    inner = escape(isolated(shown))
    return element("text", written, inner if shown == whole else inner + title(whole))


def path(
    points: str,
    colour: str,
    width: float = 1,
    says: str = "",
    *,
    dashes: str = "",
    opacity: str = "",
) -> str:
    """Return a line along the commands of `points`. `dashes`: lengths of dashes and of gaps."""
    look = {"stroke-dasharray": dashes} if dashes else {}
    look |= {"stroke-opacity": opacity} if opacity else {}
    drawn = {"d": points, **stroke(colour, width), **look}
    return element("path", drawn, title(says) if says else "")


def circle(
    centre: tuple[float, float],
    radius: float,
    colour: str,
    says: str = "",
    *,
    is_ring: bool = False,
) -> str:
    """Return a disc or, with `is_ring`, a ring on the surface."""
    look: dict[str, str] = fill(colour)
    if is_ring:
        inside, edge = fill("surface"), stroke(colour, 2)
        look = {**edge, **inside, "class": f"{inside['class']} {edge['class']}"}
    where: dict[str, str | float] = {"cx": centre[0], "cy": centre[1], "r": radius}
    return element("circle", where | look, title(says) if says else "")


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
