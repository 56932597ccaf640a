"""Client and web process: a storage as a page may call it: without the folder of a file, and without who
signs in to it."""

from __future__ import annotations

from pathlib import PurePosixPath


def storage_name(display_url: str) -> str:
    """ "jobs.db (sqlite)", "shop on db.example:5432 (postgresql)", of a URL whose password is masked."""
    scheme, place = _parts(display_url)
    if scheme.startswith("postgres"):
        host, _, database = place.rpartition("@")[2].partition("/")
        return f"{database or 'the database'} on {host or 'this machine'} (postgresql)"
    return f"{PurePosixPath(place).name or 'in memory'} ({scheme})"


def without_its_place(text: str, display_url: str) -> str:
    """The text with the storage's name in place of its URL, and without the folder of its file."""
    scheme, place = _parts(display_url)
    shown = text.replace(display_url, storage_name(display_url))
    folder = PurePosixPath(f"/{place.lstrip('/')}").parent
    if scheme.startswith("postgres") or folder == PurePosixPath("/"):
        return shown
    return shown.replace(f"{folder}/", "")


def _parts(display_url: str) -> tuple[str, str]:
    scheme, _, rest = display_url.partition("://")
    return scheme, rest.partition("?")[0]
