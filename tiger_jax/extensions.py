"""Classes of one's own, found again by the name that a file gives them.

A file never decides what else is imported: that would let it run code. The class must
be of this package, or in a module that the run has imported, by a line such as
``import my_model`` in a gin file.
"""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tiger_jax.errors import InputError

C = TypeVar("C")


def class_name(cls: type) -> str:
    """What `find_class` finds the class by."""
    return f"{cls.__module__}.{cls.__qualname__}"


def find_class(name: str, path: Path) -> Any:
    """The class of this name in this package, or in a module that is imported.

    Args:
        path: The file that names it, for the message.

    Raises:
        InputError: Nobody has imported its module, or it has no such class.
    """
    module, _, attribute = name.rpartition(".")
    if module.startswith("tiger_jax."):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    cls = getattr(sys.modules.get(module), attribute, None)
    if not isinstance(cls, type):
        raise InputError(
            f"{path} is of the class {name}, which is not imported: add the line "
            f"`import {module}` to a gin file that the run reads, or import it first"
        )
    return cls


def settings_of(config: Any, usual: type) -> dict[str, Any]:
    """A config as JSON; one that is not of the usual class has its class's name."""
    cls = type(config)
    own_class = {} if cls is usual else {"class": class_name(cls)}
    return {**own_class, **dataclasses.asdict(config)}


def config_of(settings: Mapping[str, Any], usual: type[C], path: Path) -> C:
    """The config whose `settings_of` these are.

    Raises:
        InputError: Its class can't be found, or a setting is not what it can be.
        TypeError: The class has no such setting.
    """
    fields = dict(settings)
    name = fields.pop("class", None)
    cls = usual if name is None else find_class(str(name), path)
    return cls(**fields)
