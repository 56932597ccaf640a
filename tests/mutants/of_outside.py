"""Mutants of what people and their programs see: Python, commands, the page and metrics."""

from __future__ import annotations

from tests.mutants.mutant import Change, Mutant

_FAILURE = "qml_mp/cli/failure.py"
_SAFETY = "qml_mp/web/safety.py"

MUTANTS = (
    Mutant(
        name="max-retries-off-by-one",
        promise="A job is retried max_retries times.",
        changes=(
            Change(
                "qml_mp/processing/retry.py",
                "return self.max_attempts if max_retries is None else max_retries + 1",
                "return self.max_attempts if max_retries is None else max_retries",
            ),
        ),
        tests=(
            "tests/unit/test_retry.py::test_a_jobs_own_max_retries_takes_the_place_of_the_attempts",
            "tests/api/test_inline.py::test_retries_are_counted_and_not_waited_for",
        ),
    ),
    Mutant(
        name="follow-up-on-failure",
        promise="What a job enqueues for after its success is not enqueued when it fails.",
        changes=(
            Change(
                "qml_mp/processing/board.py",
                "if extras is not None and isinstance(outcome, Success):",
                "if extras is not None and isinstance(outcome, Success | Failure):",
            ),
            Change(
                "qml_mp/storage/follow_ups.py",
                "if isinstance(outcome, Success) and outcome.extras is not None:",
                "if not isinstance(outcome, str) and getattr(outcome, 'extras', None) is not None:",
            ),
        ),
        tests=("tests/api/test_net.py::test_nothing_follows_a_job_that_fails",),
    ),
    Mutant(
        name="inline-swallows-errors",
        promise="Within app.inline(raise_failures=True), enqueue raises what the job has raised.",
        changes=(
            Change("qml_mp/inline.py", "                raise failure\n", "                continue\n"),
        ),
        tests=(
            "tests/api/test_inline.py::test_enqueue_raises_what_the_last_attempt_raised_where_that_is_wanted",
        ),
    ),
    Mutant(
        name="argument-check-skipped",
        promise="Wrong arguments are refused when the job is enqueued.",
        changes=(
            Change(
                "qml_mp/processing/binding.py",
                "arguments = parameters.signature.bind(*args, **kwargs).arguments",
                "arguments = parameters.signature.bind_partial(*args, **kwargs).arguments",
            ),
        ),
        tests=("tests/api/test_enqueueing.py::test_a_wrong_argument_fails_at_once_and_nothing_is_written",),
    ),
    Mutant(
        name="result-not-rebuilt",
        promise="A result comes back equal and of the type that the annotation says.",
        changes=(
            Change(
                "qml_mp/processing/returned.py",
                "return decoded(codec, value, _WHERE)",
                "return value",
            ),
        ),
        tests=(
            "tests/api/test_conversion.py::test_an_argument_and_a_result_come_back_equal_and_of_their_type",
        ),
    ),
    Mutant(
        name="nan-accepted",
        promise="What JSON cannot hold is refused when the job is enqueued, and nothing is written.",
        changes=(
            Change("qml_mp/core/payload.py", "return value - value == 0", "return True"),
            Change("qml_mp/core/payload.py", "finite = part - part == 0", "finite = True"),
        ),
        tests=(
            "tests/storage/test_enqueue.py::test_a_payload_that_cannot_be_stored_is_refused_and_nothing_is_written",
            "tests/unit/test_payload.py::test_what_json_cannot_hold_is_refused_with_its_place",
        ),
    ),
    Mutant(
        name="settings-precedence-swapped",
        promise="A setting on the command line wins over the code, the environment and the file.",
        changes=(
            Change(
                "qml_mp/sources.py",
                "in flags.items():\n        if value is not None:\n",
                "in flags.items():\n        if value is not None and name not in given:\n",
            ),
        ),
        tests=(
            "tests/cli/test_settings_sources.py::test_the_number_of_workers_is_taken_from_the_first_source_that_has_one",
        ),
    ),
    Mutant(
        name="exit-code-0-on-failure",
        promise="A command that did not do what it was asked for exits with another code than 0.",
        changes=(
            Change(
                _FAILURE,
                "for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)",
                "for kind, code in _EXIT_CODES if isinstance(error, kind)), 0)",
            ),
        ),
        tests=(
            "tests/cli/test_jobs_commands.py::test_a_job_that_is_not_there_exits_1",
            "tests/cli/test_jobs_commands.py::"
            "test_a_change_that_the_state_forbids_exits_1_and_changes_nothing",
        ),
    ),
    Mutant(
        name="awaited-failure-exits-1",
        promise="A command whose awaited job failed exits with 7.",
        changes=(Change(_FAILURE, "(JobFailed, 7),", "(JobFailed, 1),"),),
        tests=("tests/cli/test_start_command.py::test_an_awaited_job_gives_its_result_or_exit_code_7",),
    ),
    Mutant(
        name="silent-storage-exits-1",
        promise="A command that cannot reach its storage exits with 4.",
        changes=(Change(_FAILURE, "(StorageError, 4),", "(StorageError, 1),"),),
        tests=("tests/cli/test_bad_input.py::test_a_port_where_no_server_listens_exits_4",),
    ),
    Mutant(
        name="json-without-a-field",
        promise="`jobs show --json` has every documented field.",
        changes=(Change("qml_mp/core/job.py", '            "claim_seq": self.claim_seq,\n', ""),),
        tests=("tests/cli/test_jobs_commands.py::test_enqueue_prints_the_id_alone_and_the_job_is_there",),
    ),
    Mutant(
        name="status-json-without-a-field",
        promise="`status --json` has every documented field.",
        changes=(Change("qml_mp/views/servers.py", '            "paused": self.info.paused,\n', ""),),
        tests=("tests/cli/test_status_commands.py::test_a_paused_server_and_what_troubles_one_are_shown",),
    ),
    Mutant(
        name="password-in-the-log",
        promise="No message shows the password of a URL.",
        changes=(
            Change(
                "qml_mp/storage/shown_url.py",
                "    text = str(url)\n    if text.startswith",
                "    text = str(url)\n    if text:\n        return text\n    if text.startswith",
            ),
        ),
        tests=(
            "tests/cli/test_bad_input.py::test_a_url_is_never_quoted_with_its_password",
            "tests/unit/test_urls.py::test_passwords_are_masked_wherever_they_stand",
        ),
    ),
    Mutant(
        name="metrics-with-the-wrong-label",
        promise="The figures of queues are labelled by queue and state.",
        changes=(
            Change(
                "qml_mp/metrics/families.py",
                "jobs.add_metric(labels, count)",
                "jobs.add_metric(labels[::-1], count)",
            ),
        ),
        tests=(
            "tests/processes/test_metrics_process.py::test_a_scrape_tells_what_the_server_and_its_queues_do",
        ),
    ),
    Mutant(
        name="page-without-signing-in",
        promise="Nobody who has not signed in sees anything of a page with a token.",
        changes=(
            Change(
                "qml_mp/web/sign_in.py",
                "return self._name if self._is_ours(",
                "return self._name if self or self._is_ours(",
            ),
        ),
        tests=("tests/web/test_signing_in.py::test_without_signing_in_nothing_is_shown_and_nothing_changed",),
    ),
    Mutant(
        name="form-without-its-token",
        promise="A change is made only with the token of the page's own form.",
        changes=(
            Change(
                _SAFETY,
                'if not is_form_token(str(given), visit=request.scope["qml_mp.visit"]):',
                'if given is None and not is_form_token("", visit=""):',
            ),
        ),
        tests=("tests/web/test_refusals.py::test_a_change_without_the_pages_token_is_refused",),
    ),
    Mutant(
        name="change-asked-for-by-another-site",
        promise="A change that another site asks for is refused, whatever it carries.",
        changes=(
            Change(
                _SAFETY,
                'if site in (None, "same-origin") and (origin is None or is_own_origin(request, origin)):',
                'if site is None or is_own_origin(request, origin or ""):',
            ),
        ),
        tests=("tests/web/test_refusals.py::test_a_change_that_another_site_asks_for_is_refused",),
    ),
    Mutant(
        name="any-host-taken",
        promise="A page without sign-in is not shown under a foreign name.",
        changes=(
            Change(
                _SAFETY, "if host not in own and not is_address(host):", "if host not in own and not host:"
            ),
        ),
        tests=("tests/web/test_refusals.py::test_a_name_that_is_not_the_pages_is_refused",),
    ),
    Mutant(
        name="redirect-to-a-foreign-host",
        promise="Signing in leads to the page itself, never to another host.",
        changes=(
            Change(
                "qml_mp/web/own_routes.py",
                'there.startswith("/") and not there.startswith(("//", "/\\\\"))',
                'there.startswith("/")',
            ),
        ),
        tests=("tests/web/test_signing_in.py::test_nobody_is_led_to_another_site",),
    ),
    Mutant(
        name="script-not-escaped",
        promise="Text of jobs and errors is shown as text and never becomes part of the page.",
        changes=(Change("qml_mp/web/rendering.py", "autoescape=True", "autoescape=False"),),
        tests=("tests/web/test_net.py::test_what_a_job_says_is_text_on_the_page",),
    ),
)
