"""The names of all keys: the only place that knows how the bucket is laid out.

datasets/<dataset>/manifest.json            verified shards
                   training-<i>-<digest>.parquet     converted or split rows, until they were learned
                   evaluation-<i>-<digest>.parquet   held-out rows, copied in
                   moments.safetensors      written when its version is published
runs/<job>/a<attempt>/spec.json, progress.json, failure.json, candidate/...; may be swept
                      checkpoints/<updates>-<digest>.safetensors    the last two
models/<model>/versions/<n>/...             a published version; manifest.json LAST
models/<model>/live.json                    which version answers, and which is on trial beside it
models/<model>/observations/<revision>/<replica>.json    what a replica has seen of that trial
access/keys.jwt                             who may ask the replicas, signed by the control plane
records/models/<model>.json                 what else the database knows, so that it can be rebuilt
        datasets/<dataset>.json
        versions/<model>/<n>.json
collections/<name>/revisions/<n>.json       what a collection consists of, one for each change
                   segments/<time>-<id>.parquet      rows that were written together; never changed
collection-numbers/<n>                      no revision of a collection that was swept is later than this
uploads/<upload>/parts/<n>-<sha256>         parts that arrived, until the file is complete
                 direct                     what a client put there by itself, through a signed link
                 file-<n>                   the complete file, as the n-th attempt made it
"""

MANIFEST = "manifest.json"
HEADS = "heads.safetensors"
MEMORY = "memory.safetensors"
METHOD_STATE = "kept.safetensors"
SELFTEST = "selftest.safetensors"
MOMENTS = "moments.safetensors"

# What lies beside the manifest of a version; MOMENTS moves to the dataset instead.
VERSION_FILES = (HEADS, MEMORY, METHOD_STATE, SELFTEST)


def dataset_prefix(dataset: str) -> str:
    return f"datasets/{dataset}/"


def dataset_manifest(dataset: str) -> str:
    return f"datasets/{dataset}/{MANIFEST}"


def evaluation_shard(dataset: str, index: int, sha256: str) -> str:
    """With a piece of its digest: who takes other bytes in at the same time writes beside it."""
    return f"datasets/{dataset}/evaluation-{index}-{sha256[:12]}.parquet"


def training_shard(dataset: str, index: int, sha256: str) -> str:
    """The same of a shard to train on."""
    return f"{training_shards(dataset)}{index}-{sha256[:12]}.parquet"


def training_shards(dataset: str) -> str:
    """What their keys begin with."""
    return f"datasets/{dataset}/training-"


def dataset_moments(dataset: str) -> str:
    return f"datasets/{dataset}/{MOMENTS}"


def runs_prefix(job: str) -> str:
    """All attempts of a job, or what a pre-flight left."""
    return f"runs/{job}/"


def run_prefix(job: str, attempt: int) -> str:
    return f"runs/{job}/a{attempt}"


def run_spec(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/spec.json"


def run_progress(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/progress.json"


def run_failure(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/failure.json"


def run_checkpoints(job: str, attempt: int) -> str:
    """What the keys of an attempt's checkpoints begin with; in lexical order the newest is last."""
    return f"{run_prefix(job, attempt)}/checkpoints/"


def run_checkpoint(job: str, attempt: int, updates: int, sha256: str) -> str:
    """With its digest, so that whoever reads it can tell whether it is whole."""
    return f"{run_checkpoints(job, attempt)}{updates:012d}-{sha256}.safetensors"


def run_file(job: str, attempt: int, name: str) -> str:
    return f"{run_prefix(job, attempt)}/candidate/{name}"


def models() -> str:
    return "models/"


def model_prefix(model: str) -> str:
    return f"{models()}{model}/"


def version_file(model: str, version: int, name: str) -> str:
    return f"models/{model}/versions/{version}/{name}"


def live_pointer(model: str) -> str:
    return f"models/{model}/live.json"


def observations(model: str, revision: int) -> str:
    """What the keys of all observations of a trial begin with."""
    return f"models/{model}/observations/{revision}/"


def observation(model: str, revision: int, replica: str) -> str:
    return f"{observations(model, revision)}{replica}.json"


def key_snapshot() -> str:
    return "access/keys.jwt"


def records() -> str:
    """What the keys of all records begin with; they stay when what they tell of is removed."""
    return "records/"


def model_records() -> str:
    return f"{records()}models/"


def model_record(model: str) -> str:
    return f"{model_records()}{model}.json"


def dataset_record(dataset: str) -> str:
    return f"{records()}datasets/{dataset}.json"


def version_record(model: str, version: int) -> str:
    return f"{records()}versions/{model}/{version}.json"


def collections() -> str:
    return "collections/"


def collection_revisions(collection: str) -> str:
    """What the keys of a collection's revisions begin with; in lexical order the newest is last."""
    return f"{collections()}{collection}/revisions/"


def collection_revision(collection: str, revision: int) -> str:
    return f"{collection_revisions(collection)}{revision:012d}.json"


def collection_numbers() -> str:
    """What these keys begin with; in lexical order the highest is last."""
    return "collection-numbers/"


def collection_number(number: int) -> str:
    return f"{collection_numbers()}{number:012d}"


def collection_segments(collection: str) -> str:
    """What the keys of a collection's segments begin with; in lexical order the oldest is first."""
    return f"{collections()}{collection}/segments/"


def collection_segment(collection: str, name: str) -> str:
    return f"{collection_segments(collection)}{name}"


def upload_prefix(upload: str) -> str:
    return f"uploads/{upload}/"


def upload_part(upload: str, number: int, sha256: str) -> str:
    return f"uploads/{upload}/parts/{number}-{sha256}"


def upload_direct(upload: str) -> str:
    return f"uploads/{upload}/direct"


def upload_file(upload: str, attempt: int) -> str:
    return f"uploads/{upload}/file-{attempt}"
