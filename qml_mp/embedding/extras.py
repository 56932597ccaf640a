"""Supervisor: whether the page and the metrics that the settings ask for can be served, before anything is
started: the processes beside the server that do so are tried again for ever."""

from __future__ import annotations

from importlib.util import find_spec

from qml_mp.errors import ConfigurationError, about_field
from qml_mp.setting_kinds import WEB_MODULES, check_reach, check_web_token, host_and_port
from qml_mp.settings import ServerConfig
from qml_mp.sources import WEB_TOKEN_VARIABLE, load_web_token
from qml_mp.supervisor.workers.program import check_interpreter

_MODULES = {"web": WEB_MODULES, "metrics": ("prometheus_client",)}


def check_served(config: ServerConfig) -> None:
    """Raise `ConfigurationError` that names the extra which is missing, what would let everybody in, an
    address that both want, or why no process can be started that serves them."""
    for name, modules in _MODULES.items():
        if getattr(config, name) is not None and any(find_spec(module) is None for module in modules):
            raise ConfigurationError(
                f"The setting {name} needs the extra `{name}`: pip install 'qml-mp[{name}]'."
            )
    if config.web is not None or config.metrics is not None:
        check_interpreter()
    if config.web is not None and config.web == config.metrics and host_and_port(config.web)[1] != 0:
        raise ConfigurationError(
            f"web and metrics are both {config.web}; each listens by itself, so give them two ports.",
            field="metrics",
        )
    if config.web is not None:
        with about_field("web"):
            _check_page(config.web)


def _check_page(address: str) -> None:
    host, _ = host_and_port(address)
    token = load_web_token()
    if token is not None:
        check_web_token(token)
    ways = f"{WEB_TOKEN_VARIABLE}, a token with which people sign in"
    check_reach(host, has_auth=token is not None, ways=ways)
