"""Tests: what listens on this machine is asked directly, also where the environment names a proxy."""

from __future__ import annotations

import os


def pass_proxies() -> None:
    """For requests of this process, and of those that it starts. pip still has its proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [given, "127.0.0.1", "localhost"]))
