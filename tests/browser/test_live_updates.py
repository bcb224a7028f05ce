"""An open page updates itself without layout shifts, and shows a message when it cannot."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from cmcl.contract.api.jobs import JobState
from cmcl.stack_host import Ports
from service.page.formats import ago
from tests.browser.accessibility import violations
from tests.browser.conftest import OpenPage
from tests.browser.sample import BIRDS, SCENES, Names, progress_of
from tests.browser.sample_figures import UPDATES
from tests.browser.served_plane import ServedPlane

Sample = tuple[ServedPlane, Names]

_PATIENCE_MILLISECONDS = 30_000
expect.set_options(timeout=_PATIENCE_MILLISECONDS)


def shifts(page: Page) -> list[object]:
    """Layout shifts since the page was opened, or since the last call."""
    # Observers are called after the next frame.
    page.wait_for_timeout(300)
    found: list[object] = page.evaluate("window.layoutShifts.splice(0)")
    return found


def test_progress_is_shown_without_a_reload_and_without_a_layout_shift(
    own_sample: Sample, open_page: OpenPage
) -> None:
    plane, job = own_sample[0], own_sample[1].running
    page, _ = open_page(plane)
    page.goto(f"/ui/jobs/{job}")
    began = page.evaluate("performance.timeOrigin")
    shifts(page)
    for updates in (468, 702):
        progress_of(plane, job, 1, updates)
        expect(page.locator("main")).to_contain_text(f"{updates * 100 // UPDATES}")
    assert shifts(page) == []
    plane.run_to_end(job)
    assert plane.job(job).state == JobState.PUBLISHED
    expect(page.locator("main")).to_contain_text("published")
    assert page.evaluate("performance.timeOrigin") == began


@pytest.mark.parametrize(
    ("path", "part", "width"),
    [
        ("", "#live_learning", 390),
        ("jobs", "#live_jobs", 390),
    ],
    ids=["overview", "jobs"],
)
def test_a_job_that_starts_moves_nothing(
    own_sample: Sample, open_page: OpenPage, path: str, part: str, width: int
) -> None:
    plane, _ = own_sample
    page, _ = open_page(plane, width=width)
    page.goto("/ui/" + path)
    shifts(page)
    job = plane.post_dataset("towers", BIRDS.model, pair={"first": "audio", "second": "text"})
    if path == "jobs":
        plane.tick_to(job, JobState.RUNNING)
        arrived = page.locator(f"[data-arrivals={part[1:]}]")
        expect(arrived).to_have_text("1 new")
        assert shifts(page) == []
        arrived.click()
        expect(arrived).to_be_hidden()
    expect(page.locator(part)).to_contain_text("towers")
    if path != "jobs":
        for state in (JobState.PREPARING, JobState.SUBMITTING, JobState.RUNNING):
            plane.tick_to(job, state)
            expect(page.locator(part)).to_contain_text(state)
        assert shifts(page) == []


def test_the_observer_of_layout_shifts_sees_one(own_sample: Sample, open_page: OpenPage) -> None:
    plane, _ = own_sample
    page, _ = open_page(plane)
    page.goto("/ui/")
    shifts(page)
    page.evaluate("document.querySelector('h1').setAttribute('hidden', '')")
    assert shifts(page) != []


def test_what_the_reader_does_survives_an_update(own_sample: Sample, open_page: OpenPage) -> None:
    plane, job = own_sample[0], own_sample[1].running
    page, _ = open_page(plane)
    page.goto(f"/ui/jobs/{job}")
    term = page.locator("main button.term", has_text="Loss").first
    term.focus()
    page.keyboard.press("Enter")
    expect(page.locator(":popover-open")).to_have_count(1)
    progress_of(plane, job, 1, 702)
    expect(page.locator("main")).to_contain_text("702")
    expect(page.locator(":popover-open")).to_have_count(1)
    expect(term).to_be_focused()


def test_events_before_a_stream_opens_are_shown(own_sample: Sample, open_page: OpenPage) -> None:
    """The first request for a stream is refused."""
    plane, _ = own_sample
    page, record = open_page(plane)
    held: list[Route] = []

    def hold(route: Route) -> None:
        if not held:
            route.fulfill(status=503)
        held.append(route)

    page.route("**/ui/stream*", hold)
    page.goto("/ui/datasets")
    for _ in range(1500):
        if len(held) > 1:
            break
        page.wait_for_timeout(20)
    assert len(held) > 1
    plane.post_dataset("meanwhile", SCENES.model)
    expect(page.locator("main")).not_to_contain_text("meanwhile")
    held[-1].continue_()
    page.get_by_role("button", name="1 new").click()
    expect(page.locator("main")).to_contain_text("meanwhile")
    record.forgive("503")


def test_times_do_not_depend_on_the_clock_of_the_browser(
    sample: Sample, open_page: OpenPage
) -> None:
    plane, _ = sample
    page, _ = open_page(plane)
    page.clock.install(time=datetime(1999, 1, 1, tzinfo=UTC))
    page.goto("/ui/jobs?state=published")
    page.clock.run_for(90_000)
    shown = page.locator("main time").evaluate_all(
        "times => times.map(each => [each.dateTime, each.textContent])"
    )
    assert shown
    for moment, text in shown:
        later = [plane.clock() + timedelta(seconds=seconds) for seconds in range(85, 100)]
        assert text in {ago(datetime.fromisoformat(moment), now) for now in later}


@contextmanager
def service_process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process, on the folder of a control plane."""
    values = {
        "CMCL_DATABASE_URL": f"sqlite:///{folder / 'cmcl.db'}",
        "CMCL_STORE_URI": (folder / "store").as_uri(),
        "CMCL_AUTH": "off",
        "CMCL_PORT": str(port),
    }
    process = subprocess.Popen([sys.executable, "-m", "service"], env={**os.environ, **values})
    try:
        while not _is_ready(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_killed_service_is_noticed_and_followed_again(
    tmp_path: Path, open_page: OpenPage
) -> None:
    port = Ports.free().service
    with service_process(tmp_path, port) as process:
        page, record = open_page(f"http://127.0.0.1:{port}")
        page.goto("/ui/")
        expect(page.locator("main")).to_contain_text("New model")
        process.send_signal(signal.SIGKILL)
        process.wait()
        expect(page.get_by_role("status")).to_contain_text("Connection lost")
    with service_process(tmp_path, port):
        expect(page.get_by_role("status")).not_to_contain_text("Connection lost")
        body = {"name": "after", "modalities": {"image": 4, "text": 3}}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/models", json=body).status_code == 201
        expect(page.locator("main")).to_contain_text("after")
        page.close()
    record.forgive("ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET")


def test_a_list_is_searched_while_one_types(own_sample: Sample, open_page: OpenPage) -> None:
    """What is found is shown at once, and not announced as new; what arrives later is."""
    plane, _ = own_sample
    page, _ = open_page(plane)
    page.goto("/ui/datasets")
    search = page.get_by_role("searchbox")
    search.press_sequentially("sign")
    expect(page.locator("#live_datasets tbody tr")).to_have_count(1)
    expect(page.get_by_text("1 dataset", exact=True)).to_be_visible()
    assert page.url.endswith("?q=sign")
    expect(search).to_be_focused()
    search.fill("")
    expect(page.locator("#live_datasets tbody tr")).not_to_have_count(1)
    assert page.get_by_role("button", name="new", exact=False).all_inner_texts() in ([], [""])
    plane.post_dataset("meanwhile", SCENES.model)
    expect(page.get_by_role("button", name="1 new")).to_be_visible()


def test_ctrl_k_goes_to_whatever_has_the_name(sample: Sample, open_page: OpenPage) -> None:
    plane, names = sample
    page, _ = open_page(plane)
    page.goto("/ui/events")
    page.keyboard.press("Control+k")
    dialog = page.get_by_role("dialog", name="Go to")
    expect(dialog.get_by_role("searchbox")).to_be_focused()
    expect(dialog.get_by_role("link", name="Overview")).to_be_visible()
    page.keyboard.type(names.collection[:4])
    expect(dialog.get_by_role("listitem")).to_contain_text([f"{names.collection}collection"])
    dialog.get_by_role("searchbox").fill("street-s")
    expect(dialog.get_by_role("listitem")).to_have_text(
        [f"{each}model" for each in (names.model, f"{names.model}-oslo")]
        + ["street-soundsdataset", "street-soundsjob"],
        use_inner_text=False,
    )
    assert violations(page) == []
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/models/{names.model}-oslo")
    page.keyboard.press("Control+k")
    page.keyboard.type("nothing-has-this")
    expect(dialog).to_contain_text("Nothing has this name.")
