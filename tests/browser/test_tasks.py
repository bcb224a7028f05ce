"""Five tasks by clicking, each from the overview: how many clicks each takes. Choosing files and typing are no clicks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from cmcl.contract.api.endpoint import CollectionList
from service.page.endpoint import Endpoint
from tests.browser.conftest import BuiltSample, OpenPage
from tests.browser.sample import BIRDS, SCENES, Names
from tests.browser.sample_endpoint import thumbnail_bytes
from tests.browser.served_plane import ServedPlane, serve
from tests.fakes.endpoint import Answer, FakeEndpoint, collection, found
from tests.fakes.responses import body
from tests.unit.service.page.trying import ENCODERS, URL

expect.set_options(timeout=30_000)


@dataclass
class Reader:
    """A user who clicks on what is visible on the page that is open, and begins at the overview."""

    page: Page
    clicks: int = 0

    def __post_init__(self) -> None:
        self.page.goto("/ui/")

    def click(self, name: str, within: Locator | None = None) -> None:
        """Click on the first link or button whose name begins so."""
        place = within or self.page.locator("body")
        found = place.locator("a, button").filter(has_text=name, visible=True)
        found.first.click()
        self.clicks += 1


@pytest.fixture(scope="module")
def served(
    built_sample: BuiltSample, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServedPlane, Names]]:
    with built_sample.served(tmp_path_factory.mktemp("tasks")) as plane_and_names:
        yield plane_and_names


@pytest.fixture
def fresh(program: str, tmp_path: Path) -> Iterator[ServedPlane]:
    """A control plane without a model, with encoders of pictures and texts."""
    with serve(tmp_path, encoders=ENCODERS, embeddings_url=URL) as plane:
        listed = collection("pictures", "emoji")
        answers: dict[str, Answer] = {
            "GET /v1/collections": body(CollectionList, data=[listed]),
            "GET /v1/collections/pictures": listed,
            "POST /v1/collections/pictures/search": found(
                "emoji@1", "red apple", revision=7, exact=True
            ),
        }
        plane.app.state.endpoint = Endpoint(URL, None, FakeEndpoint(answers).transport)
        yield plane


def test_from_the_sample_data_to_the_first_search(fresh: ServedPlane, open_page: OpenPage) -> None:
    page, _ = open_page(fresh)
    reader = Reader(page)
    reader.click("Try it with sample data")
    expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")
    # Encoders run on a cluster, which this control plane has not: features stand in for the pictures.
    assert fresh.model("emoji").spec.modalities["image"].encoder == "eyes"
    fresh.run_to_end(fresh.post_dataset("features", "emoji"))
    reader.click("Try it")
    page.get_by_label("Text", exact=True).fill("a red apple")
    reader.click("Search", page.locator("main form"))
    expect(page.locator("#live_results")).to_contain_text("red apple")
    assert reader.clicks == 3


def test_a_new_model_learns_a_folder_of_pictures(
    fresh: ServedPlane, open_page: OpenPage, tmp_path: Path
) -> None:
    folder = tmp_path / "fruits"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(thumbnail_bytes(number))
        (folder / f"{number}.txt").write_text(f"fruit {number}")
    page, _ = open_page(fresh)
    reader = Reader(page)
    reader.click("New model")
    page.get_by_label("Name").fill("fruits")
    reader.click("Create the model")
    with page.expect_file_chooser() as chooser:
        reader.click("Choose a folder")
    chooser.value.set_files(folder)
    expect(page.locator("[data-found]")).to_contain_text("3 pairs")
    reader.click("Upload and post")
    expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")
    assert reader.clicks == 4


def test_which_dataset_lost_most_and_why(
    served: tuple[ServedPlane, Names], open_page: OpenPage
) -> None:
    page, _ = open_page(served[0])
    reader = Reader(page)
    reader.click(SCENES.model)
    reader.click("Memory")
    verdict = page.locator(".verdict a").first.inner_text()
    assert verdict
    # The cell of that dataset in the newest version.
    cell = page.locator(f"#figure-matrix .at-wide a[aria-label^='{verdict}, version 7']")
    cell.click()
    reader.clicks += 1
    expect(page.locator("#why")).to_contain_text(f"Why: {verdict}")
    expect(page.locator("#why")).to_contain_text("changed it by")
    assert reader.clicks == 3


def test_two_versions_are_compared_and_another_one_is_promoted(
    served: tuple[ServedPlane, Names], open_page: OpenPage
) -> None:
    plane, _ = served
    page, _ = open_page(plane)
    reader = Reader(page)
    reader.click(SCENES.model)
    reader.click("Compare two")
    expect(page.locator(".verdict")).to_contain_text("in both")
    reader.click("Promote")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Promote v6")
    reader.click("Promote v6", page.locator("main form"))
    expect(page.locator(".notice.good")).to_contain_text("promoted")
    assert plane.model(SCENES.model).live_version == 6
    assert reader.clicks == 4


def test_a_refused_dataset_is_repaired(
    served: tuple[ServedPlane, Names], open_page: OpenPage
) -> None:
    plane, names = served
    page, _ = open_page(plane)
    reader = Reader(page)
    broken = page.locator("#live_broken")
    if names.failed in broken.inner_html():
        reader.click(plane.job(names.failed).dataset_name, broken)
    else:
        # The model has failed again since.
        page.goto(f"/ui/jobs/{names.failed}")
        reader.clicks += 1
    reader.click("Accept it without these rows")
    expect(page.locator("h1")).to_contain_text(plane.job(names.failed).dataset_name)
    reader.click("Accept without")
    expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")
    assert plane.job(page.url.partition("?")[0].rpartition("/")[2]).model == BIRDS.model
    assert reader.clicks == 3
