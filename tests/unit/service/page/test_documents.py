"""Static files, errors as documents, live parts, and forms that cannot be read."""

import re
from pathlib import Path

import pytest

from service.page.rendering import StaticFiles
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.page.browser import Browser


@pytest.fixture
def reader(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys, with one model."""
    return Browser(plane)


def test_files_are_cached_for_ever_under_the_digest_in_the_page(browser: Browser) -> None:
    page = browser.get("/ui/login").text
    addresses = re.findall(r'(?:href|src)="(\./static/[^"]+)"', page)
    assert {address.rpartition(".")[2] for address in addresses} == {"css", "js", "svg"}
    for address in addresses:
        answer = browser.get(f"/ui/{address}")
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        plain = browser.get(f"/ui/{address}", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content


def test_a_file_under_the_digest_of_another_release_is_not_cached(browser: Browser) -> None:
    answer = browser.get("/ui/static/0123456789abcdef/style.css")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.parametrize("name", ["other.css", "..%2fpage.js", "page.py", "%00", "style.css%2f"])
def test_other_files_are_not_there(browser: Browser, name: str) -> None:
    assert browser.get(f"/ui/static/0123456789abcdef/{name}").status_code in (303, 404)


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


@pytest.mark.parametrize("body", [b"\xff", b"&".join([b"a=1"] * 101), b"key=%ff", b"x" * 20_000])
def test_forms_that_cannot_be_read_are_refused(browser: Browser, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert browser.post("/ui/login", content=body, headers=headers).status_code in (413, 422)


def test_every_page_is_small_and_compressed(reader: Browser) -> None:
    answer = reader.get("/ui/")
    assert answer.headers["content-encoding"] == "gzip"
    files = StaticFiles()
    served = sum(len(files.response(files.digest, name, "gzip").body) for name in files.names)
    assert served + len(answer.content) < 150_000


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
