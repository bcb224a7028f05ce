"""`cmcl apply`: make the control plane have the models, gates, webhooks and keys of a file.

A field that the file does not have is not managed: it stays as it is, or has its default in what is
created. A section that the file does not have (`models`, `webhooks`, `keys`) is not managed either.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TextIO

import typer
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from rich.text import Text

from cmcl.cli.console import stderr, stdout
from cmcl.cli.errors import CommandError
from cmcl.cli.options import DEFAULT_URL, AsJson, Url, Yes
from cmcl.client import ApiKey, Client, CmclError, InvalidArgument, Model, Webhook
from cmcl.contract.api.access import KEY_PATTERN, key_id
from cmcl.contract.api.events import EventKind
from cmcl.contract.encoder import EncoderName, FeatureWidth
from cmcl.contract.modality import MODALITY_PATTERN, NAME_PATTERN, Frozen, Modality, ModelName
from cmcl.contract.model import Gate, ModelOptions, TrainingSpec, as_modality, check_two_modalities

# --- The file -------------------------------------------------------------------------------------

Scope = Literal["read", "write", "train", "admin", "embed"]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class ModalityEntry(Frozen):
    """A modality: the width of its features, or the encoder that computes them, or both."""

    width: FeatureWidth | None = None
    encoder: EncoderName | None = None
    aligned_to: Modality | None = None

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.width is None and self.encoder is None:
            raise ValueError("it has neither a width nor an encoder: give one of them")
        return self


class ModelEntry(ModelOptions):
    """A model: its specification, which is fixed when it is created, and its gate."""

    modalities: Annotated[
        dict[Modality, Annotated[ModalityEntry, BeforeValidator(as_modality)]],
        Field(min_length=2, max_length=64),
        BeforeValidator(check_two_modalities),
    ]
    gate: Gate | None = None

    def given(self) -> dict[str, Any]:
        """Return the specification as the file has it."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"gate"})


class WebhookEntry(Frozen):
    """An address that receives events. `kinds`: default those that need action."""

    url: str = Field(min_length=1)
    kinds: tuple[EventKind, ...] | None = Field(default=None, min_length=1)
    model: ModelName | None = None
    every_owner: bool = False

    @model_validator(mode="after")
    def _is_of_one_model_or_all(self) -> Self:
        if self.every_owner and self.model:
            raise ValueError("model and every_owner exclude each other: leave one of them out")
        return self

    def is_same(self, webhook: Webhook, owner: str) -> bool:
        """Whether it is this webhook, perhaps with other kinds."""
        # A webhook of one model or of all owners has no owner.
        is_ours = webhook.owner == owner or bool(self.model) or self.every_owner
        identity = (webhook.url, webhook.model, webhook.every_owner)
        return is_ours and identity == (self.url, self.model, self.every_owner)

    def create(self, client: Client) -> "Secret":
        """Create the webhook."""
        made = client.create_webhook(
            self.url, self.kinds or (), self.model, every_owner=self.every_owner
        )
        return {"id": made.id, "secret": made.secret.get_secret_value() if made.secret else ""}


class KeyEntry(Frozen):
    """A key. The file never has its secret."""

    name: Name
    scopes: tuple[Scope, ...] = Field(min_length=1)
    owner: Name | None = None
    expires_in_days: int | None = Field(
        default=None, ge=1, le=3650, description="when the key is created; default: never"
    )

    def is_same(self, key: ApiKey, owner: str) -> bool:
        """Whether it is this key, perhaps with other scopes."""
        return (key.name, key.owner) == (self.name, self.owner or owner)

    def create(self, client: Client) -> "Secret":
        """Create the key."""
        made = client.create_key(self.name, self.scopes, self.owner, self.expires_in_days)
        return {"id": made.id, "secret": made.key.get_secret_value() if made.key else ""}


class DesiredState(Frozen):
    """The whole file. None: the section is not managed."""

    models: dict[ModelName, ModelEntry] | None = None
    webhooks: tuple[WebhookEntry, ...] | None = None
    keys: tuple[KeyEntry, ...] | None = None

    @model_validator(mode="after")
    def _entries_differ(self) -> Self:
        _check_distinct("webhooks", [(w.url, w.model, w.every_owner) for w in self.webhooks or ()])
        _check_distinct("keys", [(key.name, key.owner) for key in self.keys or ()])
        return self


