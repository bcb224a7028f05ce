"""What a rebuild tells in the end: for people, or as one JSON document."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from service.control.rebuild.findings import NOT_RESTORED, Damage, Findings
from service.database.queries.records import Tables


def as_json(tables: Tables, findings: Findings, *, is_dry: bool) -> Iterator[str]:
    """One line."""
    yield json.dumps(
        {
            "dry_run": is_dry,
            "rows": {table: len(rows) for table, rows in tables.items()},
            "jobs": _states(tables),
            "damaged": [vars(damage) for damage in findings.damaged],
            "repaired": findings.repaired,
            "assumed": findings.assumed,
            "not_restored": NOT_RESTORED,
        }
    )


def as_text(tables: Tables, findings: Findings, *, is_dry: bool) -> Iterator[str]:
    """Counts by table, then whatever somebody should know."""
    yield "would be restored:" if is_dry else "restored:"
    for table, rows in tables.items():
        states = ", ".join(f"{count} {state}" for state, count in _states(tables).items())
        yield f"  {table:<12} {len(rows):>7}  {states if table == 'jobs' else ''}".rstrip()
    yield from _listed("damaged, and left out", [_words(each) for each in findings.damaged])
    yield from _listed("repaired", findings.repaired)
    yield from _listed("assumed, because no record tells", findings.assumed)
    yield from _listed("not restored", NOT_RESTORED)


def _words(damage: Damage) -> str:
    return f"{damage.what}: {damage.why}; {damage.so}"


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines)


def _states(tables: Tables) -> dict[str, int]:
    return dict(sorted(Counter(str(job["state"]) for job in tables["jobs"]).items()))
