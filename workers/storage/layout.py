"""The names of all keys: the only place that knows how the bucket is laid out.

datasets/<dataset>/manifest.json            verified shards
                   evaluation-<i>.parquet   held-out rows, copied in
                   moments.safetensors      written when its version is published
runs/<job>/a<attempt>/spec.json, progress.json, failure.json, candidate/...; may be swept
models/<model>/versions/<n>/...             a published version; manifest.json LAST
models/<model>/live.json                    which version answers
"""

MANIFEST = "manifest.json"
HEADS = "heads.safetensors"
MEMORY = "memory.safetensors"
KEPT = "kept.safetensors"
SELFTEST = "selftest.safetensors"
MOMENTS = "moments.safetensors"

# What lies beside the manifest of a version; MOMENTS moves to the dataset instead.
VERSION_FILES = (HEADS, MEMORY, KEPT, SELFTEST)


def dataset_manifest(dataset: str) -> str:
    return f"datasets/{dataset}/{MANIFEST}"


def evaluation_shard(dataset: str, index: int) -> str:
    return f"datasets/{dataset}/evaluation-{index}.parquet"


def dataset_moments(dataset: str) -> str:
    return f"datasets/{dataset}/{MOMENTS}"


def run_prefix(job: str, attempt: int) -> str:
    return f"runs/{job}/a{attempt}"


def run_spec(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/spec.json"


def run_progress(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/progress.json"


def run_failure(job: str, attempt: int) -> str:
    return f"{run_prefix(job, attempt)}/failure.json"


def run_file(job: str, attempt: int, name: str) -> str:
    return f"{run_prefix(job, attempt)}/candidate/{name}"


def version_file(model: str, version: int, name: str) -> str:
    return f"models/{model}/versions/{version}/{name}"


def live_pointer(model: str) -> str:
    return f"models/{model}/live.json"
