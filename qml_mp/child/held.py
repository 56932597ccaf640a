"""Worker: the claims that it holds and has not begun, and those that are on their way to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from qml_mp import failpoints
from qml_mp.core.job import Claim, ClaimKey
from qml_mp.ipc.slot import SlotWriter
from qml_mp.ipc.tickets import TicketPipe, reply_ticket

_FRESH_S = 1.0
_MOST_TAKEN = 1000


class Held:
    """Oldest first. The first of those that come together begins at once, if they need not go back, and each
    of the others when its ticket is taken: the supervisor may have been faster, and the claim is not this
    worker's any more then."""

    def __init__(self, tickets: TicketPipe, *, slot: SlotWriter, has_hook: bool = False) -> None:
        """`has_hook`: the program is told of what has ended, and takes its time, before the next one begins;
        what comes with outcomes has a ticket each then."""
        self._has_hook = has_hook
        self._tickets = tickets
        self._slot = slot
        self._claims: deque[Claim] = deque()
        self._need_no_ticket: set[bytes] = set()
        """The keys of those that may begin as they are, packed as tickets are."""
        self._held_at = 0.0
        self._replies = 0
        self._must_go_back = False
        """Whether a reply came too late: what came with it, or is still found of it, is not begun."""
        self.payload_chars = 0.0
        """How long a payload was as text of those that came last."""
        self.taken: set[ClaimKey] = set()
        """What the supervisor has taken to give it back. Until it has, storage still says that these are this
        worker's, and again where a failover has lost that. Emptied by `Claims`."""

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def methods(self) -> Iterator[str]:
        """Of the jobs, in their order."""
        return (claim.job.method for claim in self._claims)

    @property
    def next_method(self) -> str:
        """That of the first, which there is."""
        return self._claims[0].job.method

    @property
    def is_stale(self) -> bool:
        """Whether they came too late, or the next one waits for so long that this process and its supervisor
        must have been stopped meanwhile, and a peer may have declared them dead."""
        if self._must_go_back:
            return bool(self._claims)
        is_old = time.monotonic() - self._held_at > _FRESH_S
        return is_old and bool(self._claims) and self._claims[0].key.packed not in self._need_no_ticket

    @property
    def has_taken_many(self) -> bool:
        """Whether it is time to ask storage what is still this worker's, or `taken` grows for ever."""
        return len(self.taken) >= _MOST_TAKEN

    def hold(self, claims: Sequence[Claim], *, begins: bool = True, with_outcomes: bool = False) -> None:
        """Hold these, which may have come `with_outcomes`, behind what is held. `begins`: the first of all
        begins at once, if any does."""
        if not claims:
            self._must_go_back = False
            return
        failpoints.hit("claims.committed")
        self._held_at = time.monotonic()
        self.payload_chars = sum(claim.payload_chars for claim in claims) / len(claims)
        begins = begins and not (with_outcomes and self._has_hook)
        first = 1 if begins and not self._must_go_back and not self._claims else 0
        left = {claim.key.packed for claim in self._claims} & self._need_no_ticket
        self._claims.extend(claims)
        behind = first + self._tickets.write([claim.key for claim in claims[first:]])
        # There is room for all, unless a job has filled the pipe.
        self._need_no_ticket = {claim.key.packed for claim in (*claims[:first], *claims[behind:])} | left
        failpoints.hit("tickets.written")

    def expect(self, in_hand: ClaimKey, *, patience_s: float) -> bool:
        """Others are about to be claimed, by an exchange whose reply is read once this claim has ended;
        nothing is held. Until then the supervisor may take the ticket of the reply, when the job has taken so
        long. False: there is no room for that ticket."""
        self._replies += 1
        self._held_at = time.monotonic()
        # First: who has taken the ticket looks whether it counts, and for what is in hand.
        self._slot.show_unread(self._replies, in_hand=in_hand, patience_s=patience_s)
        if self._tickets.write([reply_ticket(self._replies)]):
            return True
        self._slot.show_read()
        return False

    def arrived(self) -> None:
        """The reply was read, or is lost, and what came with it is about to be held. It goes back if the
        supervisor has taken the ticket, or if this process was stopped meanwhile."""
        is_ours = reply_ticket(self._replies) in self._tickets.take_all()
        self._slot.show_read()
        self._must_go_back = not is_ours or time.monotonic() - self._held_at > _FRESH_S

    def next(self) -> Claim | None:
        """Take the oldest, to begin it now; None: none is left."""
        while self._claims:
            key = self._claims[0].key.packed
            if key not in self._need_no_ticket:
                ticket = self._tickets.take()
                if ticket is None:
                    self._keep(self._need_no_ticket)
                    continue
                if ticket != key:
                    self._drop_before(ticket)
                    continue
            self._slot.show_taken()
            return self._claims.popleft()
        return None

    def take_back(self) -> list[Claim]:
        """Have nothing of it be begun: what is still this worker's, which has to give it back."""
        self._keep({*self._need_no_ticket, *(key.packed for key in self._tickets.take_all())})
        claims = list(self._claims)
        self._claims.clear()
        self._must_go_back = False
        return claims

    def _keep(self, keys: set[bytes]) -> None:
        """The others are the supervisor's by now."""
        self.taken.update(claim.key for claim in self._claims if claim.key.packed not in keys)
        self._claims = deque(claim for claim in self._claims if claim.key.packed in keys)

    def _drop_before(self, ticket: bytes) -> None:
        """This ticket was the oldest that was left. One of no claim that is held is no ticket."""
        keys = [claim.key.packed for claim in self._claims]
        if ticket in keys:
            self._keep({*keys[keys.index(ticket) :], *self._need_no_ticket})
            self._need_no_ticket.add(ticket)
