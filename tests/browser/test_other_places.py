"""Pages behind a path prefix, and with hostile texts."""

from pathlib import Path

from playwright.sync_api import expect
from sqlalchemy import update

from service.database.tables import jobs, promotions, versions
from tests.browser.accessibility import overflowing, violations
from tests.browser.conftest import BuiltSample, OpenPage
from tests.browser.pages import PAGES
from tests.browser.sample import SCENES, Names, progress_of
from tests.browser.served_plane import ServedPlane

Sample = tuple[ServedPlane, Names]

PREFIX = "/teams/vision"
HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(1)</script> \N{RIGHT-TO-LEFT OVERRIDE}gnp.eciovni \N{FAMILY}\N{ZERO WIDTH JOINER}\N{PILE OF POO} {{ 7 * 7 }} ${7 * 7}",
    "x" * 10_000,
)


def test_everything_works_behind_a_path_prefix(
    built_sample: BuiltSample, tmp_path: Path, open_page: OpenPage
) -> None:
    with built_sample.served(tmp_path, PREFIX) as (plane, names):
        page, record = open_page(plane)
        for case in PAGES:
            if case.has_picture:
                page.goto(PREFIX + case.address(names))
        page.goto(f"{PREFIX}/ui/jobs/{names.running}")
        progress_of(plane, names.running, 1, 702)
        expect(page.locator("main")).to_contain_text("702", timeout=30_000)
        page.get_by_role("link", name="Overview").click()
        page.wait_for_url(f"**{PREFIX}/ui/")
        outside = [
            each.url
            for each in record.responses
            if not each.url.startswith(f"{plane.origin}{PREFIX}/ui/")
        ]
        assert outside == []
        page.close()


def test_hostile_texts_are_shown_and_do_nothing(own_sample: Sample, open_page: OpenPage) -> None:
    plane, names = own_sample
    page, record = open_page(plane, width=320)
    page.on("dialog", lambda dialog: record.problems.append(f"dialog: {dialog.message}"))
    addresses = ["/ui/", "/ui/jobs", f"/ui/jobs/{names.running}", f"/ui/models/{SCENES.model}"]
    for text in HOSTILE:
        with plane.context.database.write() as connection:
            connection.execute(update(jobs).values(message=text, dataset_name=text))
            connection.execute(update(promotions).values(reason=text, actor=text))
            connection.execute(update(versions).values(dataset_name=text))
        for address in addresses:
            page.goto(address)
            assert (address, overflowing(page)) == (address, [])
            assert (address, violations(page)) == (address, [])
            assert page.evaluate("document.images.length") == 0
