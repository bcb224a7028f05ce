"""Actions of a user on the page: with and without scripts, with the mouse and with the keyboard."""

import base64
import csv
import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Request, Route, expect

from cmcl.client.raw_folder import packed, read_raw_folder
from cmcl.contract.api.jobs import JobState
from cmcl.contract.modality import ModalityPair
from tests.browser.conftest import BuiltSample, OpenPage
from tests.browser.sample import PHOTOS, SCENES, Names
from tests.browser.sample_endpoint import thumbnail_bytes
from tests.browser.served_plane import ServedPlane
from tests.fakes.feature_shards import feature_table, write_shard

Sample = tuple[ServedPlane, Names]

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def changing(
    built_sample: BuiltSample, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sample]:
    """One sample for all tests of this file: each changes other things."""
    with built_sample.served(tmp_path_factory.mktemp("changing")) as served:
        yield served


def submit(page: Page, reason: str = "") -> None:
    """Send the form of a confirmation page, with a reason, by the keyboard alone."""
    if reason:
        page.locator("main form textarea[name=reason]").first.focus()
        page.keyboard.type(reason)
    page.locator("main form button[type=submit]").first.focus()
    page.keyboard.press("Enter")


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_a_version_is_promoted_and_rolled_back(
    changing: Sample, open_page: OpenPage, scripts: bool
) -> None:
    plane, _ = changing
    page, _ = open_page(plane, java_script_enabled=scripts)
    page.goto(f"/ui/models/{SCENES.model}")
    page.get_by_role("link", name="Promote v6").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Promote v6")
    submit(page, "v7 is slower")
    expect(page.locator(".notice.good")).to_contain_text("promoted")
    assert plane.model(SCENES.model).live_version == 6
    page.get_by_role("link", name="Roll back").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("back to v7")
    submit(page, "it was the network")
    expect(page.locator(".notice.good")).to_contain_text("rolled back")
    assert plane.model(SCENES.model).live_version == 7
    items = plane.client.get(f"/v1/models/{SCENES.model}/promotions?order=desc&limit=2").json()
    found = [(item["reason"], item["actor"]) for item in items["items"]]
    assert found == [("it was the network", "anna"), ("v7 is slower", "anna")]


def test_a_candidate_is_compared_and_approved(changing: Sample, open_page: OpenPage) -> None:
    plane, names = changing
    page, _ = open_page(plane)
    page.goto(f"/ui/jobs/{names.held}")
    page.get_by_role("link", name="Approve").click()
    # A reason is required: the browser sends nothing without one.
    page.locator("form button[type=submit]").last.click()
    assert plane.job(names.held).state == JobState.HELD
    submit(page, "recall is better on every dataset")
    expect(page.locator(".notice.good").first).to_contain_text("approved")
    plane.run_to_end(names.held)
    assert plane.job(names.held).state == JobState.PUBLISHED
    assert plane.model(PHOTOS.model).live_version == 3


def test_a_job_is_cancelled_and_another_one_retried(changing: Sample, open_page: OpenPage) -> None:
    plane, names = changing
    page, _ = open_page(plane)
    page.goto(f"/ui/jobs/{names.running}")
    page.get_by_role("link", name="Cancel").click()
    submit(page)
    expect(page.locator(".notice.good")).to_contain_text("cancelled")
    plane.tick(3)
    expect(page.locator("main .state").first).to_have_text("cancelled")
    # The failed one needs other data.
    page.goto(f"/ui/jobs/{names.failed}")
    expect(page.get_by_role("link", name="Send corrected files")).to_be_visible()
    page.goto(f"/ui/jobs/{names.rejected}")
    page.get_by_role("link", name="Retry").click()
    submit(page)
    expect(page.locator(".notice.good")).to_contain_text("queued again")
    assert plane.job(names.rejected).state != JobState.REJECTED


def open_form(page: Page) -> None:
    """Open the form for a dataset. It is hidden until its script, which follows the page, takes files."""
    page.goto(f"/ui/models/{PHOTOS.model}/post")
    expect(page.locator("form[data-upload]")).to_be_visible()


def test_a_dataset_is_uploaded_and_posted(
    changing: Sample, open_page: OpenPage, tmp_path: Path
) -> None:
    plane, _ = changing
    file = tmp_path / "<img src=x onerror=alert(1)>.parquet"
    write_shard(file, feature_table(60))
    page, record = open_page(plane)
    page.on("dialog", lambda dialog: record.problems.append(f"dialog: {dialog.message}"))
    open_form(page)
    page.get_by_label("Name").fill("uploaded")
    page.get_by_label("Files to train on").set_input_files(file)
    requests: list[Route] = []

    def hold(route: Route) -> None:
        requests.append(route)

    page.route("**/file", hold)
    page.get_by_role("button", name="Upload and post").click()
    expect(page.locator("[data-status]")).to_have_text(f"Sending {file.name}…")
    expect(page.locator("[data-progress]")).to_be_visible()
    page.wait_for_function("document.querySelector('[data-amount]').textContent.includes(' of ')")
    # The amount is shown when the file is sent, which may be before the browser reports its request.
    while not requests:
        page.wait_for_timeout(20)
    requests[0].continue_()
    expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")
    job = page.url.partition("?")[0].rpartition("/")[2]
    assert plane.job(job).dataset_name == "uploaded"


