"""Beside a server: what /metrics, /livez and /readyz answer."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from qml_mp import __version__
from qml_mp.ipc.side import ServerReport
from qml_mp.metrics.ends import ToldEnds
from qml_mp.metrics.families import ServerCollector
from qml_mp.metrics.health import why_not_alive, why_not_ready
from qml_mp.metrics.server import HttpAnswer, Page
from qml_mp.metrics.storage_looks import StorageLooks
from qml_mp.storage.store import Storage

_INDEX = b"/metrics\n/livez\n/readyz\n"


class MetricsPages:
    """Of one server, told of each of its reports by one thread and asked by many."""

    def __init__(self, storage: Storage) -> None:
        self._looks = StorageLooks(storage)
        self._since = time.monotonic()
        self._newest: ServerReport | None = None
        self._ends = ToldEnds()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(
            ServerCollector(
                version=__version__,
                backend="sqlite" if storage.url.startswith("sqlite:") else "postgresql",
                report=lambda: self._newest,
                ends=self._ends.numbers,
                look=lambda: self._looks.newest(server_id=self._server_id()),
            )
        )

    def told(self, report: ServerReport) -> None:
        """The supervisor has reported."""
        stops = report.is_stopping and not (self._newest is not None and self._newest.is_stopping)
        self._ends.add(report)
        self._newest = report
        if stops:
            self._looks.leave()

    def by_path(self) -> Mapping[str, Page]:
        return {
            "/": lambda _: HttpAnswer(200, _INDEX),
            "/metrics": self._metrics,
            "/livez": lambda _: self._livez(),
            "/readyz": lambda _: self._readyz(),
        }

    def _metrics(self, accept: str) -> HttpAnswer:
        try:
            encode, kind = choose_encoder(accept)
        except Exception:  # of a version that is no number; whoever asks so gets the plain format
            encode, kind = choose_encoder("")
        return HttpAnswer(200, encode(self._registry), kind)

    def _livez(self) -> HttpAnswer:
        return HttpAnswer.of_reasons(why_not_alive(self._newest, now=time.monotonic(), since=self._since))

    def _readyz(self) -> HttpAnswer:
        look = self._looks.health(server_id=self._server_id())
        return HttpAnswer.of_reasons(
            why_not_ready(self._newest, look, now=time.monotonic(), since=self._since)
        )

    def _server_id(self) -> str | None:
        """Of the server in whose name looks at storage are made."""
        report = self._newest
        return None if report is None or report.is_stopping else report.server_id
