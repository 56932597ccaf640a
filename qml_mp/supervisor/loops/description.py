"""Supervisor: what the server tells people of itself: app, versions, settings with their sources, loops."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module

from qml_mp.core.server_description import ServerDescription, ToldLoop, ToldSetting
from qml_mp.setting_kinds import Size
from qml_mp.settings import SETTINGS, ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, Loop
from qml_mp.supervisor.run import Run
from qml_mp.units import format_duration, format_size

_INTERVAL = timedelta(seconds=10)
_BY_DEFAULT, _IN_CODE = "default", "the code"


class DescriptionLoop(Loop):
    """Writes all of it anew, because loops that work go on; and at once where the server goes on under a new
    id: peers judge it by the timeout that it tells."""

    name = "description"
    interval = _INTERVAL

    def __init__(self, run: Run, *, others: Sequence[Loop]) -> None:
        super().__init__(run)
        self._others = others
        self._told_as = run.registration.id
        self._settings = _settings(run.config)
        package = import_module("qml_mp")  # which names what stands above this
        self._versions = {"qml-mp": str(package.__version__), "Python": platform.python_version()}

    def due_at(self) -> float:
        return super().due_at() if self._told_as == self._run.registration.id else AT_ONCE

    def tick(self, storage: Storage) -> None:
        self._told_as = self._run.registration.id
        loops = [
            ToldLoop(
                name=each.name, succeeded_at=each.succeeded_at, is_failing=each.failing_since is not None
            )
            for each in self._others
        ]
        description = ServerDescription(
            app=self._run.app, versions=self._versions, settings=self._settings, loops=tuple(loops)
        )
        storage.describe_server(self._told_as, description)


def _settings(config: ServerConfig) -> tuple[ToldSetting, ...]:
    return tuple(
        ToldSetting(name=name, value=_shown(name, getattr(config, name)), source=_source(config, name))
        for name in SETTINGS
    )


def _shown(name: str, value: object) -> str:
    """As people write it."""
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case timedelta():
            return format_duration(value)
        case tuple():
            return ",".join(value) or "*"
        case int() if isinstance(SETTINGS[name], Size):
            return format_size(value)
        case _:
            return str(value)


def _source(config: ServerConfig, name: str) -> str:
    return config.sources.get(name, _IN_CODE if name in config.given else _BY_DEFAULT)
