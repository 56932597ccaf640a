"""Supervisor: whether what the settings ask for is installed, before anything is started."""

from __future__ import annotations

from importlib.util import find_spec

from qml_mp.errors import ConfigurationError
from qml_mp.settings import ServerConfig

_MODULES = {"web": "starlette", "metrics": "prometheus_client"}


def check_extras(config: ServerConfig) -> None:
    """Raise `ConfigurationError` that names the extra which is missing."""
    for name, module in _MODULES.items():
        if getattr(config, name) is not None and find_spec(module) is None:
            raise ConfigurationError(
                f"The setting {name} needs the extra `{name}`: pip install 'qml-mp[{name}]'."
            )
