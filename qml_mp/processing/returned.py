"""Client and worker: what a function returns, as JSON by its return annotation, and back."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from qml_mp.core.payload import EncodedJson, JsonValue
from qml_mp.errors import InvalidJob
from qml_mp.processing.binding import resolved_hint
from qml_mp.processing.codec import codec_of, decoded, encoded, is_mistakable
from qml_mp.processing.context import WorkerResult
from qml_mp.processing.plain import plain_result
from qml_mp.processing.remade import writing_made_fields
from qml_mp.processing.scalars import Codec, Mistakable, UnusableAnnotation

_WHERE = "The result"
_AWAITED = (Coroutine, Awaitable)


class Returned:
    """The results of one function. The annotation is resolved at first use, so that it may name what is
    defined further down in the module.

    An annotation that cannot be resolved, or that says nothing about JSON, is as good as none: the
    worker's own way of writing a value down needs none, and whoever reads it gets the JSON.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._codec: Codec | None = None
        self._is_mistakable = False
        self._is_resolved = False

    def encoded(self, value: object) -> EncodedJson:
        """The value as it is stored; `InvalidJob` when it cannot be. The annotation is asked only where the
        value alone does not say how it travels, as bytes do not, or how it is read, as with some unions."""
        codec = self._resolved()
        if self._is_mistakable and codec is not None:
            try:
                _written(codec, value)
            except Mistakable:
                raise
            except InvalidJob:
                pass  # it is not what the annotation says, and whoever reads it is told so
        try:
            return plain_result(value)
        except InvalidJob as problem:
            if codec is None:
                raise
            try:
                return plain_result(_written(codec, value))  # with what is under Any in it
            except InvalidJob:
                raise problem from None

    def rebuilt(self, value: JsonValue) -> Any:
        """The value as the annotation wants it; `InvalidJob` when it does not fit."""
        codec = self._resolved()
        if codec is None:
            return value
        try:
            return decoded(codec, value, _WHERE)
        except UnusableAnnotation:  # a part of it
            return value

    def _resolved(self) -> Codec | None:
        if not self._is_resolved:
            annotation = inspect.signature(self._function).return_annotation
            try:
                hint = resolved_hint(self._function, annotation)
                self._codec = _codec(hint)
                self._is_mistakable = is_mistakable(hint)
            except InvalidJob:
                self._codec = None
            self._is_resolved = True
        return self._codec


def _written(codec: Codec, value: object) -> JsonValue:
    with writing_made_fields():
        return encoded(codec, value, _WHERE)


def _codec(hint: Any) -> Codec | None:
    while typing.get_origin(hint) in _AWAITED:
        hint = typing.get_args(hint)[-1]
    if hint is WorkerResult or WorkerResult in typing.get_args(hint):
        return None  # whatever its `result` is
    return codec_of(hint, _WHERE)
