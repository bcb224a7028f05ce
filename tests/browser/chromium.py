"""Chromium, and pages that record what goes wrong on them."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox; the other options stop the browser's requests to its vendor.
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

Scheme = Literal["light", "dark"]

# Runs before any script of the page, outside of its policy.
_OBSERVERS = """
document.addEventListener("securitypolicyviolation", event =>
    console.error(`policy violation: ${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
window.layoutShifts = [];
new PerformanceObserver(list => {
    for (const entry of list.getEntries())
        window.layoutShifts.push({
            value: entry.value,
            nodes: entry.sources.map(source => source.node?.outerHTML?.slice(0, 120) ?? ""),
        });
}).observe({type: "layout-shift", buffered: true});
"""


def find_chromium() -> str | None:
    """Path of a browser, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def launch(program: str) -> Iterator[Browser]:
    """Run the browser until the block ends. Inside, `asyncio.run` does not work in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()


@dataclass
class Record:
    """Problems of a page since it was opened, and what it loaded."""

    origin: str
    problems: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)

    def forgive(self, pattern: str) -> None:
        """Remove the problems that match. There must be one: a pattern that matches nothing is stale."""
        kept = [problem for problem in self.problems if not re.search(pattern, problem)]
        assert len(kept) < len(self.problems), f"no problem matches {pattern!r}: {self.problems}"
        self.problems[:] = kept

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console {message.type}: {message.text}")

    def on_request(self, request: Request) -> None:
        if not is_within(request.url, self.origin):
            self.problems.append(f"request to another origin: {request.url[:200]}")

    def on_response(self, response: Response) -> None:
        self.responses.append(response)
        if response.status >= 400:
            self.problems.append(f"{response.status} of {response.request.method} {response.url}")


def is_within(url: str, origin: str) -> bool:
    """Whether the address is one of the origin, or content of the page itself."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob") or f"{parts.scheme}://{parts.netloc}" == origin


@contextmanager
def open_page(
    browser: Browser,
    origin: str,
    *,
    scheme: Scheme = "light",
    width: int = 1280,
    height: int = 900,
    cookies: Any = (),
    **options: Any,
) -> Iterator[tuple[Page, Record]]:
    """Open an empty page whose relative addresses begin at `origin`, in a profile of its own.

    The test asserts at its end that the record has no problems.
    """
    context = browser.new_context(
        base_url=origin,
        color_scheme=scheme,
        viewport={"width": width, "height": height},
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
        **options,
    )
    context.add_init_script(_OBSERVERS)
    context.add_cookies(list(cookies))
    record = Record(origin)
    page = context.new_page()
    page.on("console", record.on_console)
    page.on("pageerror", lambda error: record.problems.append(f"script error: {error}"))
    page.on("request", record.on_request)
    page.on("response", record.on_response)
    try:
        yield page, record
        if not page.is_closed():
            # Violations of the policy are reported a task later.
            page.wait_for_timeout(50)
    finally:
        context.close()
