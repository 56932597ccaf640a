"""Every process: what is asked of servers on whatever machine, and what people have changed: the audit.

A request names one run of a server, which takes it once, and in time by the database's clock, or never. Who
removes the server's row ends what was asked of it in the same transaction, so nothing waits for a server that
has gone, and none of its successors is asked.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.acts import Act, ActRequest, ActState, Asker, stacks_text
from qml_mp.core.answers import WorkerStack
from qml_mp.errors import ConfigurationError
from qml_mp.storage.database import Operations
from qml_mp.storage.rows import act_of
from qml_mp.storage.storable import MAX_MESSAGE_BYTES, storable_reason, storable_text

_MAX_NAME_BYTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ActPage:
    """One page of the audit, newest first."""

    acts: tuple[Act, ...]
    """Without their stacks."""
    next_cursor: str | None
    """Pass it as `after` for the next page; None: this was the last."""


class Acts(Operations):
    """Requests to servers, their answers, and changes that are done."""

    def ask(self, request: ActRequest) -> Act:
        """Ask a server; the act as it stands then: ASKED, or GONE when the server is not there. To ask the
        same request again changes nothing, and gives what has become of it."""
        values = {
            "id": request.id,
            "what": str(request.kind),
            "subject": storable_text(request.subject, max_bytes=_MAX_NAME_BYTES),
            "server_id": request.server_id,
            "arguments": request.arguments_text(),
            "within": request.within,
            **_asker(request.by),
        }
        self._db.write("asking a server", self._db.queries.acts.ask, values)
        act = self.get_act(request.id)
        assert act is not None  # nothing deletes it so soon
        return act

    def audit(
        self,
        by: Asker,
        what: str,
        subject: str,
        *,
        said: str | None = None,
        state: ActState = ActState.DONE,
        act_id: str | None = None,
    ) -> None:
        """Note what a person has changed: "pause queue", "images"; `said` tells more, as how many jobs it
        has hit. With the `act_id` of an entry, that one says so instead of what it said."""
        values = {
            "id": act_id or str(uuid.uuid4()),
            "what": storable_text(what, max_bytes=_MAX_NAME_BYTES),
            "subject": storable_text(subject, max_bytes=MAX_MESSAGE_BYTES),
            "state": str(state),
            "said": storable_reason(said),
            **_asker(by),
        }
        self._db.write("noting a change", self._db.queries.acts.note, values)

    def get_act(self, act_id: str) -> Act | None:
        """The act with its answer; None: there is none (any more)."""
        which = {"id": storable_text(act_id, max_bytes=_MAX_NAME_BYTES)}
        acts = self._read("reading an act", self._db.queries.acts.get, act_of, which)
        return next(iter(acts), None)

    def list_acts(
        self, *, asked_of_servers: bool = False, limit: int = 50, after: str | None = None
    ) -> ActPage:
        """The audit, newest first, or of it what was asked of servers; `after` is the `next_cursor` of the
        page before, and for what is none `ConfigurationError` is raised."""
        # One more shows whether there is another page.
        which = {"asked_of_servers": asked_of_servers, "after": after, "limit": limit + 1}
        found = self._read("reading the audit", self._db.queries.acts.page, act_of, which)
        if not found and after is not None and self.get_act(after) is None:
            raise ConfigurationError(
                f"{after[:80]!r} is no entry of the audit, or was deleted with the old ones; pass the "
                "next_cursor of a page, or nothing."
            )
        acts = tuple(found[:limit])
        return ActPage(acts=acts, next_cursor=acts[-1].id if len(found) > limit else None)

    def take_acts(self, server_id: str, *, in_hand: Collection[str] = ()) -> list[Act]:
        """For the server alone: take what is asked of it; what it has to do now, in the order in which that
        was asked. `in_hand` are the ids of those that it knows of.

        What it has taken and does not know of came with a reply that was lost: it is given again, while its
        time lasts. So each is done once, and none after its time.
        """
        values = {"server_id": server_id, "in_hand": sorted(in_hand)}
        what, queries = "taking what is asked of the server", self._db.queries.acts
        if self._db.has_one_writer and not self._db.read(what, queries.any_asked, values):
            return []
        taken = [act_of(row, self._db.instant) for row in self._db.write(what, queries.take, values).rows()]
        due = [act for act in taken if act.state is ActState.TAKEN]
        return sorted(due, key=lambda act: (act.asked_at, act.id))

    def answer_act(
        self,
        act_id: str,
        *,
        server_id: str,
        state: ActState,
        said: str | None = None,
        stacks: tuple[WorkerStack, ...] = (),
    ) -> bool:
        """For the server that has taken it: say what came of it, or with TAKEN how far it is. To say the same
        again is harmless. False: somebody has ended it since, as when a peer declared the server dead."""
        values = {
            "id": act_id,
            "server_id": server_id,
            "state": str(state),
            "said": storable_reason(said),
            "answer": stacks_text(stacks),
        }
        if self._db.write("answering", self._db.queries.acts.answer, values).count:
            return True
        act = self.get_act(act_id)  # the reply to an earlier answer may have been lost
        return act is not None and act.server_id == server_id and act.state is state

    def delete_old_acts(self, *, kept_for: timedelta, limit: int) -> int:
        """Delete what was asked or changed longer ago, at most `limit`, the oldest first; how many."""
        queries, values = self._db.queries.acts, {"kept_for": kept_for, "limit": limit}
        return self._delete_old(
            "deleting old acts", any_old=queries.any_old, query=queries.delete_old, values=values
        )


def _asker(by: Asker) -> dict[str, object]:
    return {
        "asked_by": storable_text(by.who, max_bytes=_MAX_NAME_BYTES),
        "asked_from": storable_text(by.where, max_bytes=_MAX_NAME_BYTES),
    }
