"""Beside a server: its metrics and its health, from what the supervisor reports and storage tells."""

from __future__ import annotations

from importlib.util import find_spec

from qml_mp.errors import ConfigurationError
from qml_mp.ipc.side import SideArguments
from qml_mp.setting_kinds import host_and_port
from qml_mp.side.link import SupervisorLink
from qml_mp.storage.open import open_storage


def serve_metrics(arguments: SideArguments, link: SupervisorLink) -> None:
    """Serve until the supervisor is gone. Raises `ConfigurationError` when that cannot be done."""
    if find_spec("prometheus_client") is None:
        raise ConfigurationError("metrics need the extra `metrics`: pip install 'qml-mp[metrics]'.")
    from qml_mp.metrics.pages import MetricsPages
    from qml_mp.metrics.server import MetricsServer

    storage = open_storage(arguments.url, application_name="qml-mp: metrics")
    storage.expect_schema()
    pages = MetricsPages(storage)
    server = MetricsServer(*host_and_port(arguments.address), pages.by_path())
    link.follow(pages.told)
    link.serves_at(f"{server.url}/metrics")
    server.serve_forever()
