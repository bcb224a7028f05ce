"""Help of the command line."""

from collections.abc import Iterator
from typing import Any

from cmcl.cli import command_tree
from cmcl.contract.model import ModelSpec, TrainingSpec


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups by the names with which they are run."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    yield from walk(command_tree(), ())


def test_every_command_argument_and_option_has_help() -> None:
    for path, command in every_command():
        assert command.help, path
        assert [each.name for each in command.params if not each.help] == [], path


def test_every_command_that_prints_has_json() -> None:
    silent = {
        *{("model", "delete"), ("version", "retire"), ("key", "revoke"), ("webhook", "delete")},
        # An export has its own format.
        *{("collection", "delete"), ("collection", "export"), ("version", "export")},
        # They run until they are stopped.
    }
    without = {
        path
        for path, command in every_command()
        if not hasattr(command, "commands")
        and not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == silent


def test_model_create_has_an_option_for_every_field_of_a_specification() -> None:
    fields = {*ModelSpec.model_fields, *TrainingSpec.model_fields} - {"modalities", "training"}
    (create,) = (command for path, command in every_command() if path == ("model", "create"))
    assert fields <= {each.name for each in create.params}
