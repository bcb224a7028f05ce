"""Models: by their record, and by live.json, which may be a moment ahead of it (or all that is left)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.policy import GatePolicy
from cmcl.contract.version import LivePointer
from service.control.rebuild.bucket import Bucket
from service.control.rebuild.found.pointer import Pointer
from service.control.rebuild.found.versions import FoundVersion, ModelFolder
from service.database.queries.records import Row, version_name
from service.database.tables import models, promotions, trials, versions
from service.principal import DEFAULT_OWNER
from workers.storage import layout
from workers.storage.versions import read_live


@dataclass(frozen=True)
class FoundModel:
    """Rows of one model, and the versions that they speak of."""

    model: Row
    promotions: list[Row]
    trials: list[Row]
    versions: Mapping[int, FoundVersion]
    version_rows: list[Row]

    @property
    def name(self) -> str:
        """Of the model."""
        name: str = self.model["name"]
        return name

    @property
    def is_deleted(self) -> bool:
        """Whether a user deleted it."""
        return self.model["deleted_at"] is not None


def names_of_models(bucket: Bucket) -> list[str]:
    """All that have a record or a folder."""
    prefix = layout.model_prefix("").rstrip("/") + "/"
    return sorted(bucket.recorded("model") | set(bucket.store.folders(prefix)))


def find_model(bucket: Bucket, name: str, now: datetime, *, may_repair: bool) -> FoundModel | None:
    """None where neither a record nor a version says what the model is."""
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
    version_rows = [found[number].row(now) for number in sorted(found)]
    pointer = Pointer(
        row,
        record.rows(promotions) if record else [],
        record.rows(trials) if record else [],
        {each["number"]: each for each in version_rows},
        is_recorded,
        now,
    )
    pointer.follow(live, bucket.findings)
    return FoundModel(row, pointer.promotions, pointer.trials, found, version_rows)


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
        is_deleted=row is not None and row["deleted_at"] is not None,
        may_repair=may_repair,
    )


def _live(bucket: Bucket, name: str) -> LivePointer | None:
    try:
        return read_live(bucket.store, name)
    except InvalidVersion as error:
        so = "the record tells which version answers; without one, the newest does"
        bucket.findings.damage(f"live.json of {name!r}", str(error), so)
        return None


def _without_record(
    bucket: Bucket, name: str, found: Mapping[int, FoundVersion], live: LivePointer | None
) -> Row:
    """What manifests and live.json tell, and for the rest what a new model has."""
    newest = found[max(found)]
    owner = live.owner if live is not None and live.owner is not None else None
    bucket.findings.assumed.append(
        f"model {name!r} has no record: "
        + ("" if owner else f"owner {DEFAULT_OWNER!r}, ")
        + "the policy of a new model, and one promotion as its history"
    )
    return {
        "name": name,
        "owner": owner or DEFAULT_OWNER,
        "spec": newest.manifest.spec.model_dump(mode="json"),
        "policy": GatePolicy().model_dump(mode="json"),
        "policy_revision": 1,
        "head": max(found),
        "live_version": None,
        "live_generation": 0,
        "live_revision": 0,
        "revised_at": None,
        "branched_from": _branch_point(found),
        "created_at": found[min(found)].manifest.created_at,
        "deleted_at": None,
        "swept_at": None,
    }


def _branch_point(found: Mapping[int, FoundVersion]) -> Row | None:
    """The last of the versions that were copied."""
    copies = [version for _, version in sorted(found.items()) if version.copied_from is not None]
    if not copies:
        return None
    return {"model": copies[-1].copied_from, "version": copies[-1].manifest.version}
