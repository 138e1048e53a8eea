"""What every config is: a frozen dataclass with a gin name of its own.

The gin name doesn't follow the file that the class stands in, so moving a class
breaks nobody's experiment; and a value of the wrong type is one line that names it.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, dataclass_transform

import gin

from tiger_jax.errors import InputError

C = TypeVar("C", bound=type)
NAMES: list[str] = []
"""``module.ClassName.field`` of every config that was imported."""


@dataclass_transform(frozen_default=True)
def config(module: str) -> Callable[[C], C]:
    """Makes a class a config, bound in gin as ``module.ClassName.field``.

    Scalars, strings, tuples and choices (`typing.Literal`) are checked against their
    annotations, and a list becomes a tuple; what else a value must satisfy, the
    class's own `__post_init__` says.

    Raises:
        InputError: On construction: a value has the wrong type, or `__post_init__`
            raised a ValueError.

    Examples:
        >>> @config("my_search")
        ... class SearchConfig:
        ...     num_beams: int = 50
        >>> SearchConfig(num_beams="many")
        Traceback (most recent call last):
        tiger_jax.errors.InputError: my_search.SearchConfig.num_beams is 'many': it must
        be of the type int
    """

    def decorate(cls: C) -> C:
        check = getattr(cls, "__post_init__", None)

        def post_init(self: Any) -> None:
            name = f"{module}.{cls.__name__}"
            hints = typing.get_type_hints(type(self))
            for field in dataclasses.fields(self):
                value, hint = getattr(self, field.name), hints[field.name]
                if isinstance(value, list) and typing.get_origin(hint) is tuple:
                    value = tuple(value)
                    object.__setattr__(self, field.name, value)
                if not fits(value, hint):
                    raise InputError(
                        f"{name}.{field.name} is {value!r}: it must be {say_type(hint)}"
                    )
            try:
                if check is not None:
                    check(self)
            except InputError:
                raise
            except ValueError as error:
                raise InputError(f"{name}: {error}") from error

        cls.__post_init__ = post_init  # type: ignore[attr-defined]
        made = dataclasses.dataclass(frozen=True)(cls)
        prefix = f"{module}.{cls.__name__}"
        NAMES.extend(f"{prefix}.{f.name}" for f in dataclasses.fields(made))
        return gin.register(module=module)(made)

    return decorate


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as a config's types are concerned."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint in (int, float):
        numbers = (int, float) if hint is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin is tuple and isinstance(value, tuple):
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(each) == len(value) and all(map(fits, value, each))
    return origin is not tuple or isinstance(value, tuple)


def say_type(hint: Any) -> str:
    """A type in words, after "it must be"."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return f"of the type {name.replace('typing.', '')}"
