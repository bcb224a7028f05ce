"""Rebuilds models from their record and live.json, which may be slightly newer, or all that is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.gate import Gate
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.versions import read_live
from service.core.principal import DEFAULT_OWNER
from service.database.queries.backup import Row, version_name
from service.database.tables import attempts, jobs, models, promotions, versions
from service.maintenance.rebuild_bucket import Bucket, Findings, FoundVersion, ModelFolder

ACTOR = "rebuild"


@dataclass(frozen=True)
class Pointer:
    """The rows of one model, reconciled in place with live.json."""

    model: Row
    promotions: list[Row]
    versions: Mapping[int, Row]
    is_recorded: bool
    now: datetime

    def follow(self, live: LivePointer | None, findings: Findings) -> None:
        """Adopt what is newer in live.json, then ensure that the live version is sound."""
        # live.json is written again when the service starts.
        self.model.update(lease_owner=None, mirrored_revision=0)
        if self.model["deleted_at"] is not None:
            return
        if live is not None and live.order > self._order():
            self._adopt(live)
        elif self.is_recorded:
            self._begin_newest()
        number = self.model["live_version"]
        if number is not None or (self.versions and not self._was_ever_live()):
            self._replace_unless_sound(number, findings)

    def _order(self) -> tuple[int, int]:
        return (self.model["live_generation"], self.model["live_revision"])

    def _was_ever_live(self) -> bool:
        return bool(self.model["live_generation"] > 0)

    def _adopt(self, live: LivePointer) -> None:
        if live.generation > self.model["live_generation"]:
            self._promote(live.version, live.generation, "rebuilt from live.json")
        self.model["live_revision"] = max(self.model["live_revision"], live.revision)
        for number in live.retired:
            row = self.versions.get(number)
            if row is not None and row["retired_at"] is None:
                row["retired_at"] = self.now
        row = self.versions.get(live.version)
        if row is not None and row["stored_at"] is None:
            # It is live, so it was stored; that was not recorded in time.
            row["stored_at"] = self.now

    def _begin_newest(self) -> None:
        """Promote the newest stored version if its promotion was not recorded in time."""
        able = [number for number in self.versions if self._can_serve(number)]
        begun = {each["version"] for each in self.promotions}
        if not able or max(able) in begun or max(able) < (self.model["live_version"] or 0):
            return
        self._promote(max(able), self.model["live_generation"] + 1, "rebuilt: it had been stored")
        self.model["live_revision"] += 1

    def _replace_unless_sound(self, number: int | None, findings: Findings) -> None:
        if number is not None and self._can_serve(number):
            return
        able = [each for each in self.versions if self._can_serve(each)]
        if not able:
            self.model["live_version"] = None
            return
        why = f"version {number} cannot" if number else "nothing records which version was live"
        findings.repaired.append(f"version {max(able)} of {self.model['name']!r} is live: {why}")
        if not self._was_ever_live():
            # Replicas ignore a pointer older than one that they have seen.
            findings.assumed.append(
                f"nothing records how often the live version of {self.model['name']!r} had changed: "
                "restart the embeddings endpoint"
            )
        self._promote(max(able), self.model["live_generation"] + 1, f"rebuilt: {why}")
        self.model["live_revision"] += 1

    def _can_serve(self, number: int) -> bool:
        row = self.versions.get(number)
        return row is not None and row["stored_at"] is not None and row["retired_at"] is None

    def _promote(self, version: int, generation: int, reason: str) -> None:
        before = self.model["live_generation"]
        self.promotions.append(
            {
                "model": self.model["name"],
                "generation": generation,
                "version": version,
                "previous": self.model["live_version"],
                "kind": "promoted",
                "returns_to": before or None,
                "reason": reason,
                "actor": ACTOR,
                "created_at": self.now,
            }
        )
        self.model.update(live_version=version, live_generation=generation, revised_at=self.now)


@dataclass(frozen=True)
class FoundModel:
    """The rows of one model, and its versions. `merges` and `attempts`: its jobs that have no dataset."""

    model: Row
    promotions: list[Row]
    versions: Mapping[int, FoundVersion]
    version_rows: list[Row]
    merges: list[Row]
    attempts: list[Row]

    @property
    def name(self) -> str:
        """The model's name."""
        name: str = self.model["name"]
        return name

    @property
    def is_deleted(self) -> bool:
        """Whether a user deleted it."""
        return self.model["deleted_at"] is not None


