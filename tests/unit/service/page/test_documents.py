"""What all pages have in common: files, headers, live parts, problems, text from outside, other sites."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, select, update

from cmcl.contract.version import PARTS
from service.database.tables import (
    datasets,
    events,
    jobs,
    promotions,
    sessions,
    versions,
)
from service.page.endpoint import Endpoint
from service.page.rendering import StaticFiles
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint
from tests.unit.service.access.operations import address, documents, make_things
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.page.browser import ORIGIN, Browser, text_of
from tests.unit.service.page.trying import URL, open_plane


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys, with one model."""
    return Browser(plane)


def test_files_are_cached_for_ever_under_the_digest_in_the_page(browser: Browser) -> None:
    page = browser.get("/ui/login").text
    addresses = re.findall(r'(?:href|src)="(\./static/[^"]+)"', page)
    assert {link.rpartition(".")[2] for link in addresses} == {"css", "js", "svg"}
    for link in addresses:
        answer = browser.get(f"/ui/{link}")
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        plain = browser.get(f"/ui/{link}", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content


def test_a_file_under_the_digest_of_another_release_is_not_cached(browser: Browser) -> None:
    answer = browser.get("/ui/static/0123456789abcdef/style.css")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


def test_other_files_are_not_there(browser: Browser) -> None:
    for name in ("other.css", "..%2fpage.js", "page.py", "%00", "style.css%2f"):
        assert browser.get(f"/ui/static/0123456789abcdef/{name}").status_code in (303, 404), name


def test_every_script_imports_files_that_are_there() -> None:
    files = StaticFiles()
    scripts = [name for name in files.names if name.endswith(".js")]
    assert "page.js" in scripts
    for name in scripts:
        text = bytes(files.response(files.digest, name, "").body).decode()
        imported = set(re.findall(r'from "\./([^"]+)"', text))
        assert imported <= files.names, name


def test_an_outage_of_the_database_is_a_page_that_says_so(
    plane: ControlPlane, reader: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.context.database.close()
    (plane.folder / "cmcl.db").rename(plane.folder / "elsewhere.db")
    (plane.folder / "cmcl.db").mkdir()
    answer = reader.get("/ui/")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "Database unavailable" in answer.text
    assert "Nothing was changed" in answer.text


def test_unexpected_errors_are_pages_with_the_request_id(
    reader: Browser, plane: ControlPlane
) -> None:
    plane.app.state.probes = None
    answer = reader.get("/ui/", headers={"X-Request-Id": "the-one"})
    assert answer.status_code == 500
    assert "the-one" in answer.text
    assert "Traceback" not in answer.text


def test_live_parts_are_the_elements_of_the_whole_page(reader: Browser) -> None:
    page = reader.get("/ui/").text
    names = re.findall(r'id="(live_[a-z_]+)" data-live', page)
    assert len(names) >= 4
    parts = reader.get("/ui/?" + "&".join(f"fragment={name}" for name in names)).text
    assert "<html" not in parts
    for name in names:
        part = reader.get(f"/ui/?fragment={name}").text.strip()
        assert part in parts
        # The same but for the times, which went on.
        assert re.sub(r"<time.*?</time>", "", part) in re.sub(r"<time.*?</time>", "", page)


def test_a_live_part_is_rendered_once_however_often_it_is_named(reader: Browser) -> None:
    part = reader.get("/ui/?fragment=live_tiles").text
    assert len(reader.get("/ui/?" + "&".join(["fragment=live_tiles"] * 500)).text) == len(part)


def test_forms_that_cannot_be_read_are_refused(browser: Browser) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"\xff", b"&".join([b"a=1"] * 101), b"key=%ff", b"x" * 20_000):
        answer = browser.post("/ui/login", content=body, headers=headers)
        is_large = len(body) > 10_000
        assert answer.status_code == (413 if is_large else 422), body[:20]
        assert is_large or "the form cannot be read" in answer.text, body[:20]


def test_attributes_of_templates_are_quoted() -> None:
    """Autoescaping protects a value within quotes alone."""
    folder = Path(__file__).parents[4] / "service" / "page" / "templates"
    templates = list(folder.glob("**/*.html"))
    assert templates
    for template in templates:
        text = template.read_text()
        assert not re.search(
            r"\s[\w-]+=\s*\{\{", re.sub(r"\{%.*?%\}", "", text, flags=re.DOTALL)
        ), template
        assert "|safe" not in text.replace("svg()|safe", "").replace("html()|safe", ""), template
        assert not re.search(r"\son[a-z]+=|\sstyle=|<script(?! type=\"module\" src)", text), (
            template
        )


NO_ORIGIN = {"Origin": None, "Sec-Fetch-Site": None}
FOREIGN: list[dict[str, str | None]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": None},
    {"Origin": "http://localhost:81", "Sec-Fetch-Site": None},
    {"Origin": "null", "Sec-Fetch-Site": None},
    {"Origin": f"{ORIGIN}.evil.example", "Sec-Fetch-Site": None},
    dict(NO_ORIGIN),
]


OWN: list[dict[str, str | None]] = [
    {},
    {"Sec-Fetch-Site": None},
    {"Origin": None},
    {"Origin": "https://localhost", "Sec-Fetch-Site": None},
]


@pytest.mark.parametrize("auth", ["on", "off"])
def test_no_other_site_can_change_anything_and_the_page_itself_can(
    tmp_path: Path, auth: str
) -> None:
    plane = ControlPlane(tmp_path, auth=auth)
    browser = Browser(plane)
    for headers in FOREIGN:
        for path in ("/ui/logout", "/ui/login", "/ui/sessions/ses-0123456789ab/end"):
            answer = browser.post(path, headers=headers, data={"key": "x"})
            assert answer.status_code == 403, (headers, answer.text)
    for headers in OWN:
        assert browser.post("/ui/logout", headers=headers).status_code == 303, headers
    plane.close()


def test_behind_a_proxy_the_configured_address_counts(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", page_url="https://cmcl.example.org/prefix/ui")
    browser = Browser(plane)
    cases = {"https://cmcl.example.org": 303, ORIGIN: 303, "https://example.org": 403}
    for origin, status in cases.items():
        assert browser.post("/ui/logout", headers={"Origin": origin}).status_code == status
    plane.close()


def test_a_link_from_elsewhere_is_opened_again_from_here(
    operator: KeyClient, browser: Browser
) -> None:
    """A browser does not send the cookie when it follows a link from another site."""
    browser.sign_in(operator.make_key()["key"])
    cookies, browser.cookies = browser.cookies, {}
    first = browser.get("/ui/sessions?x=%22%3E", headers={"Sec-Fetch-Site": "cross-site"})
    assert first.status_code == 200
    address = "/ui/sessions?x=%22%3E&again=1"
    assert 'content="0; url=../ui/sessions?x=%22%3E&amp;again=1"' in first.text.replace(
        "url=./", "url=../ui/"
    )
    browser.cookies = cookies
    assert browser.get(address).status_code == 200
    browser.cookies = {}
    # Without a session there is no redirect loop.
    again = browser.get(address, headers={"Sec-Fetch-Site": "cross-site"})
    assert browser.target(again) == "/ui/login?next=sessions%3Fx%3D%2522%253E"


ANSWERS = {
    "page": ("GET", "/ui/", 200),
    "fragment": ("GET", "/ui/?fragment=live_tiles", 200),
    "unknown fragment": ("GET", "/ui/?fragment=content", 422),
    "unknown page": ("GET", "/ui/nowhere", 404),
    "sessions": ("GET", "/ui/sessions", 200),
    "wrong method": ("DELETE", "/ui/", 405),
    "no form": ("POST", "/ui/login", 415),
    "redirect": ("POST", "/ui/logout", 303),
}


def test_every_response_has_the_headers(operator: KeyClient, browser: Browser) -> None:
    answers = []
    for path, status in (("/ui/", 303), ("/ui/login", 200), ("/ui/stream", 303)):
        answers.append(browser.get(path))
        assert answers[-1].status_code == status
    browser.sign_in(operator.make_key()["key"])
    for name, (method, path, status) in ANSWERS.items():
        answers.append(browser.request(method, path))
        assert answers[-1].status_code == status, name
        assert answers[-1].headers["cache-control"] == "no-store", name
    for answer in answers:
        _check_headers(dict(answer.headers))


def _check_headers(headers: dict[str, str]) -> None:
    policy = dict(
        each.strip().partition(" ")[::2] for each in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_without_keys_there_is_no_sign_in_and_other_hosts_are_refused(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    browser = Browser(plane)
    assert browser.get("/ui/").status_code == 200
    assert browser.target(browser.get("/ui/login?next=sessions")) == "/ui/sessions"
    assert "Keys are off" in browser.get("/ui/sessions").text
    assert browser.get("/ui/", headers={"Host": "rebound.example"}).status_code == 403
    plane.close()


def test_the_page_can_be_turned_off(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, page="off")
    for path in ("/", "/ui", "/ui/", "/ui/login", "/ui/static/x/style.css"):
        assert Browser(plane).get(path).status_code == 404
    plane.close()


def test_the_root_leads_to_the_page_also_below_a_prefix(browser: Browser) -> None:
    for path in ("/", "/ui"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, "ui/")


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


# Beginning and end of an attribute, in one text: what ends one of them is markup for all that follows.
MARKUP = (
    """<script>alert(1)</script><img src=x onerror=alert(1)>"><svg onload=alert(1)>'><a href=javascript:alert(1)>"""
    "{{ 7 * 7 }}{% raw %}</td></tr></table><base href=//evil.example>--><!--<textarea>&lt;b&gt;&amp;amp;"
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{POP DIRECTIONAL FORMATTING}\x01\x1f\x7f\u2028\ufeff"
)


@pytest.mark.parametrize("text", [MARKUP, "\N{PILE OF POO}" * 40, "<" * 10_000], ids=range(3))
def test_text_from_outside_is_shown_as_text(hostile: Hostile, text: str) -> None:
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
        assert [each for each in addresses if not re.match(r"\.\.?/|[#?]", each)] == [], page


@given(st.text(max_size=60))
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
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


WORKS = {"encoders": {"eyes": "ok", "words": "ok"}, "replicas": {"RUNNING": 2, "STOPPING": 1}}


@pytest.fixture
def fake() -> FakeEndpoint:
    return FakeEndpoint({f"GET {PARTS}": WORKS})


@pytest.fixture
def watching(fake: FakeEndpoint, tmp_path: Path) -> Iterator[ControlPlane]:
    watching = open_plane(tmp_path, fake)
    yield watching
    watching.close()


def overview(watching: ControlPlane) -> str:
    return text_of(Browser(watching).get("/ui/").text)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (
            {**WORKS, "encoders": {"eyes": "encoder 'eyes' is unavailable"}},
            "eyes encoder 'eyes' is",
        ),
        ({**WORKS, "replicas": {"RUNNING": 1, "STARTING": 1}}, "replicas 1 of 2 running"),
        ({**WORKS, "replicas": {}}, "replicas not known: Ray Serve's controller does not answer"),
        (httpx.Response(502), "endpoint The endpoint answered 502."),
    ],
    ids=["encoder", "replica", "controller", "proxy"],
)
def test_a_part_that_does_not_answer_is_a_problem(
    watching: ControlPlane,
    fake: FakeEndpoint,
    answer: dict[str, object] | httpx.Response,
    shown: str,
) -> None:
    fake.answers[f"GET {PARTS}"] = answer
    text = overview(watching)
    assert "1 system 1 problem" in text
    assert shown in text
    assert "Queries may fail until this ends." in text


def test_an_endpoint_that_is_down_is_a_problem(watching: ControlPlane, fake: FakeEndpoint) -> None:
    fake.down = True
    assert "endpoint no answer" in overview(watching)


def test_the_endpoint_is_asked_once_for_all_pages_of_some_seconds(
    watching: ControlPlane, fake: FakeEndpoint
) -> None:
    for _ in range(3):
        overview(watching)
    assert len(fake.asked) == 1


def test_a_page_does_not_wait_for_a_slow_endpoint() -> None:
    answering = asyncio.Event()

    async def slow(_: httpx.Request) -> httpx.Response:
        await answering.wait()
        return httpx.Response(200, json=WORKS)

    async def ask() -> list[dict[str, str]]:
        endpoint = Endpoint(URL, None, httpx.MockTransport(slow))
        before = await endpoint.checks()
        answering.set()
        return [before, await endpoint.checks()]

    before, after = asyncio.run(ask())
    assert before == {"endpoint": "no answer within 1 s"}
    assert after["encoder eyes"] == "ok"
