"""Colours of the pictures, and the style sheet that makes them follow light and dark.

Every colour is a CSS custom property with a fallback for light and one for dark: a page sets
`--cmcl-ink`, or leaves it to the fallback, which follows the page's `color-scheme`. Elements also have the
light colour as a presentation attribute, for programs that read no style sheets.
"""

import re
from collections.abc import Iterable, Mapping

# The eight colours of series differ by at least 0.12 (OKLab) in normal vision and in simulated protanopia,
# deuteranopia and tritanopia (Machado 2009), and by a contrast of 3:1 from the surface.
_SERIES = (
    ("#0f62c0", "#5ba3f5"),
    ("#d17a02", "#ee6d18"),
    ("#1f5562", "#6cf6fd"),
    ("#43108d", "#6c59e3"),
    ("#6e5d14", "#e4e83e"),
    ("#6f9e8a", "#9dcd97"),
    ("#6b1807", "#c8393a"),
    ("#c374e8", "#8d6294"),
)
# From a small change to a large one. Text has a contrast of 4.5:1: `ink` on the first three, `strong` on
# the last two.
_LOSSES = (
    ("#fdeee2", "#33261c"),
    ("#fad3b4", "#54331a"),
    ("#f3ab74", "#783f12"),
    ("#bd520a", "#9c490a"),
    ("#8a3703", "#bf5405"),
)
_GAINS = (
    ("#e6f0fb", "#1d2b3b"),
    ("#c0daf3", "#1f3d5c"),
    ("#8cb9e6", "#20507f"),
    ("#2468b4", "#2062a3"),
    ("#124a87", "#2474c4"),
)
SERIES = len(_SERIES)
STEPS = len(_LOSSES)

# Name, and its colour in light and in dark.
COLOURS: Mapping[str, tuple[str, str]] = {
    "surface": ("#ffffff", "#15181c"),
    "ink": ("#1f2328", "#e6e9ec"),
    "muted": ("#59636e", "#9aa4af"),
    "grid": ("#e3e6ea", "#2b3138"),
    "line": ("#868f99", "#7d8792"),
    "even": ("#f1f3f5", "#20252b"),
    "strong": ("#ffffff", "#ffffff"),
    "accent": ("#0f62c0", "#5ba3f5"),
    "good": ("#1a7f37", "#4cc268"),
    "warn": ("#9a5b00", "#f0a44b"),
    "bad": ("#b3321a", "#ff8a73"),
    **{f"{index}": pair for index, pair in enumerate(_SERIES, start=1)},
    **{f"loss-{step}": pair for step, pair in enumerate(_LOSSES, start=1)},
    **{f"gain-{step}": pair for step, pair in enumerate(_GAINS, start=1)},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


def series(index: int) -> str:
    """Return the name of the colour of a series, counted from 0. Colours repeat after the eighth."""
    return str(index % SERIES + 1)


def fill(colour: str) -> dict[str, str]:
    """Return the attributes of a filled element."""
    return {"class": f"cmcl-f-{colour}", "fill": COLOURS[colour][0]}


def stroke(colour: str, width: float = 1) -> dict[str, str]:
    """Return the attributes of a line of that width in pixels."""
    return {
        "class": f"cmcl-s-{colour}",
        "fill": "none",
        "stroke": COLOURS[colour][0],
        "stroke-width": f"{width:g}",
    }


def stylesheet(names: Iterable[str]) -> str:
    """Return the rules of the classes `names`."""
    return _FRAME + "".join(_rule(name) for name in names)


def used_in(markup: str) -> list[str]:
    """Return the classes of colours that a picture has, each once, in a fixed order."""
    return sorted(set(re.findall(r"cmcl-[fs]-[a-z0-9-]+", markup)))


def _rule(name: str) -> str:
    _, kind, colour = name.split("-", 2)
    light, dark = COLOURS[colour]
    attribute = "fill" if kind == "f" else "stroke"
    return f".{name}{{{attribute}:var(--cmcl-{colour},light-dark({light},{dark}))}}\n"


# A picture that is a document of its own follows the reader's preference; inside a page, the page decides.
_FRAME = (
    "svg.cmcl-picture:root{color-scheme:light dark}\n"
    f".cmcl-picture{{font-family:var(--cmcl-font,{FONT});font-variant-numeric:tabular-nums;"
    "max-width:none}\n"
)
_FIGURE = """\
.cmcl-figure{margin:0}
.cmcl-figure figcaption{margin:0 0 .5em}
.cmcl-scroll{overflow-x:auto}
.cmcl-table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.875em}
.cmcl-table caption{text-align:start;padding:.25em 0}
.cmcl-table th,.cmcl-table td{padding:.2em .6em;text-align:end;\
border-bottom:1px solid var(--cmcl-grid,light-dark(#e3e6ea,#2b3138))}
.cmcl-table th[scope=row],.cmcl-table .cmcl-text{text-align:start}
"""
# All rules, for the css of a page that has pictures without style sheets of their own.
STYLESHEET = (
    stylesheet(f"cmcl-{kind}-{colour}" for colour in COLOURS for kind in ("f", "s")) + _FIGURE
)
