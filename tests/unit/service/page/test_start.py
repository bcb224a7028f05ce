"""The beginning without a shell: an empty overview, the form of a new model, and the sample data."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.page import start
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.page.browser import Browser, text_of
from tests.unit.service.page.trying import ENCODERS

FORM: dict[str, Any] = {
    "name": "mine",
    "modality": ["image", "sound", "", ""],
    "encoder": ["eyes", "", "", ""],
    "width": ["", "12", "", ""],
    "policy": "preserve",
}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane without a model, with encoders of pictures and texts."""
    plane = ControlPlane(tmp_path, encoders=ENCODERS)
    yield plane
    plane.close()


def test_an_empty_overview_offers_to_begin(fresh: ControlPlane) -> None:
    page = Browser(fresh).get("/ui/").text
    assert "Try it with sample data" in page
    assert 'href="./new"' in page
    form = Browser(fresh).get("/ui/new").text
    # Pictures and texts are suggested; features of one's own are the last entry.
    assert [name in form for name in ("image, by eyes", "text, by words")] == [True, True]
    assert form.count(" selected") == 4


def test_a_model_is_created_and_its_first_dataset_is_asked_for(fresh: ControlPlane) -> None:
    browser = Browser(fresh)
    answer = browser.post("/ui/new", data=FORM)
    after = browser.follow(answer)
    assert "The model was created." in text_of(after.text)
    model = fresh.model("mine")
    assert (model.spec.policy, model.spec.modalities["image"].encoder) == ("preserve", "eyes")
    assert {name: each.width for name, each in model.spec.modalities.items()} == {
        "image": 4,
        "sound": 12,
    }


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"name": "My Model"}, "name", "permitted: lower-case letters"),
        ({"modality": ["image", "", "", ""]}, "modalities", "two"),
        ({"encoder": ["", "", "", ""]}, "modality-0", "neither a width nor an encoder"),
        ({"encoder": ["nobody", "", "", ""]}, "encoder-0", "there is no encoder"),
        ({"width": ["", "wide", "", ""]}, "width-1", "valid integer"),
        ({"modality": ["", "", "My sounds", "image"]}, "modality-2", "a lower-case letter"),
    ],
)
def test_a_form_with_an_error_is_returned_with_its_values_and_the_error_at_the_field(
    fresh: ControlPlane, changes: dict[str, object], place: str, message: str
) -> None:
    form = {**FORM, **changes}
    answer = Browser(fresh).post("/ui/new", data=form)
    assert answer.status_code == 422
    (said,) = re.findall(r'class="error" id="(.+?)-error">(.*?)</p>', answer.text)
    assert said[0] == place
    assert message in said[1].lower()
    assert answer.text.count("aria-invalid") == (place != "modalities")
    shown = [*re.findall(r'name="(?:name|modality|width)"[^>]* value="(.*?)"', answer.text)]
    rows = zip(form["modality"], form["width"], strict=True)
    assert shown == [form["name"], *(value for row in rows for value in row)]
    assert re.search(r'value="preserve" checked', answer.text)


def test_a_taken_name_is_an_error_of_the_name(fresh: ControlPlane) -> None:
    browser = Browser(fresh)
    browser.post("/ui/new", data=FORM)
    answer = browser.post("/ui/new", data={**FORM, "policy": "improve"})
    assert answer.status_code == 409
    assert re.search(r'id="name-error">[^<]*mine', answer.text)


def test_the_sample_becomes_one_job_however_often_it_is_asked_for(fresh: ControlPlane) -> None:
    browser = Browser(fresh)
    first, second = (browser.target(browser.post("/ui/sample")) for _ in range(2))
    assert first == second
    job = first.partition("?")[0].rpartition("/")[2]
    (shard,) = fresh.client.get(f"/v1/datasets/{fresh.dataset_of(job).id}").json()["shards"]
    assert shard["name"] == "emoji.tar"


def test_without_its_file_or_encoders_no_sample_is_offered(
    plane: ControlPlane, fresh: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Browser(plane).post("/ui/sample").status_code == 404
    monkeypatch.setattr(start, "_SAMPLE", Path("nothing-here.tar"))
    assert "Try it with sample data" not in Browser(fresh).get("/ui/").text