def _check_distinct(section: str, identities: Sequence[tuple[object, ...]]) -> None:
    for index, identity in enumerate(identities):
        first = identities.index(identity)
        if first != index:
            raise ValueError(f"{section}[{index}] and {section}[{first}] are the same: {identity}")


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Rejects keys that a mapping has twice, of which YAML would silently take the last.

    And aliases: with them, a file of few lines can stand for more than memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise InvalidArgument(
                f"{self.name}:{line}: aliases are not permitted; repeat the value"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                line = key.start_mark.line + 1
                raise InvalidArgument(f"{self.name}:{line}: {key.value!r} is given twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_file(path: Path) -> DesiredState:
    """Parse and check a file. Raises InvalidArgument with each wrong field and what is permitted."""
    try:
        with path.open("rb") as file:
            values = _StrictLoader(file).get_single_data()
    except yaml.YAMLError as error:
        raise InvalidArgument(
            f"{path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(values, dict):
        sections = ", ".join(DesiredState.model_fields)
        raise InvalidArgument(f"{path} has no section; permitted: {sections}")
    try:
        return DesiredState.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidArgument(f"{path}: " + "; ".join(map(_message, found))) from error


_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and inner hyphens, 1 to 48 characters",
    MODALITY_PATTERN: "a lower-case letter, then lower-case letters, digits and underscores, 32 "
    "characters at most",
}
# The type of each object of the file, by the fields that lead to it.
_KINDS: Mapping[tuple[object, ...], type[BaseModel]] = {
    (): DesiredState,
    ("models",): ModelEntry,
    ("models", "modalities"): ModalityEntry,
    ("models", "gate"): Gate,
    ("models", "training"): TrainingSpec,
    ("webhooks",): WebhookEntry,
    ("keys",): KeyEntry,
}


def _message(error: Any) -> str:
    """Name the field, what is wrong, and what is permitted."""
    location = [part for part in error["loc"] if part != "[key]"]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    where = "".join(parts).removeprefix(".")
    if error["type"] == "extra_forbidden":
        # Fields, and names or numbers between them.
        permitted = ", ".join(sorted(_KINDS[tuple(location[:-1:2])].model_fields))
        return f"{where}: there is no such field; permitted: {permitted}"
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return f"{where}: {error['input']!r}; permitted: {_PATTERNS.get(pattern, pattern)}"
    if error["type"] in ("missing", "value_error"):
        message = error["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else str(message)
    return f"{where}: {error['input']!r}: {error['msg']}"


# --- Comparison of the file with the control plane ------------------------------------------------

# What a creation returns once: id, secret.
Secret = dict[str, str]

# The owner of what the operator creates without naming one.
_DEFAULT_OWNER = "default"
# The revision of a new model's gate.
_FIRST_REVISION = 1
_FIXED = "it is fixed when a model is created"


@dataclass(frozen=True)
class Change:
    """One change. `make` sends it, and returns the secret of what it created, if there is one."""

    action: Literal["create", "change", "delete"]
    kind: Literal["model", "modality", "gate", "webhook", "key"]
    name: str
    make: Callable[[Client], Any]
    details: tuple[str, ...] = ()

    @property
    def has_secret(self) -> bool:
        """Whether it creates something with a secret that is returned once."""
        return self.action == "create" and self.kind in ("webhook", "key")

    def __str__(self) -> str:
        sign = {"create": "+", "change": "~", "delete": "-"}[self.action]
        return "\n    ".join((f"{sign} {self.kind} {self.name}", *self.details))


@dataclass
class Plan:
    """All changes in order; what contradicts the file and cannot be changed; what stays unmanaged."""

    changes: list[Change] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_changes(client: Client, wanted: DesiredState, *, prune: bool) -> Plan:
    """Compare the file with the control plane. With `prune`, what the file does not have is deleted."""
    plan, deletions = Plan(), list[Change]()
    owner = client.whoami().owner or _DEFAULT_OWNER
    if wanted.models is not None:
        found = {model.name: model for model in client.models()}
        for name, entry in wanted.models.items():
            _plan_model(client, plan, name, entry, found.get(name))
        deletions += [
            Change("delete", "model", name, methodcaller("delete_model", name), (_ALL_VERSIONS,))
            for name, model in found.items()
            if name not in wanted.models and model.owner == owner
        ]
    if wanted.webhooks is not None:
        known = list(client.webhooks())
        enabled = [webhook for webhook in known if webhook.disabled_at is None]
        kept = _plan_secrets(plan, "webhook", wanted.webhooks, enabled, owner, prune)
        deletions = [
            Change(
                "delete", "webhook", each.url, methodcaller("delete_webhook", each.id), (each.id,)
            )
            for each in known
            if each.id not in kept and each.owner in (owner, "*")
        ] + deletions
    if wanted.keys is not None:
        active = list(filter(_is_active, client.keys()))
        kept = _plan_secrets(plan, "key", wanted.keys, active, owner, prune) | _own_key()
        owners = {owner, *(entry.owner for entry in wanted.keys)}
        deletions = [
            Change("delete", "key", key.name, methodcaller("revoke_key", key.id), (key.id,))
            for key in active
            if key.id not in kept and key.owner in owners
        ] + deletions
    if prune:
        plan.changes += deletions
    else:
        plan.notes += [f"{each.kind} {each.name} is not in the file" for each in deletions]
    return plan


_ALL_VERSIONS = "with all its versions"


def _plan_model(
    client: Client, plan: Plan, name: str, entry: ModelEntry, model: Model | None
) -> None:
    gate, revision = Gate(), _FIRST_REVISION
    if model is None:
        added, body = entry.modalities, entry.given()
        details = tuple(f"{path}: {value}" for path, value in _leaves(body))
        make = methodcaller("create_model", name, body)
        plan.changes.append(Change("create", "model", name, make, details))
    else:
        has = model.modalities
        added = {each: entry.modalities[each] for each in entry.modalities if each not in has}
        for modality, new in added.items():
            given = new.model_dump(exclude_none=True)
            details = tuple(f"{path}: {value}" for path, value in given.items())
            make = methodcaller("add_modality", name, modality, **new.model_dump())
            title = f"{modality} of model {name}"
            plan.changes.append(Change("create", "modality", title, make, details))
        plan.conflicts += _fixed_differences(model, entry)
        plan.notes += [
            f"modality {modality} of model {name} is not in the file; it cannot be removed"
            for modality in sorted(has.keys() - entry.modalities.keys())
        ]
        read = client.gate(name)
        gate = Gate.model_validate(read.model_dump(include=set(Gate.model_fields)))
        revision = read.revision or _FIRST_REVISION
    if any(new.encoder for new in added.values()):
        declared = {encoder.name for encoder in client.encoders()}
        permitted = ", ".join(sorted(declared)) or "none, the operator has declared no encoder"
        plan.conflicts += [
            f"models.{name}.modalities.{modality}.encoder: there is no encoder {new.encoder!r}; "
            f"permitted: {permitted}"
            for modality, new in added.items()
            if new.encoder and new.encoder not in declared
        ]
    if entry.gate is not None:
        _plan_gate(plan, name, entry.gate, gate, revision)


def _fixed_differences(model: Model, entry: ModelEntry) -> Iterator[str]:
    """What the file says otherwise, of what is fixed when a model is created."""
    has, given = model.model_dump(mode="json"), entry.given()
    shared = {name: each for name, each in given["modalities"].items() if name in has["modalities"]}
    before = dict(_leaves(has))
    for path, value in _leaves({**given, "modalities": shared}):
        if before.get(path) != value:
            yield (
                f"models.{model.name}.{path} is {_shown(before.get(path))} and the file says "
                f"{_shown(value)}; {_FIXED}"
            )


def _plan_gate(plan: Plan, model: str, entry: Gate, gate: Gate, revision: int) -> None:
    given = entry.model_dump(mode="json", exclude_unset=True)
    before = gate.model_dump(mode="json")
    differences = tuple(
        f"{name}: {_shown(before[name])} -> {_shown(value)}"
        for name, value in given.items()
        if before[name] != value
    )
    if not differences:
        return
    try:
        changed = Gate.model_validate({**before, **given})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidArgument(f"models.{model}.gate: {message}") from error
    make = methodcaller("set_gate", model, changed, revision)
    plan.changes.append(Change("change", "gate", f"of model {model}", make, differences))


def _plan_secrets(
    plan: Plan,
    kind: Literal["webhook", "key"],
    wanted: Sequence[WebhookEntry | KeyEntry],
    known: Sequence[Any],
    owner: str,
    prune: bool,
) -> set[str]:
    """Plan webhooks or keys, whose kinds or scopes are fixed. Return the ids of those that stay."""
    kept = set[str]()
    chosen: Sequence[str] | None
    for entry in wanted:
        if isinstance(entry, WebhookEntry):
            name, fixed, chosen, details = entry.url, "kinds", entry.kinds, list[str]()
        else:
            name, fixed, chosen = entry.name, "scopes", entry.scopes
            details = [f"owner: {entry.owner or owner}"]
        same = [each for each in known if entry.is_same(each, owner)]
        right = [each for each in same if chosen is None or set(getattr(each, fixed)) == {*chosen}]
        if same and not right and not prune:
            plan.conflicts.append(
                f"{kind} {name} ({same[0].id}) has other {fixed} ({', '.join(getattr(same[0], fixed))}), "
                "which are fixed; --prune replaces it, with a new secret"
            )
            right = same
        if not right:
            about = f"{fixed}: {', '.join(chosen or ()) or 'those that need action'}"
            plan.changes.append(Change("create", kind, name, entry.create, (about, *details)))
        kept |= {each.id for each in right}
    return kept


def _is_active(key: ApiKey) -> bool:
    is_expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return key.revoked_at is None and not is_expired


def _own_key() -> set[str]:
    """Return the id of the key with which this runs, which is never revoked."""
    found = re.fullmatch(KEY_PATTERN, os.environ.get("CMCL_KEY", ""))
    return {key_id(found[1])} if found else set()


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over values that are no mappings, each with its path."""
    for name, value in values.items():
        path = f"{above}.{name}" if above else name
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


# --- The command ----------------------------------------------------------------------------------

_PRECONDITION_FAILED = 412


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
            actions = [change.action for change in plan.changes]
            counts = (
                f"to {each}: {actions.count(each)}" for each in ("create", "change", "delete")
            )
            _show(plan, 0, as_json, headline=", ".join(counts))
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
        deletions = [change for change in plan.changes if change.action == "delete"]
        if deletions and not yes:
            for change in deletions:
                stderr().print(Text(str(change)), soft_wrap=True)
            typer.confirm(f"Delete these {len(deletions)}?", abort=True, err=True)
        _apply(client, plan, secrets, as_json)


def _apply(client: Client, plan: Plan, secrets: Path | None, as_json: bool) -> None:
    """Make the changes in order, and report those that were made, also if one fails."""
    done = 0
    try:
        with _secrets_file(secrets) as kept:
            for change in plan.changes:
                made = change.make(client)
                if change.has_secret and kept is not None:
                    _keep(kept, {"kind": change.kind, "name": change.name, **made})
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
        names = ("action", "kind", "name", "details")
        changes = [
            {**{name: getattr(each, name) for name in names}, "applied": index < done}
            for index, each in enumerate(plan.changes)
        ]
        document = {"changes": changes, "conflicts": plan.conflicts, "notes": plan.notes}
        print(json.dumps(document), flush=True)
        return
    for index, change in enumerate(plan.changes):
        line = Text(str(change))
        if done and index >= done:
            line.append("  (not made)", style="bold red")
        stdout().print(line, soft_wrap=True)
    lines = [*(f"! {each}" for each in plan.conflicts), *(f"  {each}" for each in plan.notes)]
    for text in (*lines, *([headline] if headline else [])):
        stdout().print(Text(text), soft_wrap=True)
