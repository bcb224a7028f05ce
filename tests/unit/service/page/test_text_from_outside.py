"""Text from outside is shown as text on every page."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, select, update

from service.database.tables import (
    api_keys,
    datasets,
    deliveries,
    events,
    jobs,
    promotions,
    sessions,
    versions,
    webhooks,
)
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.access.operations import address, documents, make_things
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.page.browser import Browser

MOST_BYTES = 150_000


class _Skeleton(HTMLParser):
    """The elements of a document, with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "action")
        ]


def skeleton(text: str) -> _Skeleton:
    found = _Skeleton()
    found.feed(text)
    return found


@dataclass(frozen=True)
class Hostile:
    """A control plane in which texts from outside can be replaced, and its pages with a harmless one."""

    plane: ControlPlane
    browser: Browser
    things: Mapping[str, str]
    harmless: Mapping[str, list[tuple[str, tuple[str, ...]]]]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    plane = ControlPlane(tmp_path_factory.mktemp("hostile"), auth="on", admin_key=ADMIN_KEY)
    things = make_things(plane, KeyClient(plane, ADMIN_KEY), "scenes")
    browser = Browser(plane)
    browser.sign_in(ADMIN_KEY)
    poison(plane, "harmless")
    harmless = {
        each: skeleton(browser.get(address(each, things)).text).elements
        for each in documents(plane.app.state.page)
    }
    yield Hostile(plane, browser, things, harmless)
    plane.close()


def poison(plane: ControlPlane, text: str) -> None:
    """Put a text everywhere where one from outside is stored."""
    row = {"id": text, "file": text[:1024], "row": 3, "reason": text, "place": text}
    prepared = {"rejected_rows": 30, "rejected": [row], "encoders": {}}
    approval = {"decision": "rejected", "actor": text, "reason": text, "at": "2026-11-24T12:00:00Z"}
    said = {"message": text, "reason": text, "actor": text, "attempt": 1}
    values: dict[Table, dict[str, Any]] = {
        jobs: {"message": text, "prepared": prepared, "approval": approval},
        datasets: {"quarantine_reason": text},
        events: {"data": said},
        promotions: {"reason": text, "actor": text[:128]},
        sessions: {"agent": text},
        api_keys: {"created_by": text[:128]},
        webhooks: {"disabled_reason": text},
        deliveries: {"error": text},
    }
    with plane.context.database.write() as connection:
        for table, changes in values.items():
            connection.execute(update(table).values(**changes))
        stored = connection.execute(select(versions.c.number, versions.c.manifest)).all()
        for number, manifest in stored:
            of_version = update(versions).where(versions.c.number == number)
            connection.execute(of_version.values(manifest=poisoned(manifest, text)))


def poisoned(manifest: dict[str, Any], text: str) -> dict[str, Any]:
    """A manifest with the text where a worker writes one."""
    unread = {line["dataset"]: text for line in manifest["learned"]}
    report = {**manifest["report"], "not_evaluated": unread}
    return {**manifest, "code_version": text, "report": report}


PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><a href=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "</td></tr></table><base href=//evil.example>",
    "--><!--<textarea>",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{POP DIRECTIONAL FORMATTING}",
    "\N{PILE OF POO}" * 40,
    "x" * 10_000,
    "<" * 10_000,
    "&lt;b&gt;&amp;amp;",
    "\x01\x1f\x7f\u2028\ufeff",
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(min_size=1, max_size=300).map(lambda text: f"x{text}"))
def test_text_from_outside_is_shown_as_text(hostile: Hostile, text: str) -> None:
    check_shown_as_text(hostile, text)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_payloads_are_shown_as_text(hostile: Hostile, payload: str) -> None:
    check_shown_as_text(hostile, payload)


def check_shown_as_text(hostile: Hostile, text: str) -> None:
    poison(hostile.plane, text.encode("utf-8", "replace").decode())
    for page, harmless in hostile.harmless.items():
        answer = hostile.browser.get(address(page, hostile.things))
        assert answer.status_code == 200
        assert len(answer.content) < MOST_BYTES
        found = skeleton(answer.text)
        assert "javascript:" not in " ".join(found.addresses)
        assert found.elements == harmless, page


def test_every_link_and_form_is_relative(hostile: Hostile) -> None:
    for page in hostile.harmless:
        addresses = skeleton(hostile.browser.get(address(page, hostile.things)).text).addresses
        assert addresses, page
        assert [each for each in addresses if not re.match(r"\.\.?/|#", each)] == [], page


@given(st.text(max_size=60))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@example('"><script>alert(1)</script>')
def test_filters_refuse_what_is_no_name(hostile: Hostile, text: str) -> None:
    for path in ("jobs", "datasets", "events"):
        for name in ("model", "state", "kind", "cursor", "fragment", "done"):
            answer = hostile.browser.request("GET", f"/ui/{path}", params={name: text})
            assert answer.status_code in (200, 422)
            assert not any(
                "script" in tag
                for tag, names in skeleton(answer.text).elements
                if "src" not in names
            )