def _folder(kind: str, folder: Path) -> Path:
    """A folder of that layout, with what is left out."""
    for name in ("b/two.png", "b/one.PNG", "a-class/three.png", ".hidden/four.png", "loose.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(thumbnail_bytes(len(name)))
    (folder / "sound.wav").write_bytes(b"RIFF")
    if kind == "captions":
        (folder / "b/two.txt").write_text("\ufeffa tree\r\n\n  und noch ein Bäumchen 🌳 \n")
        (folder / "loose.txt").write_text("only one")
        (folder / "b/nothing.txt").write_text("of nothing")
    rows: list[dict[str, object]] = [
        {"id": "x", "file_name": "b/two.png", "text": 'says "a", and b\nand c', "label": "l"},
        {"id": "y", "file_name": "b/two.png", "text": "another", "label": "l"},
        {"id": "z", "file_name": "gone.png", "text": "missing", "label": ""},
        {"id": "w", "file_name": "loose.png", "text": "[1 in brackets", "label": ""},
    ]
    if kind == "jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / "metadata.jsonl").write_text(text)
    if kind == "csv":
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def _members(tar: bytes) -> dict[str, object]:
    with tarfile.open(fileobj=BytesIO(tar)) as opened:
        read = {each.name: opened.extractfile(each).read() for each in opened}  # type: ignore[union-attr]
    return {
        name: json.loads(content) if name.endswith(".json") else content
        for name, content in read.items()
    }


@pytest.mark.parametrize(
    ("kind", "pairs", "left_out"),
    [
        ("captions", 3, "1 text without a file for image of the same name (nothing.txt)"),
        ("classes", 3, "1 picture in no folder of a class (loose.png)"),
        ("jsonl", 3, "rows whose file is missing, 1 (gone.png first)"),
        ("csv", 3, "rows whose file is missing, 1 (gone.png first)"),
    ],
)
def test_a_folder_is_recognised_and_packed_as_the_command_line_does(
    sample: Sample, open_page: OpenPage, tmp_path: Path, kind: str, pairs: int, left_out: str
) -> None:
    folder = _folder(kind, tmp_path / "My things")
    page, _ = open_page(sample[0])
    open_form(page)
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if "uploads" in request.url else None)
    page.locator("[data-folder]").set_input_files(folder)
    found = page.locator("[data-found]")
    expect(found).to_contain_text(f"{pairs} pairs of")
    expect(found).to_contain_text(f"eft out: {left_out}")
    expect(found.locator("img").first).to_have_js_property("complete", value=True)
    assert sent == []
    expect(page.get_by_label("Name")).to_have_value("my-things")
    encoded = page.evaluate(_TARS)
    pair = ModalityPair(first="image", second="text")
    raw = read_raw_folder(folder, pair)
    assert raw is not None
    (expected,) = [step.tar for step in packed(raw, pair, "x", tmp_path) if step.tar]
    assert [each["name"] for each in encoded] == ["My things-00001.tar"]
    assert _members(base64.b64decode(encoded[0]["content"])) == _members(expected.read_bytes())


def test_what_a_folder_lacks_is_said_before_a_byte_is_sent(
    sample: Sample, open_page: OpenPage, tmp_path: Path
) -> None:
    page, _ = open_page(sample[0])
    open_form(page)
    (tmp_path / "one.png").write_bytes(thumbnail_bytes(1))
    page.get_by_label("Files to train on").set_input_files(tmp_path / "one.png")
    expect(page.locator("[data-found]")).to_contain_text("one.txt beside one.png is missing")
    assert page.evaluate(_TARS) == []


# The files of the field, with their contents.
_TARS = """async () => Promise.all([...document.getElementById("files").files].map(async file => ({
    name: file.name,
    content: btoa(String.fromCharCode(...new Uint8Array(await file.arrayBuffer()))),
})))"""


