"""Pictures are valid XML with any name, small at any size, the same each time, and have a table of all numbers."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcl import pictures
from cmcl.contract.api.jobs import JobPhase
from cmcl.pictures import Memory, MemoryRow, Picture
from cmcl.pictures.scales import percent, points_of, significant
from cmcl.pictures.svg import clean
from tests.architecture.repository import ROOT
from tests.unit.pictures.examples import (
    HOSTILE,
    WITH_NAMES,
    memory,
)

SVG = "{http://www.w3.org/2000/svg}"
# All of Unicode, with control characters and surrogates, which JSON may contain as well.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
PERMITTED = {"svg", "title", "desc", "g", "path", "text", "rect", "circle", "a"}
KIBIBYTES_60 = 60 * 1024


def parsed(picture: Picture, *, standalone: bool = False) -> ET.Element:
    return ET.fromstring(picture.svg(standalone=standalone))


def check_structure(picture: Picture) -> None:
    """Only known elements, no scripts, styles or ids, and the text that a screen reader needs."""
    root = parsed(picture)
    assert root.get("role") == ("group" if picture.has_links else "img")
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == clean(picture.title)
    assert root[1].tag == f"{SVG}desc"
    assert root[1].text == picture.description
    for each in root.iter():
        assert each.tag.removeprefix(SVG) in PERMITTED
        names = set(each.attrib)
        assert not names & ({"style", "id"} if each.tag == f"{SVG}a" else {"style", "id", "href"})
        assert not [name for name in names if name.startswith("on")]
        assert "NaN" not in str(each.attrib)
        assert "inf" not in str({name: each.get(name) for name in ("d", "x", "y", "cx", "cy")})


@pytest.mark.parametrize("name", WITH_NAMES)
@given(names=st.lists(ANY_TEXT, min_size=1, max_size=14))
@settings(max_examples=15)
def test_any_name_gives_valid_xml(name: str, names: list[str]) -> None:
    check_structure(WITH_NAMES[name](names))


@pytest.mark.parametrize("name", WITH_NAMES)
def test_hostile_names_are_text(name: str) -> None:
    picture = WITH_NAMES[name](HOSTILE)
    check_structure(picture)
    svg = picture.svg()
    assert "<script" not in svg
    assert "\u202e" not in svg
    assert len(svg) < KIBIBYTES_60, "a name of 10,000 characters is cut, also in its title"
    assert "<script" not in picture.html()


@pytest.mark.parametrize("name", WITH_NAMES)
def test_a_name_that_is_cut_is_whole_in_its_title(name: str) -> None:
    long = "a name that is far too long for the place that it has " * 3
    root = parsed(WITH_NAMES[name]([long, "short"]))
    assert any(clean(long) in (each.text or "") for each in root.iter(f"{SVG}title"))
    shown = {text for each in root.iter(f"{SVG}text") if (text := each.text)}
    assert any("…" in text for text in shown)


NOTHING: dict[str, Callable[[], Picture]] = {
    "forgetting_matrix": lambda: pictures.forgetting_matrix(Memory([], [])),
    "retention_curves": lambda: pictures.retention_curves(Memory([], [])),
    "drift_bars": lambda: pictures.drift_bars({}),
    "recall_changes": lambda: pictures.recall_changes([]),
    "modality_graph": lambda: pictures.modality_graph([]),
    "job_phases": lambda: pictures.job_phases([]),
    "drift_curve": lambda: pictures.drift_curve({}),
    "strip": lambda: pictures.strip(("a", "b"), {}, [(0.0, "a"), (1.0, "b")]),
    "sparkline": lambda: pictures.sparkline(("a", "b"), []),
    "one drift": lambda: pictures.drift_curve({1: 0.0}, 0.0),
    "one value": lambda: pictures.sparkline(("a", "b"), [None, 0.5, None]),
}


@pytest.mark.parametrize("name", [*NOTHING, *WITH_NAMES])
def test_nothing_and_a_single_value_can_be_drawn(name: str) -> None:
    check_structure(NOTHING[name]() if name in NOTHING else WITH_NAMES[name](["a"]))


@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3), max_size=8)
)
def test_recall_may_be_missing_anywhere(table: list[list[float | None]]) -> None:
    rows = [MemoryRow(version, "a", recall) for version, recall in enumerate(table, start=1)]
    found = Memory(["a", "b", "c"], rows)
    check_structure(pictures.forgetting_matrix(found))
    check_structure(pictures.retention_curves(found))


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=6))
def test_values_that_are_not_numbers_are_gaps(values: list[float | None]) -> None:
    check_structure(pictures.drift_curve(dict(enumerate(values, start=1)), 0.1))


def test_a_recall_that_is_no_share_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"version 3: recall is 73\.4, permitted: 0 to 1"):
        Memory(["a"], [MemoryRow(3, "a", [73.4])])
    with pytest.raises(ValueError, match="one for each of the 2 datasets"):
        Memory(["a", "b"], [MemoryRow(3, "a", [0.5])])


# --- Tables -------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """The cells of a table as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self._in_cell = tag in ("th", "td")
        if self._in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def cells(html: str) -> list[list[str]]:
    """All rows, the headings first."""
    reader = Cells()
    reader.feed(html)
    return reader.rows


@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    )
)
def test_every_recall_and_every_change_is_in_the_table_of_the_matrix(
    table: list[list[float | None]],
) -> None:
    names = [f"d{index}" for index in range(len(table[0]))]
    rows = [MemoryRow(10 * index, "d0", recall) for index, recall in enumerate(table)]
    headings, *found = cells(pictures.forgetting_matrix(Memory(names, rows)).table.html())
    assert headings == ["version", "learned", *names]
    learned: dict[int, float] = {}
    for row, (version, _, *shown) in zip(rows, found, strict=True):
        assert version == str(row.version)
        for dataset, (recall, cell) in enumerate(zip(row.recall, shown, strict=True)):
            if recall is None:
                assert cell == ""
            elif dataset not in learned:
                assert cell == percent(recall)
                learned[dataset] = recall
            else:
                assert cell == f"{percent(recall)} ({points_of(recall - learned[dataset])})"


