"""Pages of datasets, and posting one."""

import re
from pathlib import Path

import httpx
import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.storage.object_store import ObjectStore
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.preparer import fail, requests_in
from tests.unit.service.page.browser import Browser, rows_of, text_of
from workers.prepare.dataset import write_rejected


def test_the_state_of_its_job_is_part_of_a_dataset(plane: ControlPlane) -> None:
    body = plane.dataset_body("open", sealed=False)
    opened = plane.client.post("/v1/datasets", json=body).json()["dataset"]
    assert opened["job_state"] is None
    posted = plane.client.post("/v1/datasets", json=plane.dataset_body("one")).json()
    assert posted["dataset"]["job_state"] == "queued"
    plane.run_to_end(posted["job"]["id"])
    found = plane.client.get(f"/v1/datasets/{posted['dataset']['id']}").json()
    assert found["job_state"] == "published"
    listed = plane.client.get("/v1/datasets").json()["items"]
    assert [each["job_state"] for each in listed] == [None, "published"]


def rejected(count: int) -> list[RejectedRow]:
    return [
        RejectedRow(
            id=f"r{at}", file="upload:up-1", row=at, place=f"m.csv line {at + 2}", reason="cut off"
        )
        for at in range(count)
    ]


def refused(plane: ControlPlane, count: int, **more: object) -> str:
    """A dataset that is refused because of so many rows."""
    rows = rejected(count)

    def refuse(store: ObjectStore) -> None:
        for request in requests_in(store):
            write_rejected(store, request.dataset, rows)
            known = {"rejected_rows": count, "rejected": rows[:20], **more}
            fail(store, request, "invalid_dataset", "too many bad rows", **known)

    plane.preparer = refuse
    job = plane.post_dataset()
    plane.run_to_end(job)
    return job


@pytest.mark.parametrize(("count", "has_more"), [(20, False), (25, True)])
def test_all_rows_of_a_refused_dataset_are_counted_and_listed(
    plane: ControlPlane, count: int, has_more: bool
) -> None:
    job, browser = refused(plane, count), Browser(plane)
    dataset = plane.dataset_of(job).id
    assert plane.client.get(f"/v1/datasets/{dataset}").json()["rejected"]["rows"] == count
    page = browser.get(f"/ui/datasets/{dataset}").text
    assert f"{count} rows cannot be used, so nothing was learned." in text_of(page)
    assert f"{count} rows" in text_of(browser.get(f"/ui/jobs/{job}?fragment=live_facts").text)
    # The reasons differ by row, and are counted as one.
    bars = re.findall(
        r'<meter max="(\d+)" value="(\d+)"', browser.get(f"/ui/datasets/{dataset}").text
    )
    assert bars == [(str(count), str(count))]
    following = re.search(r'rel="next" href="([^"#]+)', page)
    assert (following is not None) == has_more
    listed = rows_of(page, "rejected")
    if following:
        more = browser.get(f"/ui/datasets/{dataset}{following[1]}").text
        listed += rows_of(more, "rejected")
    assert len({row[0] for row in listed}) == count


JSON = {"Accept": "application/json", "Sec-Fetch-Mode": "cors"}
FORM = {"name": "pairs", "first": "image", "second": "text", "evaluation_share": "10"}


