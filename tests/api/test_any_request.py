"""Schemathesis over the whole API: no request causes an internal error.

Bounded for CI; CMCL_API_EXAMPLES makes it longer. Event streams do not end, and are tested
elsewhere.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis import Case, HookContext, Response
from schemathesis.checks import not_a_server_error, positive_data_acceptance
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Served
from tests.architecture.repository import ROOT

_EXAMPLES = int(os.environ.get("CMCL_API_EXAMPLES", "12"))
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# What a schema cannot express is rejected with 422: an invalid cursor, a modality that the model does
# not have. And guessing keys as fast as this check does soon leads to 429; the tests of access cover
# every route without a key.
_NOT_OURS = [positive_data_acceptance, ignored_auth]
_STREAMS = "/events"
_BOUNDED = settings(
    max_examples=_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def _operations() -> list[tuple[str, str]]:
    """Method and path of all operations in the committed description."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    return [
        (method.upper(), path)
        for path, item in document["paths"].items()
        if not path.endswith(_STREAMS)
        for method in item
    ]


@pytest.fixture(scope="module")
def api(served: Served) -> schemathesis.BaseSchema:
    """The description that the server itself gives; every other id is one that exists."""
    schema = schemathesis.openapi.from_dict(served.plane.app.openapi())
    schema.config.update(base_url=served.address)

    def with_known_ids(_: HookContext, parameters: dict[str, object]) -> dict[str, object]:
        return {
            name: served.known[name] if name in served.known and _is_even(value) else value
            for name, value in (parameters or {}).items()
        }

    schema.hooks.hook("map_path_parameters")(with_known_ids)
    return schema.exclude(path_regex=f"{_STREAMS}$")


def _is_even(value: object) -> bool:
    """A coin whose result depends on the value only."""
    return zlib.crc32(repr(value).encode()) % 2 == 0


def _is_repaired(case: Case[Any]) -> bool:
    """Whether known ids or our headers may have replaced what was meant to be invalid."""
    parts = case.meta.components if case.meta else {}
    repaired = (ParameterLocation.PATH, ParameterLocation.HEADER)
    return any(part in parts and parts[part].mode.is_negative for part in repaired)


@pytest.fixture(scope="module")
def answers() -> Iterator[Counter[int]]:
    """Number of responses by status; shown with `-s`."""
    counted: Counter[int] = Counter()
    yield counted
    print(f"\nanswers by status: {dict(sorted(counted.items()))}")


@pytest.mark.parametrize(("method", "path"), _operations(), ids=" ".join)
def test_no_request_causes_an_internal_error(
    api: schemathesis.BaseSchema, served: Served, answers: Counter[int], method: str, path: str
) -> None:
    @_BOUNDED
    @given(case=api[path][method].as_strategy())
    def ask(case: Case[Any]) -> None:
        response = case.call_and_validate(checks=_CHECKS, headers=served.headers)
        answers[response.status_code] += 1

    ask()


def test_no_sequence_of_requests_causes_an_internal_error(
    api: schemathesis.BaseSchema, served: Served
) -> None:
    """Nearly all checks of Schemathesis, including that deleted objects are gone."""
    failures: list[BaseException] = []

    class Machine(api.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Case[Any]) -> dict[str, object]:
            return {"headers": served.headers}

        def validate_response(self, response: Response, case: Case[Any], **_: object) -> None:
            excluded = [*_NOT_OURS, negative_data_rejection] if _is_repaired(case) else _NOT_OURS
            try:
                case.validate_response(response, excluded_checks=excluded)
            except BaseException as error:
                failures.append(error)
                raise

    # Hypothesis expects that the same choices lead to the same steps. Here they depend on responses,
    # and so on what earlier sequences have changed at the server. A seed of its own for each pair of
    # sequences leaves little to compare, and a failure is noted before anything is repeated.
    for number in range(_EXAMPLES):
        with suppress(FlakyStrategyDefinition):
            run = seed(number)(Machine).run
            run(settings=settings(_BOUNDED, max_examples=2, stateful_step_count=8))
        if failures:
            raise failures[0]
