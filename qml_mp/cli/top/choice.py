"""Client: what a person has chosen in `top`, and what their keys mean. No terminal, no storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Pane(StrEnum):
    """A list in which a row can be chosen."""

    WORKERS = "workers"
    QUEUES = "queues"
    FAILURES = "failures"


class Key(StrEnum):
    """Keys with a meaning; letters stand for themselves."""

    UP = "up"
    DOWN = "down"
    TAB = "tab"
    LEAVE = "q"
    CANCEL = "c"
    RETRY = "r"
    PAUSE = "p"
    YES = "y"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row that can be chosen."""

    id: str
    """By which it is known in the next sample again."""
    action: Action | None = None
    """What its key does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that changes jobs or queues; done after a yes."""

    key: Key
    question: str
    job_id: str | None = None
    queue: str | None = None
    pause: bool = False


Rows = Mapping[Pane, Sequence[Row]]


@dataclass(slots=True, kw_only=True)
class Choice:
    """Changed by keys alone."""

    pane: Pane = Pane.WORKERS
    chosen: dict[Pane, str] = field(default_factory=dict)
    asked: Action | None = None
    """The question that waits for a yes; any other key is a no."""
    said: str = ""
    """What came of the last action."""
    wants_to_leave: bool = False

    def place(self, pane: Pane, rows: Rows) -> int:
        """Of the chosen row: the one with its id, else the first."""
        ids = [row.id for row in rows[pane]]
        chosen = self.chosen.get(pane)
        return ids.index(chosen) if chosen in ids else 0

    def on_key(self, key: str, rows: Rows) -> Action | None:
        """What is to be done now, if anything."""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            self.said = "" if key == Key.YES else "Nothing was changed."
            return asked if key == Key.YES else None
        self.said = ""
        match key:
            case Key.LEAVE:
                self.wants_to_leave = True
            case Key.TAB:
                panes = list(Pane)
                self.pane = panes[(panes.index(self.pane) + 1) % len(panes)]
            case Key.UP | Key.DOWN:
                self._move(-1 if key == Key.UP else 1, rows)
            case Key.CANCEL | Key.RETRY | Key.PAUSE:
                self._ask(key, rows)
            case _:
                pass
        return None

    def _move(self, by: int, rows: Rows) -> None:
        here = rows[self.pane]
        if here:
            place = min(max(self.place(self.pane, rows) + by, 0), len(here) - 1)
            self.chosen[self.pane] = here[place].id

    def _ask(self, key: str, rows: Rows) -> None:
        """About the chosen row of the pane that the key is for, which is gone to."""
        of_key = {Key.CANCEL: Pane.WORKERS, Key.RETRY: Pane.FAILURES, Key.PAUSE: Pane.QUEUES}
        self.pane = of_key[Key(key)]
        here = rows[self.pane]
        action = here[self.place(self.pane, rows)].action if here else None
        if action is None:
            self.said = f"There is nothing to {Key(key).name.lower()} in the chosen row."
        else:
            self.chosen[self.pane] = here[self.place(self.pane, rows)].id
            self.asked = action
