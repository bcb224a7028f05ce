"""Trying a model: with a picture that is dropped or chosen, and without scripts."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from cmcl.contract.api.endpoint import CollectionList
from service.page.endpoint import Endpoint
from tests.browser.conftest import OpenPage
from tests.browser.sample_endpoint import thumbnail
from tests.browser.served_plane import ServedPlane, serve
from tests.fakes.endpoint import FakeEndpoint, collection, error, found
from tests.fakes.responses import body
from tests.unit.service.page.trying import ENCODERS, URL, make_model

SEARCH = "/v1/collections/pictures/search"

expect.set_options(timeout=30_000)


@pytest.fixture
def endpoint() -> FakeEndpoint:
    answers = {"GET /v1/collections": body(CollectionList, data=[collection("pictures")])}
    fake = FakeEndpoint({**answers, "GET /v1/collections/pictures": collection("pictures")})
    hits = found("scenes@2", "tram", "bakery", revision=7, exact=True)
    hits["data"][0]["payload"] = {"caption": "a tram", "picture": thumbnail(1)}  # type: ignore[index]
    fake.answers[f"POST {SEARCH}"] = hits
    return fake


@pytest.fixture
def plane(program: str, tmp_path: Path, endpoint: FakeEndpoint) -> Iterator[ServedPlane]:
    """With a model whose pictures and texts are encoded."""
    with serve(tmp_path, encoders=ENCODERS, embeddings_url=URL) as plane:
        plane.app.state.endpoint = Endpoint(URL, None, endpoint.transport)
        make_model(plane)
        yield plane


def test_a_picture_finds_its_neighbours_and_a_refusal_is_shown(
    plane: ServedPlane, endpoint: FakeEndpoint, open_page: OpenPage, tmp_path: Path
) -> None:
    file = tmp_path / "<b>street.png"
    Image.new("RGB", (16, 16)).save(file)
    page, record = open_page(plane)
    page.goto("/ui/try?model=scenes&modality=text")
    page.get_by_label("Picture, sound or video").set_input_files(file)
    expect(page.locator("#modality")).to_have_value("image")
    expect(page.locator("img.preview")).to_have_attribute("alt", "Preview of <b>street.png")
    page.get_by_role("button", name="Search").click()
    results = page.locator("#live_results")
    expect(results).to_contain_text("tram")
    expect(results).to_contain_text("revision 7")
    expect(results.locator(".item img")).to_have_attribute("alt", "Picture of tram")
    query = endpoint.bodies(SEARCH)[0]["query"]
    assert (query["modality"], query.keys()) == ("image", {"modality", "data"})
    endpoint.answers[f"POST {SEARCH}"] = error(429, "too many requests wait")
    page.get_by_role("button", name="Search").click()
    expect(results).to_contain_text("Too many requests wait.")
    assert record.problems == []


@pytest.mark.parametrize(("label", "typed"), [("Text", "a tram"), ("Numbers", "1 2 3")])
def test_what_is_typed_after_a_file_was_chosen_is_searched_for(
    plane: ServedPlane,
    endpoint: FakeEndpoint,
    open_page: OpenPage,
    tmp_path: Path,
    label: str,
    typed: str,
) -> None:
    file = tmp_path / "street.png"
    Image.new("RGB", (16, 16)).save(file)
    page, _ = open_page(plane)
    page.goto("/ui/try?model=scenes&modality=text")
    page.get_by_label("Picture, sound or video").set_input_files(file)
    expect(page.locator("img.preview")).to_be_visible()
    page.locator("summary", has_text="Modality, numbers").click()
    page.get_by_label(label, exact=True).fill(typed)
    expect(page.locator("img.preview")).to_have_count(0)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live_results")).to_contain_text("tram")
    (body,) = endpoint.bodies(SEARCH)
    assert "data" not in body["query"]


def test_a_text_finds_its_neighbours_without_scripts(
    plane: ServedPlane, endpoint: FakeEndpoint, open_page: OpenPage
) -> None:
    page, _ = open_page(plane, java_script_enabled=False)
    page.goto("/ui/try?model=scenes")
    page.get_by_label("Text", exact=True).fill("a tram at <dawn>")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live_results")).to_contain_text("tram")
    assert endpoint.bodies(SEARCH)[0]["query"] == {"modality": "text", "text": "a tram at <dawn>"}
    endpoint.answers[f"POST {SEARCH}"] = httpx.Response(200, content=b"no JSON")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live_results")).to_contain_text("answer is not understood")
