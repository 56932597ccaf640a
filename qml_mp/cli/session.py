"""Client: what one invocation of the command knows: URL, app, verbosity; and the classes of its commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import click

from qml_mp import host
from qml_mp.cli.app_import import (
    import_app,
    import_facts,
    note_unknown_settings,
    where_to_call,
    who_names_app,
)
from qml_mp.cli.completion import BY_PARAMETER
from qml_mp.cli.failure import NamedInErrors, in_words, sentence
from qml_mp.cli.output import note
from qml_mp.core.failure_kinds import TRACEBACK
from qml_mp.errors import AppImportError, ConfigurationError, SchemaMismatch, StorageUnreachable
from qml_mp.sources import StorageUrl, is_url_in_environment, load_app_spec, load_config, load_url

if TYPE_CHECKING:
    from qml_mp.app import QmlApp
    from qml_mp.child.source import AppFacts
    from qml_mp.core.job import Job
    from qml_mp.core.options import JobOptions
    from qml_mp.core.payload import JsonValue
    from qml_mp.storage.store import Storage
    from qml_mp.storage.values import Retention

_USAGE = 2
_NOBODY_NAMES = "no app is named (-A, QML_MP_APP), and no URL (--url, QML_MP_URL)"
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(slots=True, kw_only=True)
class Session:
    """Filled in while click parses; one per invocation, handed to commands by `pass_session`."""

    url: str | None = None
    """As `--url` gave it."""
    app_spec: str | None = None
    """As `-A` gave it."""
    verbose: bool = False
    doubt: str | None = None
    """Why the storage may be another than that of the app, which was not imported, and what to do then."""
    _app: QmlApp | None = None
    _facts: AppFacts | None = None
    _directory: str | None = field(default_factory=host.current_directory)
    """In which the command was called; an app may change it when it is imported."""
    _is_default: bool = field(default=False, init=False)
    """Whether the storage that was opened last is the one that is used where nobody names any."""

    def named_app(self) -> str | None:
        """The app as the flag, the environment or the settings file names it."""
        return load_app_spec(self.app_spec, directory=self._directory)

    def app(self) -> QmlApp | None:
        """The user's app, imported into this process without a limit of time; None when nobody names one."""
        if self._app is None and (spec := self.named_app()) is not None:
            self._app = import_app(spec)
        return self._app

    def facts(self) -> AppFacts | None:
        """What the user's app gives, as `import_facts` finds it out. None when nobody names one; raises
        `AppImportError`."""
        from qml_mp.child.source import facts_of

        if self._app is not None:
            return facts_of(self._app.program)
        if self._facts is None and (spec := self.named_app()) is not None:
            try:
                self._facts = import_facts(spec)
            except AppImportError as error:
                # -v shows the causes: here the user's traceback, where there is one.
                cause = error if TRACEBACK in str(error) else error.__cause__
                raise AppImportError(in_words(error, verbose=True)) from cause
        return self._facts

    def more_about(self, error: BaseException) -> str:
        """What else there is to say of it: a sentence, or ""."""
        if self._is_default and isinstance(error, StorageUnreachable):
            return f"That storage is the default: {_NOBODY_NAMES}."
        return who_names_app(error, flag=self.app_spec, directory=self._directory)

    def make_job(self, method: str, payload: JsonValue, **options: Unpack[JobOptions]) -> Job:
        """A job that is not enqueued yet, checked against the app when there is one."""
        from qml_mp.app import QmlApp

        return (self.app() or QmlApp()).make_job(method, payload, **options)  # without methods, by name alone

    def storage(self, *, may_import: bool = True) -> Storage:
        """The storage that the flag, the app, the environment or a settings file names.

        Not yet connected; the first use of one without a schema makes the schema. Without `may_import`, an
        app whose source does not say its URL plainly is taken to leave it to the environment, which `doubt`
        says then. Raises `ConfigurationError` for `memory://`.
        """
        return self.storage_at(self._code_url(may_import=may_import))

    def storage_at(self, code_url: str | None) -> Storage:
        """`storage()`, when it is known what the app's code says."""
        from qml_mp.storage.memory_folder import MEMORY_URL

        with self._named_url(code_url).told() as url:
            if url.startswith(MEMORY_URL):
                raise ConfigurationError(
                    f"{MEMORY_URL} is a storage of the one program that opens it; this command would have an "
                    "empty one of its own. Name that of the server by --url, as its log tells it, or keep "
                    "the jobs in a file: sqlite:///jobs.db."
                )
            return self._open(url)

    def storage_of_probed_app(self) -> Storage:
        """`storage()` for a command that wants the settings, too, that the app's import puts into the
        environment: it is imported, however plainly its source says the URL."""
        facts = None if self.url is not None else self.facts()
        with self._named_url(None if facts is None else facts.url).told() as url:
            return self._open(url)

    @contextmanager
    def storage_to_write(self) -> Iterator[Storage]:
        """`storage()`, for a command that makes one where there is none. On this machine that is told
        afterwards: it may be in a folder in which no server looks."""
        storage = self.storage()
        is_new = storage.is_on_one_machine and storage.schema_version() == 0
        yield storage
        if is_new:
            url = storage.display_url
            note(f"a new storage was made at {url}; if another is meant, name it by -A, --url or QML_MP_URL")

    def existing_storage(self, *, may_import: bool = True) -> Storage:
        """The storage, for commands that only make sense where there is a schema: nothing is created."""
        storage = self.storage(may_import=may_import)
        if storage.schema_version() == 0:
            if self.doubt is not None:
                raise SchemaMismatch(
                    f"{self.doubt} {storage.display_url}, which was taken, has no qml-mp schema."
                )
            if storage.is_on_one_machine:
                _check_could_be_made(storage)
            cause = "Check the URL"
            if self._is_default:
                cause = f"It is the default: {_NOBODY_NAMES}"
            raise SchemaMismatch(
                f"There is no qml-mp schema in {storage.display_url} yet. {cause}; "
                "`qml-mp enqueue`, `qml-mp start` and `qml-mp migrate` make one."
            )
        storage.check_schema()
        return storage

    def retention(self) -> Retention:
        """How long an ended job is kept, as the settings say."""
        from qml_mp.storage.values import Retention

        try:
            facts = self.facts()
        except AppImportError as error:  # jobs can be cancelled while the code is broken
            note(f"what is kept how long is taken from the settings alone: {error}")
            facts = None
        code = None if facts is None else facts.config
        return Retention.of(load_config(flags={}, code=code, directory=self._directory))

    def _named_url(self, code_url: str | None) -> StorageUrl:
        found = load_url(flag=self.url, code=code_url, directory=self._directory)
        self._is_default = found.is_default and self.named_app() is None
        return found

    def _open(self, url: str) -> Storage:
        from qml_mp.storage.open import open_storage

        storage = open_storage(url, application_name="qml-mp")
        click.get_current_context().call_on_close(storage.close)
        return storage

    def _code_url(self, *, may_import: bool) -> str | None:
        """What the app's code says; where its source says it plainly, without importing it."""
        from qml_mp.cli.url_in_source import NotPlain, url_in_source
        from qml_mp.storage.memory_folder import url_for_others

        spec = self.named_app()
        if spec is None or self.url is not None:
            return None
        ways_out = "--url"
        if self._app is None:
            if not may_import:
                return url_for_others(self._guessed_code_url(spec))
            with suppress(NotPlain):
                url = url_in_source(spec)
                if url is not None or is_url_in_environment():
                    return url_for_others(url)
                ways_out = "--url or QML_MP_URL"
        try:
            facts = self.facts()
        except AppImportError as error:
            raise AppImportError(
                f"{sentence(str(error))} Only the storage's URL is wanted of it here: name that by "
                f"{ways_out}, and it is not imported."
            ) from error.__cause__
        return None if facts is None else url_for_others(facts.url)

    def _guessed_code_url(self, spec: str) -> str | None:
        """What the code says, as far as that is known without an import."""
        from qml_mp.cli.url_in_source import guessed_url

        where = partial(where_to_call, flag=self.app_spec, directory=self._directory)
        url, doubt = guessed_url(spec, if_not_found=where)
        if url is not None or not is_url_in_environment():  # before which no settings file counts
            self.doubt = doubt
        return url


