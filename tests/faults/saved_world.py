"""Snapshots of a world without its replicas, which can be restored any number of times."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any

from tests.faults.world import Template, World

# Attributes of the system itself. All others are what a scenario's users have done so far.
_SYSTEM = {"database_url", "template", "store", "clock", "cluster", "database", "settings"}


class SavedWorld:
    """Copies of the database, the store, the cluster, the clock and what users did, outside of any transaction."""

    def __init__(self, world: World, folder: Path) -> None:
        with closing(sqlite3.connect(_database(folder))) as connection:
            self._database = connection.serialize()
        self._objects = {key: world.store.read(key) for key in world.store.keys("")}
        self._now = world.clock.now
        self._is_away = world.store.is_away
        self._cluster = _copied(vars(world.cluster))
        self._users = _copied({k: v for k, v in vars(world).items() if k not in _SYSTEM})

    def restored(self, template: Template, folder: Path) -> World:
        """The world as it was, in the same folder; it replaces the one that is there, which must be closed."""
        world = World(template, folder)
        _database(folder).write_bytes(self._database)
        for key, data in self._objects.items():
            path = world.store.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        world.clock.now = self._now
        world.store.is_away = self._is_away
        vars(world.cluster).update(_copied(self._cluster))
        vars(world).update(_copied(self._users))
        return world


def _database(folder: Path) -> Path:
    return folder / "cmcl.db"


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Containers as of now; a cluster keeps its clock."""
    return {name: copy(value) for name, value in values.items() if name != "_clock"}