TABLES: dict[str, tuple[Picture, list[list[str]]]] = {
    "bars": (
        pictures.drift_bars({"a": 0.0123, "b": None}, 0.01),
        [["a", "1.23 %"], ["b", "not measured"]],
    ),
    "lines": (
        pictures.drift_curve({3: 0.5, 4: None}, 0.25),
        [["3", "50, over the bound"], ["4", "–"]],
    ),
    "graph": (
        pictures.modality_graph([pictures.Pair("image", "text", 0.734, emergent=True)]),
        [["image", "text", "emergent", "0", "73.4"]],
    ),
    "dumbbells": (
        pictures.recall_changes(
            [pictures.RecallChange("a", 0.5, 0.475), pictures.RecallChange("b", None, 0.25)]
        ),
        [["a", "50.0", "47.5", "−2.5"], ["b", "–", "25.0", "–"]],
    ),
    "phases": (
        pictures.job_phases(
            [
                JobPhase(phase="queued", seconds=2.25),
                JobPhase(phase="b", seconds=1, running=True),
            ]
        ),
        [["queued", "2.2 s"], ["b", "1.0 s so far"]],
    ),
    "strip": (
        pictures.strip(
            ("a", "b"), {"m": [pictures.Mark(0.5, "bad", "failed")]}, [(0, ""), (1, "")]
        ),
        [["m", "failed"]],
    ),
    "sparkline": (pictures.sparkline(("a", "b"), [0.5, None]), [["0", "0.5"], ["1", "–"]]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_has_its_numbers_in_its_table(kind: str) -> None:
    picture, rows = TABLES[kind]
    assert cells(picture.table.html())[1 : len(rows) + 1] == rows


def test_a_value_over_the_bound_is_marked() -> None:
    root = parsed(pictures.drift_bars({"a": 0.2, "b": 0.05}, 0.1))
    assert [each.text for each in root.iter(f"{SVG}text") if each.get("font-weight")] == [
        "20.0 %, over the bound"
    ]


def test_the_cells_of_a_matrix_are_links_that_say_what_they_are() -> None:
    rows = [MemoryRow(1, "a", [0.5, None]), MemoryRow(2, "b", [0.25, 0.75])]
    picture = pictures.forgetting_matrix(Memory(["a", "b"], rows), link=lambda t, s: f"{t}-{s}")
    links = list(parsed(picture).iter(f"{SVG}a"))
    assert [each.get("href") for each in links] == ["0-0", "1-0", "1-1"]
    assert "href" not in picture.svg(standalone=True), "links lead nowhere in a file"
    colours = [link[0].get("class") for link in links]
    assert colours == ["cmcl-f-even", "cmcl-f-loss-5", "cmcl-f-even"]
    assert links[1].get("aria-label") == ("a, version 2: R@1 25.0 %, −25.0 points since learned")
    assert not pictures.forgetting_matrix(
        memory(1000, ["a"] * 100), link=lambda t, s: "x"
    ).has_links


def struck(picture: Picture) -> list[str | None]:
    """The texts with a line through them."""
    found = parsed(picture).iter(f"{SVG}text")
    return [each.text for each in found if each.get("text-decoration") == "line-through"]


def test_a_dataset_that_a_version_unlearned_is_struck_through() -> None:
    rows = [
        MemoryRow(1, "fashion", [0.5, None]),
        MemoryRow(2, "views", [0.5, 0.75]),
        MemoryRow(3, "fashion", [None, 0.75], unlearns=True),
    ]
    matrix = pictures.forgetting_matrix(Memory(["fashion", "views"], rows))
    assert struck(matrix) == ["fashion"]
    assert "not measured" not in matrix.svg()
    assert "Unlearned: fashion in version 3." in matrix.description
    assert matrix.table.rows[2] == ("3", "unlearned fashion", "", "75.0 (0.0)")


def test_small_numbers_keep_their_digits() -> None:
    assert [significant(each) for each in (0.000012345, -0.5, 123456.0, None, float("nan"))] == [
        "1.23e−05",
        "−0.5",
        "1.23e+05",
        "–",
        "–",
    ]
    assert [points_of(each) for each in (0.0004, -0.0004, 0.0006, None)] == [
        "0.0",
        "0.0",
        "+0.1",
        "–",
    ]


# --- The same bytes, and style sheets ---------------------------------------------------------------

_PROGRAM = """
from hashlib import sha256
from tests.unit.pictures.examples import HOSTILE, LARGEST, WITH_NAMES
made = [make(HOSTILE).html(standalone=True) for make in WITH_NAMES.values()]
made += [LARGEST[name]().svg() for name in ("retention_curves", "modality_graph")]
print(sha256("".join(made).encode()).hexdigest())
"""


def test_the_same_data_gives_the_same_bytes_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_only_a_standalone_picture_has_a_style_sheet_and_every_class_has_a_rule() -> None:
    for make in WITH_NAMES.values():
        picture = make(["a", "b"])
        assert "<style" not in picture.svg()
        assert "<style" not in picture.html()
        whole = picture.svg(standalone=True)
        ET.fromstring(whole)
        style, body = whole[: whole.index("</style>")], whole[whole.index("</style>") :]
        used = {name for each in re.findall(r'class="([^"]+)"', body) for name in each.split()}
        assert used
        for name in used:
            assert f".{name}{{" in style
            assert f".{name}{{" in pictures.STYLESHEET
