"""What a new user meets: the command alone, words typed wrong, and completion in the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Qml, is_one_error

_PROGRAMS = Path(sys.executable).parent


@pytest.mark.parametrize("group", [(), ("jobs",)])
def test_a_group_alone_prints_its_help_as_help(qml: Qml, group: tuple[str, ...]) -> None:
    asked = qml(*group, "--help")
    ended = qml(*group)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == asked.out
    assert "error" not in ended.err.splitlines()[0]
    assert "\n\nCommands:\n" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("strat",), 2, "No such command 'strat'. Did you mean 'start'? See `qml-mp --help`."),
        (("jobs", "lst"), 2, "No such command 'lst'. Did you mean 'list'? See `qml-mp jobs --help`."),
        (("zzz",), 2, "No such command 'zzz'. See `qml-mp --help`."),
        (("start", "-A", "tasks.py"), 2, """-A is 'tasks.py'; an app is named as "module:attribute", e.g."""),
        (("start", "-A", "task:app"), 3, "The app 'task:app' cannot be imported from {folder}: "),
    ],
)
def test_what_is_typed_wrong_is_answered_in_one_paragraph_with_what_to_do(
    qml: Qml, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = qml(*arguments)

    assert ended.code == code
    assert is_one_error(ended.err)
    assert said.format(folder=qml.folder) in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("arguments", "named", "command"),
    [
        (("-A", "tasks:app"), "", "qml-mp"),
        (("jobs", "list", "extra"), "extra", "qml-mp jobs list"),
        (("start", "-A", "tasks:app", "--worker", "2"), "--worker", "qml-mp start"),
        (("start", "-w"), "-w", "qml-mp start"),
        (("start", "--help=1"), "--help", "qml-mp start"),
    ],
)
def test_what_click_refuses_is_named_and_the_help_of_its_command_pointed_to(
    qml: Qml, arguments: tuple[str, ...], named: str, command: str
) -> None:
    """The words between are click's, and others in each of its versions."""
    ended = qml(*arguments)

    refusal, _, advice = ended.err.rpartition(" See ")
    assert ended.code == 2
    assert is_one_error(ended.err)
    assert named in refusal
    assert advice == f"`{command} --help`.\n"
    assert ended.out == ""


def test_who_forgets_to_name_the_app_is_told_so_and_not_to_check_a_url(qml: Qml) -> None:
    forgotten = qml("status")
    given = (
        qml("--url", "sqlite:///jobs.db", "status"),
        qml("status", env={"QML_MP_URL": "sqlite:///jobs.db"}),
    )
    of_app = qml("-A", "tasks:app", "status")

    assert forgotten.code == 5
    assert is_one_error(forgotten.err)
    told = "It is the default: no app is named (-A, QML_MP_APP), and no URL (--url, QML_MP_URL); "
    assert f"There is no qml-mp schema in sqlite:///{qml.database} yet. {told}" in forgotten.err
    assert ["yet. Check the URL; " in each.err for each in (*given, of_app)] == [True, True, True]


@pytest.mark.parametrize(
    "command",
    [("enqueue", "f"), ("recurring", "add", "r", "0 9 * * *", "f")],
    ids=["enqueue", "recurring add"],
)
def test_that_a_new_storage_was_made_is_told_once(qml: Qml, command: tuple[str, ...]) -> None:
    """It may be of a folder in which no server looks."""
    refused = qml(*command, "--url", "sqlite:///nowhere/x.db")
    first, second = qml(*command), qml(*command)

    assert is_one_error(refused.err)
    assert (first.code, second.code) == (0, 0)
    assert first.err.startswith(f"qml-mp: a new storage was made at sqlite:///{qml.database}; ")
    assert first.err.count("\n") == 1
    assert second.err == ""


def test_bash_completes_commands_and_their_options(qml: Qml) -> None:
    script = 'eval "$(_QML_MP_COMPLETE=bash_source qml-mp)"; complete -p qml-mp >&2\n' + "".join(
        f"COMPREPLY=(); COMP_WORDS=(qml-mp {words}); COMP_CWORD={len(words.split())}\n"
        '_qml_mp_completion qml-mp; echo "${COMPREPLY[@]}"\n'
        for words in ("jo", "jobs sh", "jobs list --state s", "start --max-m")
    )

    ended = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=qml.folder,
        env=qml.environment({"PATH": f"{_PROGRAMS}:/usr/bin:/bin"}),
    )  # fmt: skip

    assert "-F _qml_mp_completion qml-mp" in ended.stderr
    assert ended.stdout.splitlines() == [
        "jobs", "show", "scheduled succeeded", "--max-memory --max-memory-hard",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shell", "first", "answer"),
    [
        ("zsh", "#compdef qml-mp", "plain\nstatus\nShow jobs, queues, servers and workers at a glance.\n"),
        ("fish", "function _qml_mp_completion;", "plain,status\tShow jobs, queues, servers and workers"),
    ],
)
def test_other_shells_get_their_script_and_their_answers(
    qml: Qml, shell: str, first: str, answer: str
) -> None:
    script = qml(env={"_QML_MP_COMPLETE": f"{shell}_source"})
    line = {"COMP_WORDS": "qml-mp stat", "COMP_CWORD": "stat" if shell == "fish" else "1"}
    completed = qml(env={"_QML_MP_COMPLETE": f"{shell}_complete", **line})

    assert script.code == 0
    assert script.out.startswith(first)
    assert completed.code == 0
    assert answer in completed.out
