"""Every process: the SQL of PostgreSQL, by topic.

`{s}` stands for the quoted schema, `%(…)s` for bound values.
Time is the server's: `now()`, the start of the transaction. Isolation is READ COMMITTED: a row that
somebody changed meanwhile is judged again by its newest version, which is what the guards rely on.
`channel`, which the port binds, is where listening supervisors are told of a commit (`common.Told`). NOTIFY
takes part in the transaction, and each query sends it at most once, whatever the number of its rows. Of a job
that is enqueued alone they are told after its commit.
"""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.acts import ACTS
from qml_mp.storage.postgres.queries.bulk import BULK
from qml_mp.storage.postgres.queries.claims import CLAIMS
from qml_mp.storage.postgres.queries.failures import FAILURES
from qml_mp.storage.postgres.queries.history import HISTORY
from qml_mp.storage.postgres.queries.jobs import JOBS
from qml_mp.storage.postgres.queries.limits import LIMITS
from qml_mp.storage.postgres.queries.listing import LISTING
from qml_mp.storage.postgres.queries.lost_attempts import LOST_ATTEMPTS
from qml_mp.storage.postgres.queries.monitoring import MONITORING
from qml_mp.storage.postgres.queries.recurring import RECURRING
from qml_mp.storage.postgres.queries.registry import REGISTRY
from qml_mp.storage.postgres.queries.system import SYSTEM
from qml_mp.storage.postgres.queries.waits import WAITS
from qml_mp.storage.queries import Queries

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