def test_what_the_service_would_refuse_is_refused_before_a_byte_is_sent(
    sample: Sample, open_page: OpenPage, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.parquet"
    write_shard(file, feature_table(60))
    page, _ = open_page(sample[0])
    open_form(page)
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if "uploads" in request.url else None)
    name, button = page.get_by_label("Name"), page.get_by_role("button", name="Upload and post")
    second, measure = page.get_by_label("Second modality"), page.get_by_label("Measure only")
    page.get_by_label("Files to train on").set_input_files(file)
    is_mismatch = "field => field.validity.patternMismatch"
    for text, is_refused in (("Photos", True), ("-x", True), ("photos-2026", False)):
        name.fill(text)
        assert name.evaluate(is_mismatch) is is_refused
    second.select_option(index=0)
    button.click()
    expect(page.locator("[data-status]")).to_contain_text("two different modalities")
    second.select_option(index=1)
    measure.check()
    page.get_by_label("Dry run").check()
    button.click()
    expect(page.locator("[data-status]")).to_contain_text("either “Measure only” or “Dry run”")
    page.get_by_label("Dry run").uncheck()
    page.get_by_label("Held-out files").set_input_files(file)
    button.click()
    expect(page.locator("[data-status]")).to_contain_text("every row is held out")
    measure.uncheck()
    page.get_by_label("Held-out files").set_input_files([])
    loose = {"cat.pdf": b"%PDF-1.7\0", "cat.md": b"a cat, on a mat\n", "b.bin": b"OggS\0"}
    for other, content in loose.items():
        (tmp_path / other).write_bytes(content)
    page.get_by_label("Files to train on").set_input_files([file, *(tmp_path / n for n in loose)])
    button.click()
    expect(page.locator("[data-status]")).to_contain_text("3 files hold no rows, cat.pdf first")
    expect(page.locator("[data-status]")).to_contain_text("together with their texts")
    assert sent == []


FILES_OF_ROWS = {
    "csv": b"id,image_file_name,text\na,a.png,x\n",
    "quoted-csv": b'\xef\xbb\xbf"id","text","image"\r\n',
    "jsonl": b'{"id": "a", "text": "\xc3\xa9"}\n',
    "arrow": b"ARROW1\0\0",
    "safetensors": (16).to_bytes(8, "little") + b'{"a": {}}       ',
    "tar": b"a.png" + bytes(252) + b"ustar\x0000" + bytes(248),
}


def test_files_of_rows_are_sent(changing: Sample, open_page: OpenPage, tmp_path: Path) -> None:
    page, _ = open_page(changing[0])
    for name, content in FILES_OF_ROWS.items():
        (tmp_path / name).write_bytes(content)
        open_form(page)
        page.get_by_label("Name").fill(name)
        page.get_by_label("Files to train on").set_input_files(tmp_path / name)
        page.get_by_role("button", name="Upload and post").click()
        expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")


def test_a_file_that_cannot_be_read_is_a_failure_after_which_the_form_works(
    changing: Sample, open_page: OpenPage, tmp_path: Path
) -> None:
    page, _ = open_page(changing[0])
    open_form(page)
    page.get_by_label("Name").fill("uploaded")
    files, button = page.get_by_label("Files to train on"), page.get_by_role("button", name="post")
    for name in ("removed", "kept"):
        write_shard(tmp_path / f"{name}.parquet", feature_table(60, prefix=name))
    files.set_input_files(tmp_path / "removed.parquet")

    def remove(route: Route) -> None:
        (tmp_path / "removed.parquet").unlink(missing_ok=True)
        route.continue_()

    page.route("**/ui/v1/uploads", remove)
    button.click()
    expect(page.locator("[data-status].bad")).to_contain_text("could not be")
    files.set_input_files(tmp_path / "kept.parquet")
    button.click()
    expect(page.locator(".notice.good")).to_contain_text("The dataset was posted")


def test_without_scripts_the_page_of_uploads_names_the_command(
    sample: Sample, open_page: OpenPage
) -> None:
    page, _ = open_page(sample[0], java_script_enabled=False)
    page.goto(f"/ui/models/{SCENES.model}/post")
    expect(page.locator("form[data-upload]")).to_be_hidden()
    expect(page.locator("main")).to_contain_text(f"--model {SCENES.model}")


def test_a_figure_is_saved_as_png_and_its_address_copied(
    sample: Sample, open_page: OpenPage
) -> None:
    page, _ = open_page(sample[0])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/ui/models/{SCENES.model}/memory?at=10")
    figure = page.locator("#figure-matrix")
    width = figure.locator("svg").first.evaluate("drawn => drawn.width.baseVal.value")
    with page.expect_download() as download:
        figure.get_by_role("button", name="Save as PNG").click()
    assert download.value.suggested_filename == f"models-{SCENES.model}-memory-matrix.png"
    with Image.open(download.value.path()) as drawn:
        assert drawn.width == 2 * round(width)
        assert len(drawn.convert("RGB").getcolors(1 << 24) or ()) > 100, "it is not empty"
    figure.get_by_role("button", name="Copy link").click()
    expect(figure.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.endswith(f"/ui/models/{SCENES.model}/memory?at=10#figure-matrix")


def test_a_key_that_may_only_read_sees_no_action(sample: Sample, open_page: OpenPage) -> None:
    plane, names = sample
    page, _ = open_page(plane, cookies=plane.sign_in(plane.create_key("carl", "read")))
    for path in (f"models/{SCENES.model}", f"jobs/{names.held}"):
        page.goto(f"/ui/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.locator("main form[method=post]").count() == 0
        assert page.get_by_role("link", name="Promote").count() == 0
