"""The layout of the bucket: every key is built here, but for what Ray Train writes (`workers/train/ranks.py`).

docs/architecture.md, "Object storage", says what each object holds, who writes it, and until when it stays.
"""

import re
from pathlib import PurePosixPath
from typing import Literal

MANIFEST = "manifest.json"
HEADS = "heads.safetensors"
INPUTS = "inputs.safetensors"
MEMORY = "memory.safetensors"
SELFTEST = "selftest.safetensors"
# The name under which a running attempt shows that it has written what it was to write.
ENDED = "ended"

_ENCODED_OBJECT = re.compile(r"/([0-9]{11})-[0-9a-f]{16}-[0-9]+\.items\Z")
_VERSION_MANIFEST = re.compile(rf"models/([^/]+)/versions/([1-9][0-9]*)/{re.escape(MANIFEST)}\Z")
_POOLED_MOMENTS = re.compile(r"memory/([a-z0-9_]+)\+([a-z0-9_]+)\.safetensors\Z")
# The files that each version has, by the names of its manifest. Moments of pairs (`pooled_moments`) and the state of the
# method (`method_state`) come on top.
VERSION_FILES = (HEADS, INPUTS, MEMORY, SELFTEST)
# What an endpoint embeds with: weights, and how features are conditioned and lifted, which few versions change.
HEADS_FILES = (HEADS, INPUTS)


def dataset_prefix(dataset: str) -> str:
    return f"datasets/{dataset}/"


def dataset_manifest(dataset: str) -> str:
    return f"datasets/{dataset}/{MANIFEST}"


def evaluation_shard(dataset: str, index: int, sha256: str) -> str:
    """Contains part of the digest, so that concurrent intakes of other bytes have other keys."""
    return f"datasets/{dataset}/evaluation-{index}-{sha256[:12]}.parquet"


def training_shard(dataset: str, index: int, sha256: str) -> str:
    """As `evaluation_shard`, for a shard to train on."""
    return f"{training_shards(dataset)}{index}-{sha256[:12]}.parquet"


def training_shards(dataset: str) -> str:
    """Prefix of the keys of training shards."""
    return f"datasets/{dataset}/training-"


def preparations() -> str:
    """Prefix of all requests to prepare a dataset."""
    return "preparations/"


def preparation_request(dataset: str) -> str:
    return f"{preparations()}{dataset}.json"


def preparation_file(dataset: str, name: Literal["progress", "failure", "report", "stages"]) -> str:
    return f"datasets/{dataset}/preparation/{name}.json"


def preparation_files(dataset: str) -> str:
    """Prefix of progress, failure, report, stages and records of units of a preparation."""
    return f"datasets/{dataset}/preparation/"


def preparation_units(dataset: str) -> str:
    """Prefix of the records of units of a dataset that is being prepared."""
    return f"datasets/{dataset}/preparation/units/"


def preparation_unit(dataset: str, request: int, unit: str) -> str:
    """Record of one unit that is done. `unit`: digest of its description."""
    return f"{preparation_units(dataset)}{request}/{unit}.json"


def preparation_evaluation(dataset: str, request: int, unit: str) -> str:
    """Held-out rows of one unit of raw rows."""
    return f"{preparation_units(dataset)}{request}/{unit}.parquet"


def preparation_ids(dataset: str, request: int, unit: str) -> str:
    """Digests of the ids of a unit's rows, sixteen bytes each, after the BLAKE3 of the key and them."""
    return f"{preparation_units(dataset)}{request}/{unit}.ids"


def rejected_rows(dataset: str) -> str:
    return f"datasets/{dataset}/rejected.jsonl"


def encoder_record(digest: str) -> str:
    return f"encoders/{digest}.json"


def encoded() -> str:
    """Prefix of the encoded items of all owners."""
    return "encoded/"


def encoded_items(owner: str, encoder: str) -> str:
    """Prefix of the items that an owner had encoded. `encoder`: digest over its identity and limits."""
    return f"{encoded()}{owner}/{encoder[:16]}/"


def encoded_object(folder: str, seconds: int, digest: str, count: int) -> str:
    """`count` items that were encoded `seconds` after 1970. `digest`: over their index."""
    return f"{folder}{seconds:011}-{digest[:16]}-{count}.items"


def encoded_at(key: str) -> int:
    """When the items of an object were encoded, in seconds after 1970; 0 for any other key."""
    match = _ENCODED_OBJECT.search(key)
    return int(match[1]) if match else 0


def encoded_digest(key: str) -> str:
    """The digest in the key of encoded items: of their index, shortened."""
    return PurePosixPath(key).stem.split("-")[1]


def encoded_count(key: str) -> int:
    """Number of items of an object."""
    return int(PurePosixPath(key).stem.rpartition("-")[2])


def driver_ready() -> str:
    """Written by each driver once its ranks and worker processes are there."""
    return "driver.json"


def attempts() -> str:
    """Prefix of all requests to train an attempt."""
    return "attempts/"


def attempt_request(attempt: str) -> str:
    """`attempt`: a submission id."""
    return f"{attempts()}{attempt}.json"


