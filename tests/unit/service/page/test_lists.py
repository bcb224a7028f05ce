"""Lists are searched, sorted and turned over, by addresses alone."""

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import insert, select

from service.database.tables import models
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import publish_measured
from tests.unit.service.auth.key_client import KeyClient
from tests.unit.service.page.browser import Browser, rows_of, text_of

MANY = 120


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """120 models, of which one has three versions of which one is not measured."""
    plane = ControlPlane(tmp_path_factory.mktemp("many"))
    plane.create_model("model-000")
    for name, recall, drift in (("fashion", 0.8, None), ("parts", 0.5, 0.2), ("views", None, 0.1)):
        recalls = {} if recall is None else {name: recall}
        drifts = {} if drift is None else {"fashion": drift}
        publish_measured(plane, name, "model-000", recalls=recalls, drifts=drifts)
    with plane.context.database.write() as connection:
        (first,) = connection.execute(select(models)).mappings()
        copies = [
            {**first, "name": f"model-{n:03}", "created_at": first["created_at"] - timedelta(n)}
            for n in range(1, MANY)
        ]
        connection.execute(insert(models), copies)
    yield Browser(plane)
    plane.close()


def names(browser: Browser, path: str, section: str) -> list[str]:
    page = browser.get(path).text
    return re.findall(r'<tr id="(?:model|version)-([\w-]+)"', page[page.index(f'id="{section}"') :])


@pytest.mark.parametrize(
    ("query", "count", "first", "said"),
    [
        ("", 50, "model-000", "120 models, 1 to 50 Next"),
        ("page=2", 50, "model-050", "120 models, 51 to 100 Previous Next"),
        ("page=3", 20, "model-100", "120 models, 101 to 120 Previous"),
        ("page=99", 20, "model-100", "101 to 120"),
        ("q=11", 11, "model-011", "11 models"),
        ("q=DEL-00", 10, "model-000", "10 models"),
        ("sort=-name", 50, "model-119", "1 to 50"),
        ("sort=created&q=00", 11, "model-100", "11 models"),
        # What SQL would take for patterns is looked for as it is.
        ("q=model_0", 0, "", "No model matches"),
        ("q=%25", 0, "", "No model matches"),
    ],
)
def test_models_are_found_counted_and_turned_over(
    many: Browser, query: str, count: int, first: str, said: str
) -> None:
    path = f"/ui/models?{query}"
    shown = names(many, path, "live_models")
    assert (len(shown), shown[:1]) == (count, [first][:count])
    assert said in text_of(many.get(path).text)


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("", ["3", "2", "1"]),
        ("sort=version", ["1", "2", "3"]),
        ("sort=name", ["1", "2", "3"]),
        # What was not measured comes last in either direction.
        ("sort=-recall", ["1", "2", "3"]),
        ("sort=recall", ["2", "1", "3"]),
        ("sort=-drift", ["2", "3", "1"]),
        ("q=art", ["2"]),
    ],
)
def test_versions_are_sorted(many: Browser, query: str, order: list[str]) -> None:
    assert names(many, f"/ui/models/model-000?{query}", "live_versions") == order


def test_a_head_leads_to_the_other_direction_and_keeps_what_is_searched(many: Browser) -> None:
    page = many.get("/ui/models?q=model&page=2&sort=-newest").text
    assert re.findall(r'aria-sort="(\w+)"', page) == ["none", "descending"]
    heads = re.findall(r'class="sort" href="(.+?)"', page)
    assert heads == ["?q=model&amp;sort=name", "?q=model&amp;sort=newest"]
    assert 'rel="prev" href="?q=model&amp;sort=-newest&amp;page=1"' in page
    assert 'name="sort" value="-newest"' in page


@pytest.mark.parametrize("query", ["sort=owner", "page=0", "page=x", "q=" + "x" * 81, "q=%00"])
@pytest.mark.parametrize("path", ["models", "datasets", "jobs", "models/model-000"])
def test_what_cannot_be_is_refused(many: Browser, path: str, query: str) -> None:
    answer = many.get(f"/ui/{path}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in text_of(answer.text)


def test_jobs_and_datasets_are_found_by_a_part_of_a_name(many: Browser) -> None:
    for path, section in (("jobs", "live_jobs"), ("datasets", "live_datasets")):
        by_name, newest = (
            ["".join(row) for row in rows_of(many.get(f"/ui/{path}{query}").text, section)]
            for query in ("?sort=name", "")
        )
        assert len(newest) == 3
        # They were posted in the order of their names.
        assert by_name == newest[::-1]
        (only,) = rows_of(many.get(f"/ui/{path}?q=fash").text, section)
        assert "fashion" in only
        assert "1 " in text_of(many.get(f"/ui/{path}?q=fash&model=model-000").text)
        assert not rows_of(many.get(f"/ui/{path}?q=fash&model=model-001").text, section)


def test_nothing_of_another_owner_is_counted(operator: KeyClient, browser: Browser) -> None:
    for owner in ("ours", "theirs"):
        operator.client_with_key(owner, owner=owner).post(
            "/v1/models", json={"name": f"of-{owner}", "modalities": {"image": 4, "text": 3}}
        )
    browser.sign_in(operator.make_key("reader", owner="ours")["key"])
    text = text_of(browser.get("/ui/models?q=of-").text)
    assert "1 model" in text
    assert "theirs" not in text
