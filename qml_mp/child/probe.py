"""Worker: a child that lives only to import the app and say what its code gives.

So the supervisor of `qml-mp start` learns the app's URL, settings and recurring templates, and
whether it imports at all, without running a line of user code itself.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from qml_mp.child.source import ProgramSource
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import AppImportError
from qml_mp.processing.program import Program
from qml_mp.settings import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """What the code gives. `error` is the traceback when it does not import."""

    url: str | None = None
    config: ServerConfig | None = None
    recurring: tuple[RecurringJob, ...] = ()
    queues: tuple[str, ...] = ("default",)
    methods: tuple[str, ...] | None = None
    """None: not known."""
    error: str | None = None


def probe(source: ProgramSource) -> str:
    """Import the app and describe it as JSON text (in the child)."""
    try:
        program = source.load()
    except AppImportError as error:
        return json.dumps({"error": str(error)})
    except BaseException:  # user code: even SystemExit at import is a failure
        return json.dumps({"error": traceback.format_exc()})
    config = None if program.config is None else program.config.plain()
    facts = {
        "url": program.url,
        "config": config,
        "recurring": [dataclasses.asdict(template) for template in program.recurring],
        "queues": list(program.queues),
        "methods": list(program.registry.methods()),
    }
    return json.dumps(facts, default=_plain)


def read_facts(text: str) -> AppFacts:
    """Read `probe`'s text back (in the supervisor)."""
    facts: dict[str, Any] = json.loads(text)
    if "error" in facts:
        return AppFacts(error=facts["error"])
    return AppFacts(
        url=facts["url"],
        config=None if facts["config"] is None else ServerConfig(**facts["config"]),
        recurring=tuple(_template(fields) for fields in facts["recurring"]),
        queues=tuple(facts["queues"]),
        methods=tuple(facts["methods"]),
    )


def facts_of(program: Program) -> AppFacts:
    """The same of a program in memory."""
    return AppFacts(
        url=program.url,
        config=program.config,
        recurring=program.recurring,
        queues=program.queues,
        methods=program.registry.methods(),
    )


def _template(fields: dict[str, Any]) -> RecurringJob:
    for name in ("created_at", "next_run_at", "last_run_at"):
        if fields[name] is not None:
            fields[name] = datetime.fromisoformat(fields[name])
    return RecurringJob(**fields)


def _plain(value: object) -> object:
    match value:
        case timedelta():
            return value.total_seconds()
        case datetime():
            return value.isoformat()
        case _:
            raise TypeError(f"{type(value).__name__} is not part of what an app gives")
