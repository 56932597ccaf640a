"""Worker: a child that lives only to import the app and say what its code gives.

So the supervisor of `qml-mp start` learns the app's URL, settings and recurring templates, and
whether it imports at all, without running a line of user code itself.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qml_mp.child.source import ProgramSource
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import AppImportError
from qml_mp.processing.program import Program
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """What the code gives. `error` is the traceback when it does not import."""

    url: str | None = None
    config: ServerConfig | None = None
    recurring: tuple[RecurringJob, ...] = ()
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    methods: tuple[str, ...] | None = None
    """None: not known."""
    error: str | None = None


def probe(source: ProgramSource) -> str:
    """Import the app and describe it as JSON text (in the child)."""
    try:
        facts = facts_of(source.load())
    except AppImportError as error:
        facts = AppFacts(error=str(error))
    except BaseException:  # user code: even SystemExit at import is a failure
        facts = AppFacts(error=traceback.format_exc())
    config = None if facts.config is None else facts.config.plain()
    return json.dumps({**dataclasses.asdict(facts), "config": config}, default=_plain)


def read_facts(text: str) -> AppFacts:
    """Read `probe`'s text back (in the supervisor)."""
    facts: dict[str, Any] = json.loads(text)
    if facts["config"] is not None:
        facts["config"] = ServerConfig(**facts["config"])
    facts["recurring"] = tuple(map(_template, facts["recurring"]))
    for name in ("queues", "methods"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    return AppFacts(**facts)


def facts_of(program: Program) -> AppFacts:
    """What the code of a program in memory gives."""
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
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not part of what an app gives")
