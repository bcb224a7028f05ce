"""Every page stays small with four hundred versions on a hundred datasets. Their time is in docs/benchmarks/page.md."""

from pathlib import Path

from benchmarks.control.databases import fresh_database
from benchmarks.control.large_model import Size
from benchmarks.page import GOAL_BYTES, create_large_app, measure_pages

# As many datasets as in the benchmark, and more versions and jobs than fit into the bytes of a page.
SIZE = Size(versions=400, datasets=100, jobs=2_000)


def test_no_page_is_large_with_much_to_show(tmp_path: Path) -> None:
    with fresh_database("sqlite", tmp_path) as url:
        app = create_large_app(url, tmp_path, SIZE)
        try:
            sizes = {page.path: page.bytes for page in measure_pages(app, SIZE, repeats=1)}
        finally:
            app.state.context.close()
    assert sizes
    assert {path: size for path, size in sizes.items() if size > GOAL_BYTES} == {}
