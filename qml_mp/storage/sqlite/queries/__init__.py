"""Every process: the SQL of SQLite, by topic.

What writes runs inside BEGIN IMMEDIATE, which lets one writer in at a time; that is the lock behind every
"at most once" here. `:now` is bound by the port, from the injected clock, once per transaction; instants and
durations are whole microseconds. Lists are bound as one JSON text, so that a query stays the same for any
number. The index is named where SQLite, which has no statistics here, would take a wider one; a query whose
index is missing then fails instead of growing slow unseen.
"""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import Queries
from qml_mp.storage.sqlite.queries.acts import ACTS
from qml_mp.storage.sqlite.queries.bulk import BULK
from qml_mp.storage.sqlite.queries.claims import CLAIMS
from qml_mp.storage.sqlite.queries.failures import FAILURES
from qml_mp.storage.sqlite.queries.history import HISTORY
from qml_mp.storage.sqlite.queries.jobs import JOBS
from qml_mp.storage.sqlite.queries.limits import LIMITS
from qml_mp.storage.sqlite.queries.listing import LISTING
from qml_mp.storage.sqlite.queries.lost_attempts import LOST_ATTEMPTS
from qml_mp.storage.sqlite.queries.monitoring import MONITORING
from qml_mp.storage.sqlite.queries.recurring import RECURRING
from qml_mp.storage.sqlite.queries.registry import REGISTRY
from qml_mp.storage.sqlite.queries.system import SYSTEM
from qml_mp.storage.sqlite.queries.waits import WAITS

QUERIES: Final = Queries(
    acts=ACTS,
    bulk=BULK,
    claims=CLAIMS,
    failures=FAILURES,
    history=HISTORY,
    jobs=JOBS,
    limits=LIMITS,
    listing=LISTING,
    lost_attempts=LOST_ATTEMPTS,
    monitoring=MONITORING,
    recurring=RECURRING,
    registry=REGISTRY,
    system=SYSTEM,
    waits=WAITS,
)
