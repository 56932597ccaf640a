"""Benchmark, every process: where one run takes place, handed on in the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

_VARIABLE = "QML_BENCH_PLACE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder and a fresh database of one run."""

    folder: Path
    url: str
    """Of the PostgreSQL database. What runs on SQLite uses `file` instead."""
    workers: int
    turns_per_ms: int
    has_records: bool = False
    """Whether each job also writes when it ran."""

    @classmethod
    def current(cls) -> Place:
        """In a program of a run."""
        values = json.loads(os.environ[_VARIABLE])
        return cls(**values | {"folder": Path(values["folder"])})

    @classmethod
    def is_known(cls) -> bool:
        """Whether this is a program of a run; else it is the benchmark itself."""
        return _VARIABLE in os.environ

    @property
    def file(self) -> Path:
        """The SQLite database, in a folder of its own, which a system may watch."""
        return self.folder / "database" / "jobs.db"

    @property
    def bytes(self) -> Path:
        """What every job appends one byte to."""
        return self.folder / "bytes"

    @property
    def records(self) -> Path:
        """What every job appends a `work.RECORD` to, in a run with records."""
        return self.folder / "records"

    def environment(self) -> Mapping[str, str]:
        """For the programs of the run."""
        return {_VARIABLE: json.dumps(asdict(self) | {"folder": str(self.folder)})}
