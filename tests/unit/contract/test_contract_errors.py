"""Errors of the data plane: one tree, each says whether a retry can help."""

from cmcl.contract import errors
from cmcl.contract.errors import StorageUnavailable, WorkerError


def all_errors() -> list[type[WorkerError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, WorkerError)
    ]


def test_all_errors_hang_on_one_tree() -> None:
    exceptions = [value for value in vars(errors).values() if isinstance(value, type)]
    assert exceptions == all_errors()


def test_the_tree_at_the_top_of_the_file_names_every_error() -> None:
    assert errors.__doc__ is not None
    for error in all_errors():
        assert error.__name__ in errors.__doc__


def test_only_a_store_that_does_not_answer_is_worth_another_try() -> None:
    assert [error for error in all_errors() if error.retry_can_help] == [StorageUnavailable]