def attempt_outcome(attempt: str) -> str:
    """`attempt`: a submission id. Not below `attempts()`, which is listed often."""
    return f"outcomes/{attempt}.json"


def running() -> str:
    """Prefix of what all running attempts show."""
    return "running/"


def running_file(attempt: str, name: str) -> str:
    """`attempt`: a submission id. With an empty name, the prefix of all keys of the attempt."""
    return f"{running()}{attempt}_{name}"


def runs_prefix(job: str) -> str:
    """Prefix of all attempts of a job."""
    return f"runs/{job}/"


def run_prefix(job: str, attempt: int) -> str:
    return f"runs/{job}/a{attempt}"


def run_spec(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/spec.json"


def run_failure(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/failure.json"


def run_evaluation(job: str, attempt: int) -> str:
    """The result of an attempt that measures a dataset and makes no version; written last."""
    return f"{run_prefix(job, attempt)}/evaluation.json"


def run_stages(job: str, attempt: int) -> str:
    """Times of the stages of an attempt that is traced."""
    return f"{run_prefix(job, attempt)}/stages.json"


def run_log(job: str, attempt: int) -> str:
    """The end of the attempt's log, written by the control plane when the attempt ends."""
    return f"{run_prefix(job, attempt)}/log.txt"


def run_checkpoints(job: str, attempt: int) -> str:
    """Prefix of an attempt's checkpoints; in lexical order the newest is last."""
    return f"{run_prefix(job, attempt)}/checkpoints/"


def run_checkpoint(job: str, attempt: int, updates: int, sha256: str) -> str:
    """Contains a digest of its bytes and of the rest of the key, so that readers can verify that it is whole."""
    return f"{run_checkpoints(job, attempt)}{updates:012d}-{sha256}.safetensors"


def run_candidate(job: str, attempt: int) -> str:
    """The manifest of an attempt's candidate; written last."""
    return f"{run_prefix(job, attempt)}/candidate.json"


def blobs() -> str:
    """Prefix of all blobs."""
    return "blobs/"


def blob(sha256: str) -> str:
    """An object with these bytes, whoever names it."""
    return f"{blobs()}{sha256}"


def models() -> str:
    return "models/"


def model_prefix(model: str) -> str:
    return f"{models()}{model}/"


def version_manifest(model: str, version: int) -> str:
    return f"{model_prefix(model)}versions/{version}/{MANIFEST}"


def version_of(key: str) -> tuple[str, int] | None:
    """Model and number of a version's manifest; None for any other key."""
    match = _VERSION_MANIFEST.match(key)
    return (match[1], int(match[2])) if match else None


def pooled_moments(first: str, second: str) -> str:
    """Name of the file of a version with the pooled moments of a pair, in lexical order."""
    return f"memory/{first}+{second}.safetensors"


def method_state(name: str) -> str:
    """Name of the file of a version with that tensor of its method's state."""
    return f"kept/{name}.safetensors"


def is_method_state(name: str) -> bool:
    """Whether a file of a version is part of its method's state."""
    return name.startswith("kept/")


def pair_of(name: str) -> tuple[str, str] | None:
    """The pair of a file with pooled moments; None for any other file of a version."""
    match = _POOLED_MOMENTS.match(name)
    return (match[1], match[2]) if match else None


def all_query_sums() -> str:
    """Prefix of the sums of queries that are not in a report yet."""
    return "queries/"


def query_sums(model: str, minute: int, replica: str, version: int) -> str:
    """Written by a replica in that minute after 1970."""
    return f"{all_query_sums()}{model}/{minute:010d}-{replica}-{version}.json"


def query_sums_in(key: str) -> tuple[str, int, str]:
    """Model, minute and replica of the key of a sum."""
    _, model, name = key.split("/")
    minute, replica, _ = name.split("-")
    return model, int(minute), replica


def drift_reports() -> str:
    """Prefix of the reports on drift of queries."""
    return "drift/"


def drift_report(model: str) -> str:
    return f"{drift_reports()}{model}.json"


def live_pointer(model: str) -> str:
    return f"models/{model}/live.json"


def key_snapshot() -> str:
    return "access/keys.jwt"


def records() -> str:
    """Prefix of all records, which remain when the recorded object is deleted."""
    return "records/"


def model_records() -> str:
    return f"{records()}models/"


def model_record(model: str) -> str:
    return f"{model_records()}{model}.json"


def dataset_record(dataset: str) -> str:
    return f"{records()}datasets/{dataset}.json"


def collections() -> str:
    return "collections/"


def collection_numbers() -> str:
    """Prefix of these keys; in lexical order the highest is last."""
    return "collection-numbers/"


def collection_number(number: int) -> str:
    return f"{collection_numbers()}{number:012d}"


def collection(name: str) -> str:
    return f"{collections()}{name}/"


def collection_table(name: str, number: int) -> str:
    return f"{collection(name)}{number:08d}.lance"


def upload_prefix(upload: str) -> str:
    return f"uploads/{upload}/"


def upload_file(upload: str, file: str) -> str:
    return f"{upload_prefix(upload)}{file}"
