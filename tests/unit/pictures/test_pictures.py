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
from tests.unit.pictures.examples import HOSTILE, WITH_NAMES, attempt, capacities, progress

SVG = "{http://www.w3.org/2000/svg}"
# All of Unicode, with control characters and surrogates, which JSON may contain as well.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
PERMITTED = {"svg", "title", "desc", "g", "path", "text", "rect", "circle"}
KIBIBYTES_60 = 60 * 1024


def parsed(picture: Picture, *, standalone: bool = False) -> ET.Element:
    return ET.fromstring(picture.svg(standalone=standalone))


def check_structure(picture: Picture) -> None:
    """Only known elements, no scripts, styles or ids, and the text that a screen reader needs."""
    root = parsed(picture)
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == clean(picture.title)
    assert root[1].tag == f"{SVG}desc"
    assert root[1].text == picture.description
    for each in root.iter():
        assert each.tag.removeprefix(SVG) in PERMITTED
        names = set(each.attrib)
        assert not names & {"style", "id", "href"}
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
    assert clean(long) in [each.text for each in root.iter(f"{SVG}title")]
    shown = {text for each in root.iter(f"{SVG}text") if (text := each.text)}
    assert any("…" in text for text in shown)


@pytest.mark.parametrize("name", [*WITH_NAMES, "loss_curve", "drift_curve", "optimality_curve"])
def test_nothing_and_a_single_value_can_be_drawn(name: str) -> None:
    empty: dict[str, Callable[[], Picture]] = {
        "forgetting_matrix": lambda: pictures.forgetting_matrix(Memory([], [])),
        "forgetting_matrices": lambda: pictures.forgetting_matrices({}),
        "retention_curves": lambda: pictures.retention_curves(Memory([], [])),
        "mean_retention": lambda: pictures.mean_retention({}),
        "capacity_curves": lambda: pictures.capacity_curves(capacities({}, 0.1)),
        "drift_bars": lambda: pictures.drift_bars([]),
        "share_bars": lambda: pictures.share_bars("shares", []),
        "optimality_bars": lambda: pictures.optimality_bars([]),
        "recall_changes": lambda: pictures.recall_changes([]),
        "modality_graph": lambda: pictures.modality_graph([]),
        "version_chain": lambda: pictures.version_chain([]),
        "job_phases": lambda: pictures.job_phases([]),
        "loss_curve": lambda: pictures.loss_curve([]),
        "drift_curve": lambda: pictures.drift_curve({}),
        "optimality_curve": lambda: pictures.optimality_curve({}),
    }
    one: dict[str, Callable[[], Picture]] = {
        "loss_curve": lambda: progress(1, 1),
        "drift_curve": lambda: pictures.drift_curve({1: 0.0}, 0.0),
        "optimality_curve": lambda: pictures.optimality_curve({1: (None, -1.0)}),
    }
    check_structure(empty[name]())
    check_structure(one[name]() if name in one else WITH_NAMES[name](["a"]))


@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3), max_size=8)
)
def test_recall_may_be_missing_anywhere(table: list[list[float | None]]) -> None:
    rows = [MemoryRow(version, "a", recall) for version, recall in enumerate(table, start=1)]
    found = Memory(["a", "b", "c"], rows)
    check_structure(pictures.forgetting_matrix(found))
    check_structure(pictures.retention_curves(found))
    check_structure(pictures.mean_retention({"one": found}))


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=6))
def test_losses_that_are_not_numbers_are_gaps(losses: list[float | None]) -> None:
    check_structure(pictures.loss_curve([attempt(1, [(loss, loss) for loss in losses])]))
    check_structure(pictures.drift_curve(dict(enumerate(losses, start=1)), 0.1))


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


def test_the_other_tables_have_their_numbers() -> None:
    drift = [pictures.DriftRow("a", 0.0123, 0.004), pictures.DriftRow("b", None)]
    assert cells(pictures.drift_bars(drift, 0.01).table.html())[1:] == [
        ["a", "1.23", "0.4"],
        ["b", "–", "–"],
    ]
    found = capacities({"image": {3: 0.5}}, 0.5)
    assert cells(pictures.capacity_curves(found).table.html())[1:3] == [
        ["3", "50.0"],
        ["4 (forecast)", "25.0"],
    ]
    pair = pictures.Pair("image", "text", 0.734, emergent=True)
    (row,) = cells(pictures.modality_graph([pair]).table.html())[1:]
    assert row == ["image", "text", "emergent", "0", "73.4"]
    assert cells(progress(1, 2).table.html())[1:] == [["1", "0", "5", "–"], ["1", "7", "2.5", "–"]]
    best = pictures.Optimality("a", -0.9, -1.25)
    assert cells(pictures.optimality_bars([best]).table.html())[1:] == [["a", "−0.9", "−1.25"]]
    changes = [pictures.RecallChange("a", 0.5, 0.475), pictures.RecallChange("b", None, 0.25)]
    assert cells(pictures.recall_changes(changes, "v1", "v2").table.html()) == [
        ["dataset", "v1", "v2", "change (points)"],
        ["a", "50.0", "47.5", "−2.5"],
        ["b", "–", "25.0", "–"],
    ]
    both = pictures.optimality_curve({4: (-0.9, -1.25)})
    assert cells(both.table.html())[1:] == [["4", "−0.9", "−1.25"]]
    assert cells(pictures.drift_curve({4: 0.01}).table.html())[1:] == [["4", "1"]]
    shares = pictures.share_bars("x", [pictures.Share("a", 0.5, "note")])
    assert cells(shares.table.html())[1:] == [["a", "50.0", "note"]]
    phases = pictures.job_phases(
        [JobPhase(phase="queued", seconds=2.25), JobPhase(phase="b", seconds=1, running=True)]
    )
    assert cells(phases.table.html())[1:] == [
        ["queued", "2.2", "69.2"],
        ["b (running)", "1.0", "30.8"],
    ]
    chain = pictures.version_chain(
        [pictures.ChainVersion(1, "a", "live")], [pictures.Branch("m", 1)]
    )
    assert cells(chain.table.html())[1:] == [["1", "a", "live", "m"]]


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
    versions = [
        pictures.ChainVersion(1, "fashion"),
        pictures.ChainVersion(2, "views"),
        pictures.ChainVersion(3, "fashion", "live", unlearns=True),
    ]
    chain = pictures.version_chain(versions)
    assert struck(chain) == ["fashion"]
    assert len(list(parsed(chain).iter(f"{SVG}circle"))) == 4, "with that of the minus"
    assert "version 3 unlearned fashion" in chain.description
    assert [row[1] for row in chain.table.rows] == ["unlearned fashion", "views", "fashion"]


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
