"""The list of rows that were left out, by pages, from our own object."""

import json

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.storage import layout
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import prepare_all


def write(plane: ControlPlane, dataset: str, rows: int, reason: str = "no image") -> None:
    lines = [
        RejectedRow(
            id=f"row-{row}",
            file="s3://captures/a.jsonl",
            row=row,
            place="a.jsonl line 8",
            reason=reason,
        )
        for row in range(rows)
    ]
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    plane.store.put(layout.rejected_rows(dataset), text.encode())


def read_all(plane: ControlPlane, dataset: str, limit: int) -> list[list[int]]:
    """The rows of each page."""
    pages, cursor = [], None
    while True:
        query = f"?limit={limit}" + (f"&cursor={cursor}" if cursor else "")
        answer = plane.client.get(f"/v1/datasets/{dataset}/rejected-rows{query}")
        assert answer.status_code == 200, answer.text
        pages.append([item["row"] for item in answer.json()["items"]])
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return pages


def test_every_row_is_on_one_page(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 7)
    assert read_all(plane, dataset, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert read_all(plane, dataset, 7) == [list(range(7))]


def test_long_reasons_take_more_pages_and_lose_no_row(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 9, reason="x" * 100_000)
    pages = read_all(plane, dataset, 200)
    assert [row for page in pages for row in page] == list(range(9))
    write(plane, dataset, 2, reason="x" * 400_000)
    assert read_all(plane, dataset, 200) == [[0], [1]]


def test_without_rejected_rows_the_list_is_empty(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert read_all(plane, str(plane.job(job).dataset), 50) == [[]]
    plane.preparer = prepare_all
    plane.tick_to(job, JobState.RUNNING)
    assert read_all(plane, str(plane.job(job).dataset), 50) == [[]]


def test_a_cursor_within_a_row_is_refused(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 3)
    path = f"/v1/datasets/{dataset}/rejected-rows?limit=1&cursor=YXNjOjc"
    answer = plane.client.get(path)
    assert answer.status_code == 422, json.dumps(answer.json())
    assert answer.json()["errors"][0]["field"] == "cursor"
