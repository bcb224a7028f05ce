"""`cmcl apply`: make the control plane have the models, gates, webhooks and keys of a file."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer
from pydantic import BaseModel, ValidationError
from rich.text import Text

from cmcl.cli.apply_file import DesiredState, KeyEntry, ModelEntry, WebhookEntry, read_file
from cmcl.cli.console import print_json, stderr, stdout
from cmcl.cli.errors import CommandError
from cmcl.cli.options import DEFAULT_URL, AsJson, Url, Yes
from cmcl.client import ApiKey, Client, CmclError, InvalidArgument, Model, Webhook
from cmcl.contract.access import KEY_PATTERN, key_id
from cmcl.contract.gate import Gate

# --- Comparison of the file with the control plane ------------------------------------------------

Action = Literal["create", "change", "delete"]
# What a creation returns once: id, secret.
Secret = dict[str, str]

# The owner of what the operator creates without naming one.
_DEFAULT_OWNER = "default"
# The revision of a new model's gate.
_FIRST_REVISION = 1


@dataclass(frozen=True)
class Change:
    """One change. `make` sends it, and returns the secret of what it created, if there is one."""

    action: Action
    kind: Literal["model", "modality", "gate", "webhook", "key"]
    name: str
    make: Callable[[Client], Secret | None]
    details: tuple[str, ...] = ()

    @property
    def has_secret(self) -> bool:
        """Whether it creates something with a secret that is returned once."""
        return self.action == "create" and self.kind in ("webhook", "key")


@dataclass
class Plan:
    """All changes in order; what contradicts the file and cannot be changed; what stays unmanaged."""

    changes: list[Change] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_changes(client: Client, wanted: DesiredState, *, prune: bool) -> Plan:
    """Compare the file with the control plane. With `prune`, what the file does not have is deleted."""
    plan = Plan()
    owner = client.whoami().owner or _DEFAULT_OWNER
    deletions: list[Change] = []
    if wanted.models is not None:
        deletions += _plan_models(client, wanted.models, owner, plan)
    if wanted.webhooks is not None:
        deletions = _plan_webhooks(client, wanted.webhooks, owner, plan, prune) + deletions
    if wanted.keys is not None:
        deletions = _plan_keys(client, wanted.keys, owner, plan, prune) + deletions
    if prune:
        plan.changes += deletions
    else:
        plan.notes += [f"{each.kind} {each.name} is not in the file" for each in deletions]
    return plan


def _plan_models(
    client: Client, wanted: Mapping[str, ModelEntry], owner: str, plan: Plan
) -> list[Change]:
    found = {model.name: model for model in client.models()}
    for name, entry in wanted.items():
        model = found.get(name)
        if model is None:
            plan.changes.append(_creation(name, entry))
            added = entry.modalities
            gate, revision = Gate(), _FIRST_REVISION
        else:
            added = {
                modality: each
                for modality, each in entry.modalities.items()
                if modality not in model.modalities
            }
            plan.changes += [_addition(name, modality, entry) for modality in added]
            plan.conflicts += _fixed_differences(model, entry)
            plan.notes += [
                f"modality {modality} of model {name} is not in the file; it cannot be removed"
                for modality in sorted(model.modalities.keys() - entry.modalities.keys())
            ]
            read = client.gate(name)
            gate = Gate.model_validate(read.model_dump(include=_GATE_FIELDS))
            revision = read.revision or _FIRST_REVISION
        plan.conflicts += _unknown_encoders(client, name, entry, added)
        plan.changes += _gate_change(name, entry, gate, revision)
    return [
        Change(
            "delete", "model", name, methodcaller("delete_model", name), ("with all its versions",)
        )
        for name, model in found.items()
        if name not in wanted and model.owner == owner
    ]


_GATE_FIELDS = set(Gate.model_fields)


def _creation(name: str, entry: ModelEntry) -> Change:
    body = entry.model_dump(mode="json", exclude_unset=True, exclude={"gate"})

    def make(client: Client) -> None:
        client.create_model(name, body)

    details = [f"{field}: {value}" for field, value in _leaves(body)]
    return Change("create", "model", name, make, tuple(details))


def _addition(model: str, modality: str, entry: ModelEntry) -> Change:
    added = entry.modalities[modality]

    def make(client: Client) -> None:
        client.add_modality(model, modality, added.width, added.encoder)

    given = added.model_dump(exclude_none=True)
    details = tuple(f"{field}: {value}" for field, value in given.items())
    return Change("create", "modality", f"{modality} of model {model}", make, details)


def _fixed_differences(model: Model, entry: ModelEntry) -> Iterator[str]:
    """What the file says otherwise, of what is fixed when a model is created."""
    has = model.model_dump(mode="json")
    given = entry.model_dump(mode="json", exclude_unset=True, exclude={"gate"})
    shared = {name: each for name, each in given["modalities"].items() if name in has["modalities"]}
    for path, value in _leaves({**given, "modalities": shared}):
        before = _at(has, path)
        if before != value:
            yield (
                f"models.{model.name}.{path} is {_shown(before)} and the file says {_shown(value)}; it is "
                "fixed when a model is created"
            )


def _unknown_encoders(
    client: Client, model: str, entry: ModelEntry, added: Mapping[str, Any]
) -> Iterator[str]:
    bound = {name: entry.modalities[name].encoder for name in added}
    if not any(bound.values()):
        return
    declared = {encoder.name for encoder in client.encoders()}
    for modality, encoder in bound.items():
        if encoder is not None and encoder not in declared:
            permitted = ", ".join(sorted(declared)) or "none, the operator has declared no encoder"
            yield (
                f"models.{model}.modalities.{modality}.encoder: there is no encoder {encoder!r}; "
                f"permitted: {permitted}"
            )


def _gate_change(model: str, entry: ModelEntry, gate: Gate, revision: int) -> Iterator[Change]:
    if entry.gate is None:
        return
    given = entry.gate.model_dump(mode="json", exclude_unset=True)
    before = gate.model_dump(mode="json")
    differences = [
        f"{name}: {_shown(before[name])} -> {_shown(value)}"
        for name, value in given.items()
        if before[name] != value
    ]
    if not differences:
        return
    try:
        changed = Gate.model_validate({**before, **given})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidArgument(f"models.{model}.gate: {message}") from error

    def make(client: Client) -> None:
        client.set_gate(model, changed, revision)

    yield Change("change", "gate", f"of model {model}", make, tuple(differences))


def _plan_webhooks(
    client: Client, wanted: tuple[WebhookEntry, ...], owner: str, plan: Plan, prune: bool
) -> list[Change]:
    known = list(client.webhooks())
    enabled = [webhook for webhook in known if webhook.disabled_at is None]
    kept: set[str] = set()
    for entry in wanted:
        same = [each for each in enabled if _is_same_webhook(each, entry, owner)]
        right = [
            each for each in same if entry.kinds is None or set(each.kinds) == set(entry.kinds)
        ]
        if not right and same and not prune:
            plan.conflicts.append(
                f"webhook {entry.url} ({same[0].id}) has other kinds ({', '.join(same[0].kinds)}), which "
                "are fixed; --prune replaces it, with a new secret"
            )
            right = same
        if not right:
            make = partial(_create_webhook, entry)
            details = (f"kinds: {', '.join(entry.kinds or ()) or 'those that need action'}",)
            plan.changes.append(Change("create", "webhook", entry.url, make, details))
        kept.update(each.id for each in right)
    return [
        Change("delete", "webhook", each.url, methodcaller("delete_webhook", each.id), (each.id,))
        for each in known
        if each.id not in kept and each.owner in (owner, "*")
    ]


def _is_same_webhook(webhook: Webhook, entry: WebhookEntry, owner: str) -> bool:
    identity = (webhook.url, webhook.model, webhook.every_owner)
    # A webhook of one model, or of all owners, is of no owner of its own.
    is_ours = webhook.owner == owner or bool(entry.model) or entry.every_owner
    return is_ours and identity == (entry.url, entry.model, entry.every_owner)


def _create_webhook(entry: WebhookEntry, client: Client) -> Secret:
    made = client.create_webhook(
        entry.url, entry.kinds or (), entry.model, every_owner=entry.every_owner
    )
    return {"id": made.id, "secret": made.secret.get_secret_value() if made.secret else ""}


def _plan_keys(
    client: Client, wanted: tuple[KeyEntry, ...], owner: str, plan: Plan, prune: bool
) -> list[Change]:
    active = [key for key in list(client.keys()) if _is_active(key)]
    kept: set[str] = {_own_key()}
    for entry in wanted:
        same = [key for key in active if _is_same_key(key, entry, owner)]
        right = [key for key in same if set(key.scopes) == set(entry.scopes)]
        if not right and same and not prune:
            plan.conflicts.append(
                f"key {entry.name} ({same[0].id}) has other scopes ({', '.join(same[0].scopes)}), which "
                "are fixed; --prune replaces it, with a new secret"
            )
            right = same
        if not right:
            make = partial(_create_key, entry)
            details = (f"scopes: {', '.join(entry.scopes)}", f"owner: {entry.owner or owner}")
            plan.changes.append(Change("create", "key", entry.name, make, details))
        kept.update(key.id for key in right)
    owners = {owner, *(entry.owner for entry in wanted)}
    return [
        Change("delete", "key", key.name, methodcaller("revoke_key", key.id), (key.id,))
        for key in active
        if key.id not in kept and key.owner in owners
    ]


def _is_active(key: ApiKey) -> bool:
    is_expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return key.revoked_at is None and not is_expired


def _is_same_key(key: ApiKey, entry: KeyEntry, owner: str) -> bool:
    return (key.name, key.owner) == (entry.name, entry.owner or owner)


def _own_key() -> str:
    """Return the id of the key with which this runs, which is never revoked."""
    found = re.fullmatch(KEY_PATTERN, os.environ.get("CMCL_KEY", ""))
    return key_id(found[1]) if found else ""


def _create_key(entry: KeyEntry, client: Client) -> Secret:
    made = client.create_key(entry.name, entry.scopes, entry.owner, entry.expires_in_days)
    return {"id": made.id, "secret": made.key.get_secret_value() if made.key else ""}


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over values that are no mappings, each with its path."""
    for name, value in values.items():
        path = f"{above}.{name}" if above else name
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


# --- The command ----------------------------------------------------------------------------------

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
                if secret is not None and kept is not None:
                    _keep(kept, {"kind": change.kind, "name": change.name, **secret})
                done += 1
    except CmclError as error:
        failed = plan.changes[done]
        _show(plan, done, as_json)
        raise CommandError(
            f"{failed.kind} {failed.name}: {_reason(failed, error)}; {done} of {len(plan.changes)} changes "
            "were made, and none after this one. Run the command again to make the rest"
        ) from error
    _show(plan, done, as_json, headline="nothing to change" if not plan.changes else None)


def _reason(change: Change, error: CmclError) -> str:
    if error.status == _PRECONDITION_FAILED:
        return f"someone else changed it in the meantime ({error})"
    if 400 <= error.status < 500 or not change.has_secret:
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
        yield file


def _keep(file: TextIO, secret: Secret) -> None:
    """Append the secret."""
    try:
        file.write(json.dumps(secret) + "\n")
        file.flush()
    except OSError as error:
        raise CommandError(
            f"{secret['kind']} {secret['name']} ({secret['id']}) was created, and its secret could not be "
            f"written ({error}): remove {secret['id']}, and run the command again"
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
