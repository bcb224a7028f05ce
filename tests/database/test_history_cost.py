"""A round of the reconciler and a scrape read no more rows with a long history of jobs than without."""

from pathlib import Path

from sqlalchemy import Connection, event, insert, select

from cmcl.contract.api.jobs import JobState
from service.database.tables import datasets, jobs
from tests.fakes.control_plane import ControlPlane

ENDED = 3_000
# Instructions of SQLite's virtual machine between two calls of the handler.
STEP = 10


def test_a_round_and_a_scrape_do_not_read_the_history(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    ended = plane.post_dataset("ended")
    plane.run_to_end(ended)
    plane.tick_to(plane.post_dataset("running"), JobState.RUNNING)
    plane.post_dataset("waiting")
    plane.tick(3)
    done = [0]

    def count() -> int:
        done[0] += 1
        return 0

    def watch(connection: Connection, *_: object) -> None:
        raw = connection.connection.dbapi_connection
        raw.set_progress_handler(count, STEP)  # type: ignore[union-attr]

    event.listen(plane.context.database.engine, "before_cursor_execute", watch)

    def steps() -> tuple[int, int]:
        done[0] = 0
        plane.tick(5)
        of_rounds, done[0] = done[0], 0
        # Values are kept for some seconds.
        plane.clock.advance(120)
        list(plane.context.metrics.registry.collect())
        return of_rounds, done[0]

    before = steps()
    with plane.context.database.write() as connection:
        for table, key in ((datasets, plane.job(ended).dataset), (jobs, ended)):
            (row,) = connection.execute(select(table).where(table.c.id == key)).mappings()
            own = {"fingerprint": "fingerprint-{}"} if table is datasets else {"dataset": "ds-{}"}
            own |= {"id": "ds-{}" if table is datasets else "job-{}"}
            copies = [
                {**row, "sequence": 1000 + number, "swept_at": plane.clock()}
                | {name: text.format(number) for name, text in own.items()}
                for number in range(ENDED)
            ]
            connection.execute(insert(table), copies)
    after = steps()
    for few, many in zip(before, after, strict=True):
        assert 0 < many < 1.3 * few + 100, (before, after)
    plane.close()
