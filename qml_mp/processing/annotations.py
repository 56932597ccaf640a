"""Client and worker: what annotations mean: the types behind names and type parameters."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, InitVar
from typing import Any, Final

from qml_mp.errors import shown
from qml_mp.processing.scalars import UnusableAnnotation, named

_ALIAS: Final = "TypeAliasType"  # of Python 3.12, or of typing_extensions
_Given = dict[Any, Any]
"""Types by type parameter."""


def unwrapped(hint: Any) -> Any:
    """The annotation without aliases made by `type X = …`, `Annotated` and `NewType`."""
    while True:
        if type(typing.get_origin(hint) or hint).__name__ == _ALIAS:
            hint = _meant_by(hint)
            continue
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint


def hints_of(owner: Any, where: str) -> dict[str, Any]:
    """The resolved annotations of a class, or of one that is given types in brackets, with these in place of
    its type parameters. `UnusableAnnotation` when one names what cannot be found."""
    kind = typing.get_origin(owner) or owner
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
        if not hasattr(kind, "__parameters__"):
            return hints
        given = _given_to_bases(kind, typing.get_args(owner), {})
        return {name: _with(hint, given.get(_declaring(kind, name), {})) for name, hint in hints.items()}
    except RecursionError:
        raise  # says something of the value around it, nothing of the annotation
    except Exception as error:  # an annotation is arbitrary code
        raise UnusableAnnotation(
            f"{where[:300]}: an annotation of {named(owner)} cannot be resolved ({error}); names in it "
            "must be importable at run time, not under `if TYPE_CHECKING` or inside a function."
        ) from None


def given_and_lost(kind: Any, hints: Mapping[str, Any]) -> str | None:
    """The name of an `InitVar` of the dataclass that has no default: it must be given, and is no field."""
    for name, hint in hints.items():
        if hint is InitVar or isinstance(hint, InitVar):
            field = kind.__dataclass_fields__.get(name)  # `dataclasses.fields` leaves it out
            if field is not None and field.default is MISSING:
                return name
    return None


def names_for(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The global and the local names that the annotations of a function may use."""
    beneath = _beneath(function)
    if not isinstance(beneath, types.FunctionType):
        return getattr(beneath, "__globals__", {}), {}
    parameters = {each.__name__: each for each in getattr(beneath, "__type_params__", ())}
    return beneath.__globals__, {**parameters, **inspect.getclosurevars(beneath).nonlocals}


def _beneath(function: Any) -> Any:
    """The function whose annotations those of a partial, a method, an object that can be called, or what a
    decorator made, are."""
    while True:
        function = inspect.unwrap(function)
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(getattr(type(function), "__call__", None), types.FunctionType):  # noqa: B004
            function = type(function).__call__
        else:
            return function


def _meant_by(alias: Any) -> Any:
    """What stands behind the name, with the types that it is given in brackets."""
    generic = typing.get_origin(alias) or alias
    try:
        value = generic.__value__
    except Exception as error:  # as with annotations: it is evaluated only now
        raise UnusableAnnotation(
            f"The type {shown(generic.__name__)} cannot be resolved ({error}); names in it must be "
            "importable at run time, not under `if TYPE_CHECKING`."
        ) from None
    given = dict(zip(generic.__type_params__, typing.get_args(alias), strict=False))
    wanted = getattr(value, "__parameters__", ())
    return value[tuple(given.get(each, Any) for each in wanted)] if wanted else value


def _given_to_bases(kind: Any, args: tuple[Any, ...], found: dict[Any, _Given]) -> dict[Any, _Given]:
    """What the class and the generic classes that it is derived from are given, by class."""
    parameters = getattr(kind, "__parameters__", ())
    if args and any(isinstance(each, typing.TypeVarTuple) for each in parameters):
        raise TypeError(f"{named(kind)} takes any number of types")
    given = found.setdefault(kind, dict(zip(parameters, args, strict=False)))
    for base in vars(kind).get("__orig_bases__", kind.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and hasattr(origin, "__parameters__"):
            _given_to_bases(origin, tuple(_with(each, given) for each in typing.get_args(base)), found)
    return found


def _declaring(kind: type, name: str) -> type:
    """The class of whose annotations this one is."""
    return next((each for each in kind.__mro__ if name in inspect.get_annotations(each)), kind)


def _with(hint: Any, given: _Given) -> Any:
    """The annotation with types in place of the parameters that they are given for."""
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    if typing.get_origin(hint) is None:  # also a generic class that is given nothing
        return hint
    wanted = getattr(hint, "__parameters__", ())
    return hint[tuple(given.get(each, each) for each in wanted)] if given.keys() & set(wanted) else hint


def parts_of(hints: tuple[Any, ...]) -> tuple[Any, ...]:
    """What they are made of, in order: `A | B` equals `B | A`, and does not read the same."""
    args_of = ((hint, getattr(hint, "__args__", None)) for hint in hints)
    return tuple(parts_of(args) if isinstance(args, tuple) else hint for hint, args in args_of)


def is_typed_dict(kind: Any) -> bool:
    """Whether it is a `TypedDict`: one of typing_extensions too, which `typing` knows from Python 3.13 on."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def holds_later_typed_dict(hint: Any) -> bool:
    """Whether a `TypedDict` is in it that `typing` does not know. It takes any JSON, and comes last in a
    union: it was no member of one until it was understood."""
    kind = typing.get_origin(hint) or hint
    is_one = is_typed_dict(kind) and not typing.is_typeddict(kind)
    return is_one or any(map(holds_later_typed_dict, typing.get_args(hint)))
