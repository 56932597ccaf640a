"""Web process: who may see the page, and how they prove it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from qml_mp.clock import Clock, SystemClock
from qml_mp.errors import ConfigurationError
from qml_mp.printable import printable
from qml_mp.processing.program import check_plain
from qml_mp.setting_kinds import check_web_token

logger = logging.getLogger(__name__)

SESSION_S = 12 * 3600
_SCRYPT_N = 2**14
_SHORTEST_PASSWORD = 12
_TURN_S = 1.0
_LONGEST_QUEUE_S = 10.0
_TELL_EVERY_S = 60.0

AuthArgument = str | tuple[str, str] | Callable[[HTTPConnection], str | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """How people prove who they are. Neither secret nor function: nobody has to."""

    user: str | None = None
    """None with a secret: it is a token."""
    secret: str | None = field(default=None, repr=False)
    ask: Callable[[HTTPConnection], str | None] | None = None
    """The host's: who sends a request; None: nobody who may see the page. Called in a thread."""
    key: bytes = field(repr=False)
    """What sessions are signed with: the same in every process that serves the page, and in those that
    replace them, as it is made from the secret. Who has something that was made with it can try passwords
    where nobody counts them, so nothing of it goes to who is not signed in. Empty without a secret."""

    @classmethod
    def of(cls, given: AuthArgument) -> Auth:
        """Raises `ConfigurationError` for what is none of the accepted forms, a token or password that can be
        guessed, and a function of which nothing runs when it is called."""
        match given:
            case None:
                return cls(key=b"")
            case str():
                check_web_token(given)
                return cls(secret=given, key=_key_from(given))
            case (str() as user, str() as password) if user and password:
                _check_password(password)
                return cls(user=user, secret=password, key=_key_from(f"{user}\0{password}"))
            case _ if callable(given):
                check_plain(given, what="auth", takes="(request)")
                return cls(ask=given, key=b"")
        raise ConfigurationError(
            "auth is a token (text), a user and a password (a pair of texts), or a function that gets the "
            "request "
            f"and gives the user's name or None; this is a {type(given).__name__}."
        )

    @property
    def is_set(self) -> bool:
        """Whether not everybody may see the page."""
        return self.secret is not None or self.ask is not None

    @property
    def has_form(self) -> bool:
        """Whether people sign in on the page itself."""
        return self.secret is not None

    def who(self, request: HTTPConnection) -> str | None:
        """The name of who sends it; None: nobody who may see the page. Raises `ConfigurationError` when the
        host's function gives what is neither."""
        if self.ask is not None:
            return _name_in(self.ask(request))
        if self.secret is None:
            return "anybody"
        return self._name if self._is_ours(request.cookies.get(self.cookie("session"), "")) else None

    def admits(self, user: str, secret: str) -> bool:
        """Whether these are the right ones. It takes as long whatever is wrong."""
        right_user = _is_same(user, self.user or "") or self.user is None
        right_secret = _is_same(secret, self.secret or "")
        return self.secret is not None and right_user and right_secret

    def cookie(self, what: str) -> str:
        """The name of the page's cookie for that; made with the key, and so for those alone who may see the
        page. Browsers keep one set of cookies for all ports of a host: of two pages there, who signs in to
        one must not be signed out of the other. Those that share a secret share the names too, and take each
        other's cookies."""
        return f"qml_mp_{what}_{self.sign('cookie', 'name')[:8]}"

    def session(self) -> str:
        """The value of a new session's cookie."""
        content = f"{int(time.time())}.{secrets.token_urlsafe(12)}"
        return f"{content}.{self.sign('session', content)}"

    def sign(self, purpose: str, text: str) -> str:
        """What only who has the key can know of the text."""
        return hmac.new(self.key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    @property
    def _name(self) -> str:
        return self.user or "who has the token"

    def _is_ours(self, cookie: str) -> bool:
        content, _, signature = cookie.rpartition(".")
        began, _, _ = content.partition(".")
        if not _is_same(signature, self.sign("session", content)) or not began.isdecimal():
            return False
        # In the future for a machine whose clock is behind, or was set back: the signature vouches for it.
        return abs(time.time() - int(began)) <= SESSION_S


def form_token(visit: str) -> str:
    """What the page's forms carry for the visit whose cookie this is. No secret is in it: strangers get it
    with the sign-in form, beside that cookie. Why it is enough stands in `Guard._check_token`."""
    return hashlib.sha256(f"form\0{visit}".encode()).hexdigest()


def is_form_token(given: str, *, visit: str) -> bool:
    """Whether it is that of the visit."""
    return _is_same(given, form_token(visit))


class SignInTurns:
    """Those who sign in at this process take turns, one a second, right or wrong: else hundreds of guesses
    could be tried side by side.

    Whoever keeps all turns taken keeps others from signing in meanwhile; those who are signed in stay so.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._free_at = float("-inf")
        self._refused = 0
        """Since the log was told of them last."""
        self._newest_from = ""
        self._told_at = float("-inf")
        self._rest: asyncio.TimerHandle | None = None
        """Tells of those that nobody comes after."""

    async def take(self) -> bool:
        """Wait for the next turn. False, and at once, when too many wait for theirs."""
        now = self._clock.monotonic()
        turn_at = max(now, self._free_at)
        if turn_at - now > _LONGEST_QUEUE_S:
            return False
        self._free_at = turn_at + _TURN_S
        await asyncio.sleep(turn_at - now)
        return True

    def note_refused(self, address: str) -> None:
        """Have the log say that somebody there was not let in, with the others since it was told last, once a
        minute. What was typed is not logged: people type passwords into the wrong field. For the event
        loop's own thread."""
        self._refused, self._newest_from = self._refused + 1, address
        rest_s = self._told_at + _TELL_EVERY_S - self._clock.monotonic()
        if rest_s <= 0:
            self._tell()
        elif self._rest is None:
            self._rest = asyncio.get_running_loop().call_later(rest_s, self._tell)

    def _tell(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        logger.warning(
            "Sign-ins to the page that were refused: %s, the newest from %s",
            self._refused,
            printable(self._newest_from),
        )
        self._refused, self._told_at, self._rest = 0, self._clock.monotonic(), None


def _check_password(password: str) -> None:
    if len(password) < _SHORTEST_PASSWORD:
        raise ConfigurationError(
            f"The password of the page has {len(password)} characters; it needs {_SHORTEST_PASSWORD} or more."
        )


def _name_in(answer: object) -> str | None:
    """What the host's function said. Everything else than a name is refused: a coroutine, or a user who is
    not signed in, counts as true, and would let everybody in."""
    if answer is None or isinstance(answer, str):
        return answer or None
    if inspect.iscoroutine(answer):
        answer.close()  # it would be told as never awaited, long after this
    raise ConfigurationError(
        f"The function given as auth gave a value of type {type(answer).__name__}; it must give the user's "
        "name as text, or None for nobody."
    )


def _key_from(secret: str) -> bytes:
    """Slow to try: who has a cookie must not find a password by it."""
    return hashlib.scrypt(secret.encode(), salt=b"qml-mp page", n=_SCRYPT_N, r=8, p=1, dklen=32)


def _is_same(one: str, other: str) -> bool:
    """In a time that does not tell where they differ; of different lengths too."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (one, other)]
    return hmac.compare_digest(*digests)
