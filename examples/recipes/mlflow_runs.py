"""MLflow: a run for a model, a step for each version. `pip install mlflow-skinny`, then

    python mlflow_runs.py shapes --tracking-uri http://127.0.0.1:5000    # until Ctrl-C; --once: what there is, and end

Started again, it continues the run. Metrics have the time of their version, so that MLflow keeps equal points once.
"""

import argparse

from follow import URL, versions
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from cmcl import Client


def main() -> None:
    """Write what the arguments name."""
    parser = argparse.ArgumentParser(description="Versions in MLflow.")
    parser.add_argument("model")
    parser.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI")
    parser.add_argument("--experiment", default="cmcl")
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    mlflow = MlflowClient(given.tracking_uri)
    run = _run(mlflow, given.experiment, given.model)
    with Client(URL) as client:
        for published in versions(client, given.model, once=given.once):
            version = published.version
            at = int(version.created_at.timestamp() * 1000)
            metrics = [
                Metric(name, value, at, version.version)
                for name, value in published.metrics().items()
            ]
            params = [Param(*each) for each in published.settings().items()]
            mlflow.log_text(run, published.picture(), f"versions/{version.version}/pictures.svg")
            manifest = version.manifest.model_dump_json(indent=2)
            mlflow.log_text(run, manifest, f"versions/{version.version}/manifest.json")
            # MLflow accepts 1,000 in one request.
            for start in range(0, len(metrics), 900):
                mlflow.log_batch(run, metrics[start : start + 900], params)
            print(f"{published.name} is written", flush=True)


def _run(mlflow: MlflowClient, experiment: str, model: str) -> str:
    """Return the id of the model's run, made if there is none."""
    known = mlflow.get_experiment_by_name(experiment)
    home = known.experiment_id if known else mlflow.create_experiment(experiment)
    tags = {"cmcl.model": model, "cmcl.service": URL}
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    run = next(iter(mlflow.search_runs([home], wanted)), None)
    found = run or mlflow.create_run(home, tags=tags, run_name=model)
    identifier: str = found.info.run_id
    return identifier


if __name__ == "__main__":
    main()
