"""Every page stays small with a thousand versions on a hundred datasets. Their time is in docs/benchmarks/page.md."""

from pathlib import Path

from benchmarks.control.databases import fresh_database
from benchmarks.control.large_model import Size
from benchmarks.page import GOAL_BYTES, create_large_app, measure_pages

# As many versions and datasets as in the benchmark. The length of a list of jobs does not depend on their number.
SIZE = Size(versions=1_000, datasets=100, jobs=2_000)


def test_no_page_is_large_with_much_to_show(tmp_path: Path) -> None:
    with fresh_database("sqlite", tmp_path) as url:
        app = create_large_app(url, tmp_path, SIZE)
        try:
            sizes = {page.path: page.bytes for page in measure_pages(app, SIZE, repeats=1)}
        finally:
            app.state.context.close()
    assert sizes
    assert {path: size for path, size in sizes.items() if size > GOAL_BYTES} == {}
