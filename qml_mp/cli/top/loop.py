"""Client: `top` itself: looks, draws, and does what the keys say, until it is left."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from rich.console import Console, Group
from rich.live import Live

from qml_mp.cli.asking import asker
from qml_mp.cli.failure import in_words
from qml_mp.cli.interruption import interrupted_once
from qml_mp.cli.output import short
from qml_mp.cli.top.choice import Action, Choice, Key
from qml_mp.cli.top.keyboard import keyboard
from qml_mp.cli.top.page import page, rows_of
from qml_mp.cli.top.sample import Rates, rates_between, take_sample
from qml_mp.errors import QmlError, StorageError, StorageUnavailable
from qml_mp.printable import printable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.views.changing import Changing
from qml_mp.views.snapshot import Counting

_REASON = "cancelled in top"


class Top:
    """What is shown, and what was there before."""

    def __init__(self, storage: Storage, *, retention: Retention) -> None:
        self._storage = storage
        self._retention = retention
        self.choice = Choice()
        self._counting = Counting()
        self._sample = take_sample(storage, self._counting, at=time.monotonic())
        self._rates: Rates = rates_between(None, self._sample)
        self._taken_at = _clock()
        self._why_old: str | None = None
        """What kept the next sample from being taken; None: the one that is shown is the newest."""

    def look(self) -> None:
        """Take the next sample. A storage that is away leaves the last one there, which is told until there
        is another."""
        try:
            now = take_sample(self._storage, self._counting, at=time.monotonic())
        except StorageUnavailable as error:
            self._why_old = f"this is as of {self._taken_at}: {in_words(error)}"
            return
        self._rates = rates_between(self._sample, now)
        self._sample = now
        self._taken_at = _clock()
        self._why_old = None

    def on_key(self, key: str) -> None:
        """Do what it says."""
        action = self.choice.on_key(key, rows_of(self._sample))
        if action is not None:
            try:
                self.choice.said = self._do(action)
            except QmlError as error:
                self.choice.said = in_words(error)
            self.look()

    def drawn(self, console: Console) -> Group:
        """The page, as large as the terminal."""
        lines = page(
            self._sample, self._rates, self.choice, url=self._storage.display_url, clock=_clock(),
            width=console.width, height=console.height, why_old=self._why_old,
        )  # fmt: skip
        return Group(*lines)

    def _do(self, action: Action) -> str:
        if action.key is Key.PAUSE:
            queue = action.queue or ""
            self._storage.set_paused(queue, action.pause)
            noted = self._note(f"{'pause' if action.pause else 'resume'} queue", queue)
            return f"{short(printable(queue), 30)} is {'paused' if action.pause else 'resumed'}{noted}."
        job_id = action.job_id or ""
        changing = Changing.one_by_one(self._storage, retention=self._retention, reason=_REASON)
        told = changing.cancel(job_id) if action.key is Key.CANCEL else changing.retry(job_id)
        what = "cancel" if action.key is Key.CANCEL else "retry"
        noted = self._note(f"{what} job", job_id, said=told)
        return f"{job_id} {told}{noted}."

    def _note(self, what: str, subject: str, *, said: str | None = None) -> str:
        """Note in the audit what was just done; what to say beside that, which stands all the same where the
        storage refuses the note."""
        try:
            self._storage.audit(asker("top"), what, subject, said=said)
        except StorageError as error:
            return f"; this stands in no audit ({in_words(error)})"
        return ""


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def run_top(storage: Storage, *, retention: Retention, every: timedelta) -> None:
    """Show it until a person leaves it, by a key or a signal. The terminal is then as it was."""
    top = Top(storage, retention=retention)
    console = Console(highlight=False)
    try:
        with (
            interrupted_once(),
            keyboard() as keys,
            Live(top.drawn(console), console=console, screen=True, auto_refresh=False) as live,
        ):
            next_look = time.monotonic() + every.total_seconds()
            while not top.choice.wants_to_leave:
                key = keys.next(next_look - time.monotonic())
                if key is not None:
                    top.on_key(key)
                else:
                    top.look()
                    next_look = time.monotonic() + every.total_seconds()
                live.update(top.drawn(console), refresh=True)
    except KeyboardInterrupt:  # the ordinary end
        return
