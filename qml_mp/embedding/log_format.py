"""Supervisor, worker: what a line of the log of `qml-mp start` looks like, as text or as JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

from qml_mp.printable import printable_json

_PLAIN: Final = "qml-mp: %(message)s"
_DETAILED: Final = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
_ABOUT_A_JOB: Final = ("job_id", "method", "attempt", "claim_seq", "worker_id", "outcome", "duration_s")


class TextFormatter(logging.Formatter):
    """For people. What is a warning or worse begins with that word; a record of other code than ours says
    whose it is, and of which job."""

    def __init__(self, *, detailed: bool) -> None:
        """`detailed`: with time, level, process and logger."""
        super().__init__(_DETAILED if detailed else _PLAIN)
        self._is_detailed = detailed

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the standard library's name
        if record.name.partition(".")[0] != "qml_mp":
            name = "" if self._is_detailed or record.name == "root" else f"{record.name}: "
            job_id, method = (getattr(record, name, None) for name in ("job_id", "method"))
            job = "" if job_id is None else f"job {job_id} ({method}): "
            record.message = f"{job}{name}{record.message}"
        if record.levelno >= logging.WARNING and not self._is_detailed:
            record.message = f"{record.levelname} {record.message}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """For programs: one object a record, on a line. It has `time` (ISO 8601, UTC), `level`, `logger`, `pid`,
    `message`, and what there is of `job_id`, `method`, `attempt`, `claim_seq`, `worker_id`, `outcome`,
    `duration_s`, `traceback` and `stack` (of `stack_info=True`). A value that JSON has not is its text."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _ABOUT_A_JOB if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # of a process beside the server, which has sent it as text
            line["traceback"] = record.exc_text
        elif isinstance(trace := getattr(record, "traceback", None), str):  # of a failed attempt
            line |= {"message": record.getMessage().removesuffix(f"\n{trace}"), "traceback": trace}
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return printable_json(_encoded(line))


def _encoded(line: dict[str, object]) -> str:
    try:
        return json.dumps(line, ensure_ascii=False, default=str, allow_nan=False)
    except (ValueError, TypeError):  # JSON has no NaN, no infinity, and no other keys than text
        texts = {name: value if isinstance(value, str | int) else str(value) for name, value in line.items()}
        return json.dumps(texts, ensure_ascii=False)
