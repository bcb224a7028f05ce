"""The graph of modalities: learned pairs with their recall, and pairs that were never trained."""

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured
from tests.unit.service.page.browser import Browser, rows_of, text_of

FOUR = {"image": 4, "text": 3, "audio": 4, "touch": 2, "smell": 2}
GRAPH = "/ui/models/senses/graph"


@pytest.fixture
def senses(plane: ControlPlane) -> ControlPlane:
    """A control plane with a model of five modalities that has learned nothing."""
    plane.create_model("senses", modalities=FOUR)
    return plane


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys."""
    return Browser(plane)


def test_before_the_first_dataset_it_names_two_modalities(
    senses: ControlPlane, reader: Browser
) -> None:
    page = reader.get(GRAPH).text
    text = text_of(page)
    assert "No pair was learned yet" in text
    assert "cmcl dataset add FOLDER --model senses --pair image,text" in text
    assert rows_of(page, "modalities")[0][:3] == ["image", "4", "0"]
    assert "never trained" not in text


def test_learned_pairs_have_the_recall_of_their_datasets(
    senses: ControlPlane, reader: Browser
) -> None:
    publish_measured(senses, "one", "senses", recalls={"one": 0.8})
    publish_measured(senses, "two", "senses", ("text", "image"))
    publish_measured(senses, "three", "senses", ("audio", "text"))
    publish_measured(senses, "four", "senses", recalls={"one": 0.75, "two": 0.25, "four": 0.5})
    page = reader.get(GRAPH).text
    assert rows_of(page, "pairs") == [
        ["image, text", "3", "48", "50.0 %", "two 25.0 %", "four in v4"],
        ["audio, text", "1", "16", "no held-out rows", "– none", "three in v3"],
    ]
    assert [row[2] for row in rows_of(page, "modalities")] == ["3", "4", "1", "0", "0"]


def test_a_pair_that_was_never_trained_shows_the_recall_of_what_is_measured_only(
    senses: ControlPlane, reader: Browser
) -> None:
    views = {"first": "image", "second": "audio"}
    job = senses.post_dataset("views", "senses", pair=views, evaluate_only=True)
    assert "no live version yet" in text_of(
        reader.get(f"/ui/datasets/{senses.run_to_end(job).dataset}").text
    )
    for name, first in (("one", "image"), ("two", "audio")):
        pair = {"first": first, "second": "text"}
        senses.run_to_end(senses.post_dataset(name, "senses", pair=pair))
    page = reader.get(GRAPH).text
    (found,) = [row for row in rows_of(page, "others") if row[0] == "audio, image"]
    assert "cmcl dataset add FILE --model senses --pair audio,image --evaluate-only" in text_of(
        page
    )
    assert "R@1 is 60.0 % on datasets that are measured only" in found[2]
    assert "never trained together" in page, "the dashed edge of the picture"
    version = text_of(reader.get("/ui/models/senses/versions/2").text)
    assert "Measured only" in version
    dataset = text_of(reader.get(f"/ui/datasets/{senses.job(job).dataset}").text)
    assert "60.0 % in v2" in dataset
    shown = text_of(reader.get(f"/ui/jobs/{job}").text)
    assert "and with every later one" in shown


def test_pairs_that_were_never_trained_are_connected_over_others_or_mean_nothing(
    senses: ControlPlane, reader: Browser
) -> None:
    publish_measured(senses, "one", "senses")
    publish_measured(senses, "two", "senses", ("audio", "text"))
    publish_measured(senses, "three", "senses", ("touch", "smell"))
    page = reader.get(GRAPH).text
    others = {row[0]: row[1] for row in rows_of(page, "others")}
    assert others.pop("audio, image") == "over text"
    assert sorted(others) == [
        "audio, smell",
        "audio, touch",
        "image, smell",
        "image, touch",
        "smell, text",
        "text, touch",
    ]
    assert set(others.values()) == {"not connected"}
    text = text_of(page)
    assert "The datasets connect 2 groups of modalities" in text
    assert "audio, image, text" in text
    # A dataset between the groups joins them.
    publish_measured(senses, "four", "senses", ("touch", "text"))
    page = reader.get(GRAPH).text
    others = {row[0]: row[1] for row in rows_of(page, "others")}
    assert others["audio, smell"] == "over text, touch"
    assert others["smell, text"] == "over touch"
    assert "not connected" not in text_of(page)
    assert "groups of modalities" not in text_of(page)