@pytest.fixture
def person(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys, with one model."""
    return Browser(plane)


def begin(browser: Browser, content: bytes, name: str = "pairs.parquet") -> httpx.Response:
    """Announce a file."""
    body = {"filename": name, "bytes": len(content)}
    return browser.post("/ui/v1/uploads", json=body, headers=JSON)


def put_file(browser: Browser, upload: str, content: bytes) -> httpx.Response:
    """Send the file."""
    headers = {"Content-Type": "application/octet-stream"}
    path = f"/ui/v1/uploads/{upload}/file"
    return browser.request("PUT", path, content=content, headers={**JSON, **headers})


def send(browser: Browser, content: bytes, name: str = "pairs.parquet") -> str:
    """Send a file, and return the id of its upload."""
    upload: str = begin(browser, content, name).json()["id"]
    assert put_file(browser, upload, content).status_code == 200
    return upload


def file_of_pairs(folder: Path, rows: int = 40, prefix: str = "row") -> bytes:
    path = folder / f"{prefix}.parquet"
    write_shard(path, feature_table(rows, prefix=prefix))
    return path.read_bytes()


def test_an_upload_keeps_the_name_of_its_file_in_tables_and_messages(
    plane: ControlPlane, person: Browser
) -> None:
    upload = send(person, b"\x89PNG, or so", "holiday.png")
    answer = person.post("/ui/models/scenes/post", data={**FORM, "uploads": upload})
    job = person.target(answer).partition("?")[0].rpartition("/")[2]
    dataset = plane.dataset_of(job).id
    (shard,) = plane.client.get(f"/v1/datasets/{dataset}").json()["shards"]
    assert shard == {"uri": f"upload:{upload}", "sha256": None, "name": "holiday.png"}
    assert "holiday.png" in text_of(person.get(f"/ui/datasets/{dataset}").text)
    plane.run_to_end(job)
    message = str(plane.job(job).message)
    assert message.startswith("holiday.png: ")
    assert upload not in message


def test_what_is_measured_only_is_not_learned(
    plane: ControlPlane, person: Browser, tmp_path: Path
) -> None:
    form = {**FORM, "uploads": send(person, file_of_pairs(tmp_path)), "evaluate_only": "1"}
    answer = person.post("/ui/models/scenes/post", data=form)
    job = person.target(answer).partition("?")[0].rpartition("/")[2]
    assert plane.job(job).kind == "evaluate"
    refused = person.post("/ui/models/scenes/post", data={**form, "dry_run": "1"})
    assert refused.status_code == 422
    assert "dry_run" in refused.text


def test_uploaded_files_become_a_job(plane: ControlPlane, person: Browser, tmp_path: Path) -> None:
    page = person.get("/ui/models/scenes/post")
    assert 'data-upload="../../v1/uploads"' in page.text
    assert "cmcl dataset add FOLDER --pair image,text --model scenes" in page.text
    uploads = [send(person, file_of_pairs(tmp_path, prefix=name)) for name in ("a", "b")]
    form = {**FORM, "uploads": " ".join(uploads)}
    answer = person.post("/ui/models/scenes/post", data=form)
    after = person.follow(answer)
    assert "The dataset was posted. This is its job." in after.text
    job = person.target(answer).partition("?")[0].rpartition("/")[2]
    plane.tick_to(job, JobState.RUNNING)
    manifest = plane.dataset_of(job).manifest
    assert manifest is not None
    assert 70 <= manifest.rows < 80
    again = person.follow(person.post("/ui/models/scenes/post", data=form))
    assert "The same files were posted before" in again.text


def test_with_held_out_files_every_other_row_is_trained_on(
    plane: ControlPlane, person: Browser, tmp_path: Path
) -> None:
    names = ("uploads", "evaluation_uploads")
    uploads = {name: send(person, file_of_pairs(tmp_path, prefix=name)) for name in names}
    answer = person.post("/ui/models/scenes/post", data={**FORM, **uploads})
    job = person.target(answer).partition("?")[0].rpartition("/")[2]
    plane.tick_to(job, JobState.RUNNING)
    manifest = plane.dataset_of(job).manifest
    assert manifest is not None
    assert (manifest.rows, manifest.evaluation_rows) == (40, 40)


def test_held_out_files_and_a_dry_run(person: Browser, tmp_path: Path) -> None:
    uploads = {
        "uploads": send(person, file_of_pairs(tmp_path, prefix="a")),
        "evaluation_uploads": send(person, file_of_pairs(tmp_path, prefix="b")),
    }
    form = {**FORM, **uploads, "max_bad_share": "5", "dry_run": "1"}
    answer = person.post("/ui/models/scenes/post", data=form)
    assert answer.status_code == 303
    (dataset,) = person.get("/v1/datasets").json()["items"]
    found = person.get(f"/v1/datasets/{dataset['id']}").json()
    assert found["dry_run"] is True
    assert [len(found[field]) for field in ("shards", "evaluation_shards")] == [1, 1]
    assert (found["evaluation_share"], found["max_bad_share"]) == (None, 0.05)


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"uploads": ""}, "at least 1 shard is needed"),
    ({"uploads": "up-000000000000"}, "there is no upload"),
    ({"uploads": "../../etc/passwd"}, "there is no upload"),
    ({"name": "<script>alert(1)</script>"}, "name"),
    ({"name": "x" * 10_000}, "name"),
    ({"second": "image"}, "pair"),
    ({"second": "smell"}, "has no modality"),
    ({"evaluation_share": "51"}, "evaluation_share"),
    ({"max_bad_share": "-1"}, "max_bad_share"),
]


def test_a_form_that_cannot_be_posted_is_refused(person: Browser) -> None:
    for changes, message in REFUSED:
        form = {**FORM, "uploads": "up-0123456789ab", **changes}
        answer = person.post("/ui/models/scenes/post", data=form)
        assert (answer.status_code, message in answer.text) == (422, True), changes
        assert "<script>alert" not in answer.text


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, upload_bytes_max=1000, upload_part_bytes_max=6 << 20)
    plane.create_model()
    person = Browser(plane)
    assert 'data-file-bytes-max="1000"' in person.get("/ui/models/scenes/post").text
    answer = begin(person, b"x" * 1001)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "bytes"
    upload = begin(person, b"x" * 1000).json()["id"]
    assert put_file(person, upload, b"x" * (7 << 20)).status_code == 413
    plane.close()


def test_a_script_gets_problems_as_json_and_a_person_as_a_page(person: Browser) -> None:
    path = "/ui/v1/uploads/up-000000000000"
    assert person.get(path, headers=JSON).headers["content-type"] == "application/problem+json"
    assert person.get(path).headers["content-type"].startswith("text/html")


def test_a_refused_dataset_is_accepted_without_its_bad_rows(plane: ControlPlane) -> None:
    prepare = plane.preparer
    job, browser = refused(plane, 20, needed_share=0.07), Browser(plane)
    dataset = plane.dataset_of(job).id
    page = browser.get(f"/ui/datasets/{dataset}").text
    assert "20 rows cannot be used, so nothing was learned." in text_of(page)
    assert "posts the same files again with 7 % of bad rows permitted" in text_of(page)
    assert "Accept without these 20 rows" in text_of(page)
    plane.preparer = prepare
    answer = browser.post(f"/ui/datasets/{dataset}/repair")
    again = browser.target(answer).partition("?")[0].rpartition("/")[2]
    assert again != job
    repaired = plane.client.get(f"/v1/datasets/{plane.dataset_of(again).id}").json()
    assert repaired["max_bad_share"] == 0.07
    plane.run_to_end(again)
    assert plane.job(again).state == JobState.PUBLISHED
    assert browser.post(f"/ui/datasets/{repaired['id']}/repair").status_code == 409


def test_without_the_share_that_is_needed_only_corrected_files_are_offered(
    plane: ControlPlane,
) -> None:
    """More rows than are listed cannot be used, or all."""
    job, browser = refused(plane, 20), Browser(plane)
    path = f"/ui/datasets/{plane.dataset_of(job).id}"
    page = browser.get(path).text
    assert "Accept without" not in page
    assert "Send corrected files" in page
    assert browser.post(f"{path}/repair").status_code == 409
