"""Anywhere: what a server tells people beside what others act on: its app, versions, settings, loops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from qml_mp.errors import ConfigurationError
from qml_mp.units import parse_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldSetting:
    """One setting."""

    name: str
    value: str
    """As people write it."""
    source: str
    """Where it was set; "default": nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldLoop:
    """One loop."""

    name: str
    succeeded_at: datetime | None
    """Its newest tick that did what it should, by the clock of the server's machine; None: none has."""
    is_failing: bool
    """The newest tick failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDescription:
    """Written by the server, read by people's pages and commands, and by servers that judge it."""

    app: str = ""
    """The "module:attribute" that its app was found by; "": by nothing, or it does not say."""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[ToldSetting, ...] = ()
    loops: tuple[ToldLoop, ...] = ()

    def duration(self, name: str) -> timedelta | None:
        """One of the settings; None: it does not tell that one, or in another way, as another version may."""
        try:
            return next((parse_duration(each.value) for each in self.settings if each.name == name), None)
        except ConfigurationError:
            return None

    def to_text(self) -> str:
        """JSON; `read_description` is the way back."""
        loops = [
            [each.name, each.succeeded_at and each.succeeded_at.timestamp(), each.is_failing]
            for each in self.loops
        ]
        settings = [[each.name, each.value, each.source] for each in self.settings]
        told = {"app": self.app, "versions": dict(self.versions), "settings": settings, "loops": loops}
        return json.dumps(told)


def read_description(text: str | None) -> ServerDescription:
    """Of the text in a row; an empty one of text that is none, as another version may have written it."""
    try:
        told = json.loads(text or "{}")
        return ServerDescription(
            app=str(told.get("app", "")),
            versions={str(name): str(version) for name, version in told.get("versions", {}).items()},
            settings=tuple(
                ToldSetting(name=str(name), value=str(value), source=str(source))
                for name, value, source in told.get("settings", ())
            ),
            loops=tuple(
                ToldLoop(name=str(name), succeeded_at=_instant(at), is_failing=bool(is_failing))
                for name, at, is_failing in told.get("loops", ())
            ),
        )
    except (ValueError, TypeError, AttributeError, OverflowError):
        return ServerDescription()


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
