"""The two owners: their keys and models, and the collection of the bystander."""

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.isolation.attacker import Target
from benchmarks.isolation.bystander import Bystander
from cmcl.client import Client, CmclError, Item, Query
from cmcl.contract.dataset import ShardRef
from cmcl.contract.model import ModelSpec
from cmcl.demo.run import Stream
from cmcl.stack import LocalStack
from cmcl.stack_host import StackError

ATTACKER, BYSTANDER = "mallory", "bob"
_SCOPES = ("read", "write", "train", "embed", "admin")
_COLLECTION = "steady"
_ROWS = 200
_ANSWERED_SECONDS = 90.0
# Successes in a row, so that a restart in progress has ended.
_ANSWERED_TIMES = 5


class Owners:
    """Two owners on a running system. `rows`: a folder for files of further datasets."""

    def __init__(self, stack: LocalStack, stream: Stream, rows: Path) -> None:
        self._stack = stack
        self._stream = stream
        self._rows = rows
        self._rows.mkdir()
        # The smallest dataset suffices, and trains in seconds.
        self._dataset = min(stream.datasets, key=lambda each: each.train.stat().st_size)
        self._numbers = itertools.count(1)
        operator = self._client(stack.operator_key or "")
        with operator:
            # One scope each, so that an attack documents the scopes it needs; the admin key has
            # all.
            self._attackers = {
                scope: _key(operator, ATTACKER, scope, _SCOPES if scope == "admin" else (scope,))
                for scope in _SCOPES
            }
            self._key = _key(operator, BYSTANDER, "all", _SCOPES)

    @property
    def _widths(self) -> dict[str, int]:
        return {name: self._stream.modalities[name] for name in self._dataset.pair.modalities}

    @property
    def _feature(self) -> list[float]:
        return self._stream.probe_rows(1)[self._dataset.pair.second][0]

    def settle(self) -> None:
        """Train one small version for each owner, and fill the bystander's collection."""
        for owner, key in ((ATTACKER, self._attackers["admin"]), (BYSTANDER, self._key)):
            with self._client(key) as client:
                self._train(client, owner)
        modality = self._dataset.pair.second
        rows = pq.read_table(self._dataset.train, columns=["feature_b"]).slice(0, _ROWS)
        features = rows.column("feature_b").to_pylist()
        with self._client(self._key) as client:
            client.create_collection(_COLLECTION, BYSTANDER)
            client.add_items(
                _COLLECTION,
                [
                    Item(id=f"row-{number}", modality=modality, feature=feature)
                    for number, feature in enumerate(features)
                ],
            )
        self.wait_until_answered()

    def _train(self, client: Client, owner: str) -> None:
        """Train one version of a model named after its owner, and wait until it is live."""
        dataset = self._dataset
        spec = ModelSpec(modalities=self._widths)
        client.create_model(owner, spec)
        accepted = client.add_dataset(owner, dataset.name, dataset.pair, dataset.shards)
        job = client.watch(str(accepted["job"]["id"]))
        if job["state"] != "published":
            raise StackError(f"the dataset of {owner} is {job['state']}: {job['message']}")
        _await(lambda: client.embed(owner, dataset.pair.second, [self._feature]), times=1)

    def bystander(self, rates: Mapping[str, float]) -> Bystander:
        """Return the arguments of the steady work's process."""
        return Bystander(
            service=self._stack.service_url,
            endpoint=self._stack.embeddings_url,
            key=self._key,
            model=BYSTANDER,
            modality=self._dataset.pair.second,
            feature=self._feature,
            collection=_COLLECTION,
            rates=rates,
        )

    def target(self, seconds: float, scale: float) -> Target:
        """Return the arguments of an attack's process."""
        return Target(
            service=self._stack.service_url,
            endpoint=self._stack.embeddings_url,
            keys=self._attackers,
            model=ATTACKER,
            widths=self._widths,
            prefix=(self._rows / ATTACKER).resolve().as_uri(),
            seconds=seconds,
            scale=scale,
        )

    def learn_another(self) -> dict[str, Any]:
        """Post another dataset of the bystander. Return its job's final state and duration."""
        number = next(self._numbers)
        path = self._rows / f"{number}.parquet"
        # Different rows each time, because equal rows would be the same dataset.
        table = pq.read_table(self._dataset.train)
        pq.write_table(table.slice(number, table.num_rows // 2), path)
        begin = time.monotonic()
        try:
            with self._client(self._key) as client:
                accepted = client.add_dataset(
                    *(BYSTANDER, path.stem, self._dataset.pair),
                    [ShardRef(uri=path.resolve().as_uri())],
                )
                state = str(client.watch(str(accepted["job"]["id"]), timeout=300)["state"])
        except CmclError as error:
            state = str(error)
        return {"state": state, "seconds": round(time.monotonic() - begin, 1)}

    def wait_until_answered(self) -> None:
        """Wait until the bystander's queries, searches and reads succeed. Raises StackError."""
        query = Query(modality=self._dataset.pair.second, feature=self._feature)
        with self._client(self._key) as client:

            def ask() -> None:
                client.embed(BYSTANDER, query.modality, [self._feature])
                client.search(_COLLECTION, query)
                next(iter(client.models()))

            _await(ask, _ANSWERED_TIMES)

    def _client(self, key: str) -> Client:
        return Client(self._stack.service_url, self._stack.embeddings_url, key=key)


def _await(ask: Callable[[], object], times: int) -> None:
    """Wait until `ask` succeeds `times` times in a row. Raises StackError."""
    deadline, answered = time.monotonic() + _ANSWERED_SECONDS, 0
    while answered < times:
        try:
            ask()
            answered += 1
        except CmclError as error:
            if time.monotonic() > deadline:
                raise StackError(f"not answered for {_ANSWERED_SECONDS:g} s: {error}") from error
            answered = 0
        time.sleep(0.2)


def _key(operator: Client, owner: str, name: str, scopes: tuple[str, ...]) -> str:
    secret = operator.create_key(name, scopes, owner).key
    assert secret is not None, "`create_key` raises where the answer has no secret"
    return secret.get_secret_value()
