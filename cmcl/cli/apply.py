"""`cmcl apply`: make the control plane have the models, gates, webhooks and keys of a file."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from pydantic import BaseModel
from rich.text import Text

from cmcl.cli.apply_file import read_file
from cmcl.cli.apply_plan import Change, Plan, Secret, plan_changes
from cmcl.cli.console import print_json, stderr, stdout
from cmcl.cli.errors import CommandError, CreatedTwice, NotRemoved
from cmcl.cli.options import DEFAULT_URL, AsJson, Url, Yes
from cmcl.client import Client, CmclError

_SIGNS = {"create": "+", "change": "~", "delete": "-"}
_PRECONDITION_FAILED = 412


class AppliedChange(BaseModel):
    """A change, and whether it was made."""

    action: str
    kind: str
    name: str
    details: tuple[str, ...]
    applied: bool


class Applied(BaseModel):
    """The result: changes in order, what contradicts the file, and what the file does not have."""

    changes: tuple[AppliedChange, ...]
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]


def apply(  # noqa: PLR0913 - options of a command
    file: Annotated[
        Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="the YAML file")
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would change, and change nothing")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="also delete models, webhooks and keys that the file's sections do not have",
        ),
    ] = False,
    secrets: Annotated[
        Path | None,
        typer.Option(
            help="file to append the secrets of new keys and webhooks to, a JSON object per line"
        ),
    ] = None,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make models, gates, webhooks and keys those of a file. Applying it again changes nothing."""
    wanted = read_file(file)
    with Client(url) as client:
        plan = plan_changes(client, wanted, prune=prune)
        if dry_run or plan.conflicts:
            _show(plan, 0, as_json, headline=_summary(plan))
            if plan.conflicts:
                raise CommandError(
                    f"{len(plan.conflicts)} conflicts with {file}; nothing was changed"
                )
            return
        if secrets is None and any(change.has_secret for change in plan.changes):
            raise typer.BadParameter(
                "keys or webhooks will be created, and their secrets are returned once: name a file to "
                "append them to",
                param_hint="--secrets",
            )
        _confirm(plan, yes)
        _apply(client, plan, secrets, as_json)


def _confirm(plan: Plan, yes: bool) -> None:
    deletions = [change for change in plan.changes if change.action == "delete"]
    if deletions and not yes:
        for change in deletions:
            stderr().print(_line(change), soft_wrap=True)
        typer.confirm(f"Delete these {len(deletions)}?", abort=True, err=True)


def _apply(client: Client, plan: Plan, secrets: Path | None, as_json: bool) -> None:
    """Make the changes in order, and report those that were made, also if one fails."""
    done = 0
    try:
        with _secrets_file(secrets) as kept:
            for change in plan.changes:
                secret = change.make(client)
                if secret is not None:
                    _keep_and_check(client, change, secret, kept)
                done += 1
    except CmclError as error:
        failed = plan.changes[done]
        done += isinstance(error, _Unchecked)
        _show(plan, done, as_json)
        raise CommandError(
            f"{failed.kind} {failed.name}: {_reason(failed, error)}; {done} of {len(plan.changes)} changes "
            "were made, and none after this one. Run the command again to make the rest"
        ) from error
    _show(plan, done, as_json, headline="nothing to change" if not plan.changes else None)


class _Unchecked(CmclError):
    """Something was created and its secret is stored, but the check after it failed."""


def _keep_and_check(client: Client, change: Change, secret: Secret, kept: TextIO | None) -> None:
    if kept is None or change.check is None:
        raise RuntimeError("a secret was created without --secrets")
    start = _keep(kept, {"kind": change.kind, "name": change.name, **secret})
    try:
        change.check(client, secret["id"])
    except CreatedTwice:
        _take_back(kept, change, secret["id"], start)
        raise
    except NotRemoved:
        raise
    except CmclError as error:
        raise _Unchecked(
            f"it was created ({secret['id']}) and its secret is in the file of --secrets, but whether someone else created "
            f"the same at the same time could not be checked: {error}"
        ) from error


def _reason(change: Change, error: CmclError) -> str:
    if error.status == _PRECONDITION_FAILED:
        return f"someone else changed it in the meantime ({error})"
    is_known = isinstance(error, CreatedTwice | _Unchecked) or 400 <= error.status < 500
    if is_known or not change.has_secret:
        return str(error)
    return (
        f"{error}; if `cmcl {change.kind} list` shows that it was created, remove it before the next run, "
        "because its secret is lost"
    )


@contextmanager
def _secrets_file(path: Path | None) -> Iterator[TextIO | None]:
    """Open the file before anything is created, readable by its owner alone."""
    if path is None:
        yield None
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        os.fchmod(descriptor, 0o600)
        # Of two runs with one file, one waits: a line that is taken back must be the last one.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield file


def _keep(file: TextIO, secret: Secret) -> int:
    """Append the secret, and return where its line starts."""
    start = os.fstat(file.fileno()).st_size
    try:
        file.write(json.dumps(secret) + "\n")
        file.flush()
    except OSError as error:
        raise CommandError(
            f"{secret['kind']} {secret['name']} ({secret['id']}) was created, and its secret could not be "
            f"written ({error}): remove {secret['id']}, and run the command again"
        ) from error
    return start


def _take_back(file: TextIO, change: Change, made: str, start: int) -> None:
    """Remove the line of a secret whose key or webhook was removed."""
    try:
        file.truncate(start)
    except OSError as error:
        raise CommandError(
            f"{change.kind} {change.name} ({made}) was removed, because someone else created the "
            f"same at the same time; its line in the file of --secrets could not be removed: {error}"
        ) from error


def _show(plan: Plan, done: int, as_json: bool, headline: str | None = None) -> None:
    """Print the changes; the first `done` were made."""
    if as_json:
        changes = [
            AppliedChange(
                action=each.action,
                kind=each.kind,
                name=each.name,
                details=each.details,
                applied=index < done,
            )
            for index, each in enumerate(plan.changes)
        ]
        document = Applied(
            changes=tuple(changes), conflicts=tuple(plan.conflicts), notes=tuple(plan.notes)
        )
        print_json(document)
        return
    for index, change in enumerate(plan.changes):
        line = _line(change)
        if done and index >= done:
            line.append("  (not made)", style="bold red")
        stdout().print(line, soft_wrap=True)
    for text, sign in [(each, "!") for each in plan.conflicts] + [
        (each, " ") for each in plan.notes
    ]:
        stdout().print(Text(f"{sign} {text}"), soft_wrap=True)
    if headline:
        stdout().print(Text(headline), soft_wrap=True)


def _line(change: Change) -> Text:
    text = f"{_SIGNS[change.action]} {change.kind} {change.name}"
    return Text("\n    ".join((text, *change.details)))


def _summary(plan: Plan) -> str:
    counts = {action: sum(change.action == action for change in plan.changes) for action in _SIGNS}
    return "to " + ", to ".join(f"{action}: {count}" for action, count in counts.items())