def names_of_models(bucket: Bucket) -> list[str]:
    """Names of all models that have a record or a folder."""
    prefix = layout.model_prefix("").rstrip("/") + "/"
    return sorted(bucket.recorded("model") | set(bucket.store.folders(prefix)))


def find_model(bucket: Bucket, name: str, now: datetime, *, may_repair: bool) -> FoundModel | None:
    """The model; None if it has neither a record nor a version."""
    record = bucket.record("model", name)
    row = next(iter(record.rows(models)), None) if record else None
    is_recorded = row is not None
    found = _folder(bucket, name, row, may_repair=may_repair).versions()
    live = _live(bucket, name)
    if row is None:
        if not found:
            so = "it is left out; its folder is never removed"
            bucket.findings.damage(f"model {name!r}", "it has neither a record nor a version", so)
            return None
        row = _without_record(bucket, name, found, live)
    row["head"] = max(row["head"], *found, 0)
    row["encoders"] = _encoders(found) | row["encoders"]
    version_rows = [found[number].row(now) for number in sorted(found)]
    pointer = Pointer(
        row,
        record.rows(promotions) if record else [],
        {each["number"]: each for each in version_rows},
        is_recorded,
        now,
    )
    pointer.follow(live, bucket.findings)
    return FoundModel(
        row,
        pointer.promotions,
        found,
        version_rows,
        record.rows(jobs) if record else [],
        record.rows(attempts) if record else [],
    )


def _encoders(found: Mapping[int, FoundVersion]) -> Row:
    """By modality, the encoder of the features that the newest version has learned."""
    if not found:
        return {}
    encoders = found[max(found)].manifest.encoders
    return {modality: each.model_dump(mode="json") for modality, each in encoders.items()}


def _folder(bucket: Bucket, name: str, row: Row | None, *, may_repair: bool) -> ModelFolder:
    recorded: dict[int, Row] = {}
    digests: dict[int, str | None] = {}
    prefix = version_name(name, 0).removesuffix("0")
    keys = bucket.store.keys(f"{layout.records()}versions/{prefix}")
    for key in keys:
        number = int(key.rpartition("/")[2].removesuffix(".json"))
        record = bucket.record("version", version_name(name, number))
        for found in record.rows(versions) if record else ():
            recorded[number] = found
            digests[number] = record.manifest_sha256 if record else None
    return ModelFolder(
        bucket=bucket,
        model=name,
        recorded=recorded,
        digests=digests,
        head=row["head"] if row else None,
        branched_from=row["branched_from"]["model"] if row and row["branched_from"] else None,
        is_deleted=row is not None and row["deleted_at"] is not None,
        may_repair=may_repair,
    )


def _live(bucket: Bucket, name: str) -> LivePointer | None:
    try:
        return read_live(bucket.store, name)
    except InvalidVersion as error:
        so = "the record says which version is live; without one, it is the newest"
        bucket.findings.damage(f"live.json of {name!r}", str(error), so)
        return None


def _without_record(
    bucket: Bucket, name: str, found: Mapping[int, FoundVersion], live: LivePointer | None
) -> Row:
    """The row from manifests and live.json, with defaults of a new model for the rest."""
    newest = found[max(found)]
    owner = live.owner if live is not None and live.owner is not None else None
    bucket.findings.assumed.append(
        f"model {name!r} has no record: "
        + ("" if owner else f"owner {DEFAULT_OWNER!r}, ")
        + "the gate of a new model, and one promotion as its history"
    )
    return {
        "name": name,
        "owner": owner or DEFAULT_OWNER,
        "spec": newest.manifest.spec.model_dump(mode="json"),
        "gate": Gate().model_dump(mode="json"),
        "gate_revision": 1,
        "head": max(found),
        "live_version": None,
        "live_generation": 0,
        "live_revision": 0,
        "revised_at": None,
        "encoders": {},
        "branched_from": _branch_point(found),
        "created_at": found[min(found)].manifest.created_at,
        "deleted_at": None,
        "swept_at": None,
    }


def _branch_point(found: Mapping[int, FoundVersion]) -> Row | None:
    """The last copied version."""
    copies = [version.manifest for _, version in sorted(found.items()) if not version.is_own]
    return {"model": copies[-1].copied_from, "version": copies[-1].version} if copies else None
