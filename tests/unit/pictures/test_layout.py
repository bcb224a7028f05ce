"""Text stays inside of its picture and does not overlap, at every width and with every name."""

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cmcl.pictures import Picture, arranged
from cmcl.pictures.svg import text_width
from tests.unit.pictures.examples import HOSTILE, LARGEST, WITH_NAMES, WITHOUT_NAMES
from tests.unit.pictures.test_pictures import SVG

NAMES = ("birds", "summer-2025-flowers", "speech of many people in many places", "x", "har-it")
TWENTY = tuple(f"dataset number {index}" for index in range(20))
MOVED = re.compile(r"translate\(([-\d.]+) ([-\d.]+)\)")
# Coordinates have one decimal.
ROUNDING = 0.2


@dataclass(frozen=True)
class Box:
    """Where a text lies, by the same estimate of widths that the pictures use."""

    text: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        return (
            self.left < other.right - ROUNDING
            and other.left < self.right - ROUNDING
            and self.top < other.bottom - ROUNDING
            and other.top < self.bottom - ROUNDING
        )


def boxes(svg: str) -> list[Box]:
    """The boxes of all texts. Letters without a descender are three quarters of their size tall."""

    def walk(
        each: ET.Element, moved: tuple[float, float], size: float, anchor: str
    ) -> Iterator[Box]:
        if found := MOVED.fullmatch(each.get("transform", "")):
            moved = (moved[0] + float(found[1]), moved[1] + float(found[2]))
        size, anchor = float(each.get("font-size", size)), each.get("text-anchor", anchor)
        if each.tag == f"{SVG}text" and each.text:
            x, y = (float(each.get(name, 0)) + by for name, by in zip("xy", moved, strict=True))
            wide = text_width(each.text, size)
            left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            yield Box(each.text, left, left + wide, y - 0.75 * size, y)
        for inner in each:
            yield from walk(inner, moved, size, anchor)

    return list(walk(ET.fromstring(svg), (0.0, 0.0), 12.0, "start"))


def check_text(picture: Picture) -> None:
    found = boxes(picture.svg())
    for box in found:
        assert box.left >= -ROUNDING, box
        assert box.right <= picture.width + ROUNDING, box
        assert box.top >= -ROUNDING, box
        assert box.bottom <= picture.height + ROUNDING, box
    for one, other in itertools.combinations(found, 2):
        assert not one.overlaps(other), (one, other)


@pytest.mark.parametrize("width", [300, 480, 720, 1120])
@pytest.mark.parametrize("name", [*WITH_NAMES, *WITHOUT_NAMES])
def test_text_stays_inside_and_does_not_overlap(name: str, width: float) -> None:
    draw = (WITH_NAMES | WITHOUT_NAMES)[name]
    for names in (NAMES[:1], NAMES, TWENTY, HOSTILE):
        check_text(draw(names, width))


@pytest.mark.parametrize("name", LARGEST)
def test_so_it_does_in_the_largest_pictures_which_stay_small(name: str) -> None:
    picture = LARGEST[name]()
    check_text(picture)
    assert len(picture.svg()) < 60 * 1024


def test_pictures_in_one_file_do_not_overlap() -> None:
    drawn = {name: draw(NAMES) for name, draw in WITH_NAMES.items()}
    found = boxes(arranged("all", drawn, 2))
    assert drawn.keys() <= {box.text for box in found}
    for one, other in itertools.combinations(found, 2):
        assert not one.overlaps(other), (one, other)


def test_an_overlap_would_be_found() -> None:
    picture = WITH_NAMES["drift_bars"](NAMES)
    at = boxes(picture.svg())[0]
    text = f'<text x="{at.left}" y="{at.bottom}">overlapping</text>'
    broken = Picture("", "", picture.table, 720, picture.height, picture.body + text)
    with pytest.raises(AssertionError):
        check_text(broken)
    narrow = Picture("", "", picture.table, 200, picture.height, picture.body)
    with pytest.raises(AssertionError):
        check_text(narrow)
