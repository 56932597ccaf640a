"""Client and worker: a call's arguments as a payload, and a payload as a call's arguments.

Both directions follow the signature of the function and the annotations of its parameters. The
parameter annotated with `WorkerContext` is left out of the payload: the worker fills it.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

from qml_mp.core.payload import EncodedJson, JsonValue
from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.annotations import names_for, unwrapped
from qml_mp.processing.codec import codec_of, decoded, encoded
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.scalars import Codec, UnusableAnnotation

_CONTEXT_TEXT = re.compile(r"(Optional\[)?([\w.]+\.)?WorkerContext(\]| *\| *None)?")


class PayloadMismatch(InvalidJob):
    """A stored payload does not fit the function's signature. Raised in the worker, before the call."""


class Binding:
    """The signature of one function, seen as a payload. Annotations are resolved at first use, so
    that they may name what is defined further down in the module."""

    def __init__(self, function: Callable[..., Any], *, name: str) -> None:
        self._function = function
        self._name = name
        self._signature = inspect.signature(function)
        self._resolved: _Parameters | None = None

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> EncodedJson:
        """The payload of a call: an object of all arguments that were given, by parameter name.

        Raises `InvalidJob` naming function and argument.
        """
        parameters = self._parameters()
        given = parameters.given_in_order(args, kwargs)
        if given is None:
            payload = self._payload(parameters, args, kwargs)
        else:
            payload = {
                name: encoded(parameters.codec(name, self._name, where), value, where)
                for (name, value), where in zip(given.items(), parameters.places.values(), strict=False)
            }
        return EncodedJson.of(
            payload, what=f"{self._name}: the arguments", argument=f"{self._name}: the argument"
        )

    def _payload(
        self, parameters: _Parameters, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> dict[str, JsonValue]:
        """That of any call."""
        try:
            arguments = parameters.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = parameters.unknown(kwargs) if str(error).startswith("missing") else ""
            raise InvalidJob(f"{self._name}: {error}{unknown}.") from None
        payload: dict[str, JsonValue] = {}
        for name, value in arguments.items():
            if parameters.kind(name) is not Parameter.VAR_KEYWORD:
                payload[name] = self._converted(encoded, parameters, name, value)
                continue
            for key in value:
                if self._is_taken(key, name):
                    raise InvalidJob(
                        f"{self._where(name)}: the name {shown(key)} is taken by another parameter."
                    )
            payload |= self._converted(encoded, parameters, name, value)
        return payload

    def call(self, payload: JsonValue, context: WorkerContext) -> Any:
        """Call the function with the payload's arguments. Raises `PayloadMismatch` before the call."""
        try:
            args: Sequence[Any] | None = self._in_order(payload, context)
            kwargs: Mapping[str, Any] = {}
            if args is None:
                bound = self._bound(payload, context)
                args, kwargs = bound.args, bound.kwargs
        except InvalidJob as problem:
            raise PayloadMismatch(str(problem)) from None
        return self._function(*args, **kwargs)

    def resolve(self) -> None:
        """Resolve the annotations now, as far as they can be."""
        self._parameters()

    def check(self, payload: JsonValue) -> None:
        """Raise `InvalidJob` unless a call with this payload would begin."""
        self._bound(payload, None)

    def check_names(self, payload: JsonValue) -> None:
        """`check` without the types, for when annotations cannot be resolved yet."""
        self._arguments(self._resolve(), payload)

    def _converted(self, convert: Callable[..., Any], parameters: _Parameters, name: str, value: Any) -> Any:
        """An argument as `to_json` or `from_json` makes it; items of `**kwargs` one by one."""

        def converted(value: Any, where: str) -> Any:
            return convert(parameters.codec(name, self._name, where), value, where)

        if parameters.kind(name) is Parameter.VAR_KEYWORD:
            return {key: converted(item, self._where(key)) for key, item in value.items()}
        return converted(value, self._where(name))

    def _in_order(self, payload: JsonValue, context: WorkerContext) -> list[Any] | None:
        """What `_bound` gives, in a fifth of its time, where all are given by name and can be passed by
        position; None for anything else, and for wrong names."""
        parameters = self._parameters()
        given = {} if payload is None else payload
        if parameters.in_order is None or type(given) is not dict:
            return None
        if not parameters.required <= given.keys() <= parameters.names:
            return None
        values: list[Any] = []
        for name, default in parameters.in_order:
            if name in given:
                codec = parameters.codecs.get(name) or parameters.codec(name, self._name, self._where(name))
                values.append(codec.decode(given[name], parameters.places[name]))
            else:
                values.append(context if name == parameters.context else default)
        return values

    def _bound(self, payload: JsonValue, context: WorkerContext | None) -> inspect.BoundArguments:
        parameters = self._parameters()
        values = {
            name: self._converted(decoded, parameters, name, value)
            for name, value in self._arguments(parameters, payload).items()
        }
        if parameters.context is not None:
            values[parameters.context] = context
        # In the order of the signature, as BoundArguments wants them.
        ordered = {name: values[name] for name in self._signature.parameters if name in values}
        bound = inspect.BoundArguments(self._signature, ordered)
        bound.apply_defaults()  # a positional argument behind a gap would become a keyword, or be lost
        return bound

    def _arguments(self, parameters: _Parameters, payload: JsonValue) -> dict[str, Any]:
        """The payload's values by parameter, not converted yet; raises `InvalidJob` for a wrong set."""
        if isinstance(payload, list):
            return self._positional(parameters, payload)
        if payload is not None and not isinstance(payload, dict):
            raise InvalidJob(
                f"{self._name}: the payload is a {type(payload).__name__}; it must be an object of arguments "
                "by name, or a list of positional ones."
            )
        rest = dict(payload or {})
        for key in rest:
            if not isinstance(key, str):
                raise InvalidJob(f"{self._name}: the name of an argument is {shown(key)}; it must be text.")
        arguments: dict[str, Any] = {}
        catch_all: str | None = None
        for name, parameter in parameters.signature.parameters.items():
            if parameter.kind is Parameter.VAR_KEYWORD:
                catch_all = name
            elif name in rest:
                arguments[name] = rest.pop(name)
            elif parameter.default is Parameter.empty and parameter.kind is not Parameter.VAR_POSITIONAL:
                unknown = parameters.unknown(rest)
                raise InvalidJob(f"{self._name}: missing a required argument: {name!r}{unknown}.")
        for key in rest:
            if catch_all is None or self._is_taken(key, catch_all):
                raise InvalidJob(f"{self._name}: got an unexpected argument: {shown(key)}.")
        if catch_all is not None:
            arguments[catch_all] = rest
        return arguments

    def _positional(self, parameters: _Parameters, payload: list[JsonValue]) -> dict[str, Any]:
        try:
            bound = parameters.signature.bind(*payload)
        except TypeError as error:
            raise InvalidJob(f"{self._name}: {error}.") from None
        return {name: list(v) if isinstance(v, tuple) else v for name, v in bound.arguments.items()}

    def _is_taken(self, key: str, catch_all: str) -> bool:
        """Whether the name is that of a parameter, so that `**kwargs` cannot carry it."""
        return key != catch_all and key in self._signature.parameters

    def _parameters(self) -> _Parameters:
        if self._resolved is None:
            resolved = self._resolve()
            if not any(isinstance(hint, _Unresolved) for hint in resolved.hints.values()):
                self._resolved = resolved
            return resolved
        return self._resolved

    def _resolve(self) -> _Parameters:
        hints = {
            name: resolved_hint(self._function, parameter.annotation)
            for name, parameter in self._signature.parameters.items()
        }
        context = next((name for name, hint in hints.items() if _is_context(hint)), None)
        taken = [part for name, part in self._signature.parameters.items() if name != context]
        are_plain = _are_plain(taken)
        names = [part.name for part in taken]
        in_order = [(part.name, part.default) for part in self._signature.parameters.values()]
        return _Parameters(
            signature=self._signature.replace(parameters=taken),
            hints=hints,
            context=context,
            names=frozenset(names),
            plain=tuple(names if are_plain else ()),
            required=frozenset(part.name for part in taken if part.default is Parameter.empty),
            in_order=tuple(in_order) if _are_plain(self._signature.parameters.values()) else None,
            places={name: self._where(name) for name in names},
        )

    def _where(self, argument: str) -> str:
        return f"{self._name}: the argument {shown(argument)}"


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """An annotation given as text that names what cannot be found (yet)."""

    text: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    """The parameters that the caller gives, their annotations, and the name of the context's."""

    signature: inspect.Signature
    """Without the context's parameter."""
    hints: Mapping[str, Any]
    context: str | None
    names: frozenset[str]
    """Of all, without the context's."""
    plain: tuple[str, ...]
    """The same in order, when each can be given by position and by name; else none of them."""
    required: frozenset[str]
    """Those that have no default."""
    in_order: tuple[tuple[str, Any], ...] | None
    """The names, with the context's, and the defaults; None when one cannot be passed by position."""
    places: Mapping[str, str]
    """How errors name each."""
    codecs: dict[str, Codec] = field(default_factory=dict)
    """Those that were found so far; each call needs them."""

    def given_in_order(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Mapping[str, Any] | None:
        """What `signature.bind` gives, in a third of its time, for the plainest of calls; None for others."""
        given = {**dict(zip(self.plain, args, strict=False)), **kwargs}
        count = len(args) + len(kwargs)
        is_plain = len(self.required) <= count == len(given) and tuple(given) == self.plain[:count]
        return given if is_plain else None

    def unknown(self, names: Iterable[object]) -> str:
        """For a call that lacks an argument: those of the names that it does not have, mistyped maybe."""
        takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in self.signature.parameters.values())
        unknown = [] if takes_any else [shown(name) for name in names if name not in self.names]
        return f", and there is none named {', '.join(unknown)}" if unknown else ""

    def kind(self, name: str) -> object:
        return self.signature.parameters[name].kind

    def codec(self, name: str, function: str, where: str) -> Codec:
        """That of the annotation; of a list of it, for `*args`."""
        codec = self.codecs.get(name)
        if codec is None:
            hint = self._hint(name, function)
            if self.kind(name) is Parameter.VAR_POSITIONAL:
                hint = list[hint]  # type: ignore[valid-type]
            codec = self.codecs[name] = codec_of(hint, where)
        return codec

    def _hint(self, name: str, function: str) -> Any:
        hint = self.hints[name]
        if isinstance(hint, _Unresolved):
            raise InvalidJob(
                f"{function}: the annotation {hint.text!r} of {name!r} cannot be resolved ({hint.problem}); "
                "it must be importable at run time, not under `if TYPE_CHECKING`."
            )
        return hint


def _are_plain(parameters: Iterable[Parameter]) -> bool:
    return all(each.kind is Parameter.POSITIONAL_OR_KEYWORD for each in parameters)


def resolved_hint(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation of a parameter or of the result: Any when there is none, what `codec_of` refuses when
    it names what cannot be found (yet)."""
    if annotation is Parameter.empty:
        return Any
    scope = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hint = typing.get_type_hints(scope, *names_for(function), include_extras=True)["it"]
        unwrapped(hint)  # what a name made by `type X = …` stands for is evaluated only then
        return hint
    except Exception as error:  # an annotation is arbitrary code
        return _Unresolved(str(annotation), f"{type(error).__name__}: {error}")


def _is_context(hint: Any) -> bool:
    if isinstance(hint, _Unresolved):
        return _CONTEXT_TEXT.fullmatch(hint.text.strip()) is not None
    try:
        return any(unwrapped(part) is WorkerContext for part in (hint, *typing.get_args(unwrapped(hint))))
    except UnusableAnnotation:  # of a part that names what cannot be found
        return False