def pass_session(function: _Function) -> _Function:
    """Decorator: the command gets the `Session` as its first argument."""
    decorated: Any = click.make_pass_decorator(Session, ensure=True)(function)
    return decorated  # type: ignore[no-any-return]  # click's type drops the argument that it fills in


def common_options() -> list[click.Parameter]:
    """Options that are taken before and after every subcommand; the last one given wins."""
    return [
        click.Option(
            ["-A", "--app"], metavar="MODULE:ATTR", expose_value=False, callback=_keep("app_spec"),
            help="The app, e.g. tasks:app (else $QML_MP_APP).",
        ),
        click.Option(
            ["--url"], metavar="URL", expose_value=False, callback=_keep("url"),
            help="The storage, e.g. sqlite:///jobs.db or postgresql://host/db (else $QML_MP_URL).",
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_keep("verbose"),
            help="More detail on stderr, and tracebacks.",
        ),
    ]  # fmt: skip


class Command(NamedInErrors):
    """A command that takes the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())
        for parameter in self.params:
            if parameter.name in BY_PARAMETER and parameter.type is click.STRING:
                parameter.type = BY_PARAMETER[parameter.name]

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a setting in the environment that is written wrong would pass unseen otherwise."""
        if self.name != "start":  # which has its log for that
            note_unknown_settings()
        return super().invoke(ctx)


class Group(NamedInErrors, click.Group):
    """A group of commands that takes the common options. Alone it prints its help and exits with 2."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Not by click's no_args_is_help, which is another stream and exit code in each of its versions.
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(_USAGE)
        given = [*args]  # the parser takes them away
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            command = self._command_with(ctx, error.option_name, given)
            if command is None:
                raise
            told = f"{error.option_name!r} is an option of `{command}`; put it behind that."
            raise click.UsageError(told, ctx) from None

    def _command_with(self, ctx: click.Context, option: str, words: Sequence[str]) -> str | None:
        """The first of the words that names a command; None unless that has the option."""
        name = next((word for word in words if word in self.list_commands(ctx)), None)
        command = None if name is None else self.get_command(ctx, name)
        parameters = [] if command is None else command.params
        return name if any(option in (*each.opts, *each.secondary_opts) for each in parameters) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and name not in self.list_commands(ctx) and not name.startswith("-"):
            alike = get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f" Did you mean {alike[0]!r}?" if alike else ""
            if all(name.partition(":")):
                hint = f" An app is named by -A: `{ctx.command_path} -A {name} …`."
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        session = ctx.ensure_object(Session)
        if value is not None and value is not False:  # "" is refused where it is used
            setattr(session, name, value)

    return keep


def _check_could_be_made(storage: Storage) -> None:
    """Raise `StorageUnreachable` where the file is missing because there is no place for it."""
    try:
        storage.check_rights()
    except StorageUnreachable as error:
        raise StorageUnreachable(f"There is no qml-mp schema, and none can be made here. {error}") from error
