"""A component's signature is its schema.

What a constructor takes before the ``*`` is handed over by the component's owner; its keyword-only arguments, with
their types and defaults, are its configuration.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pydantic

from lcbench.errors import ConfigurationError, closest


def locate(target: str, key: str) -> Any:
    """The class or function that ``key: target`` names."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{key}={target} cannot be imported: {error}.") from error


#: where a config from elsewhere may name classes
TRUSTED = ("lcbench", "torch", "lightning")


def is_own(target: str) -> bool:
    """Whether a target is a public class that is defined in lcbench, torch or lightning.

    A class that one of their modules only imports, a function, and a private module (``__main__`` would run the
    command) are not. What a name outside them stands for is not imported.
    """
    parts = target.split(".")
    if parts[0] not in TRUSTED or len(parts) < 3 or any(part.startswith("_") or not part for part in parts):
        return False
    try:
        found = locate(target, "_target_")
    except ConfigurationError:
        return False
    return inspect.isclass(found) and found.__module__.split(".")[0] in TRUSTED


def injected(target: Any) -> list[str]:
    """Names of what the owner hands over."""
    parameters = list(inspect.signature(target).parameters.values())
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


#: what a constructor takes by these names before the ``*`` is a component of its own kind, configured within its node
PARTS = ("inner",)


def parts_of(target: Any) -> list[str]:
    """Names of the components that are configured within a target's node and handed over as factories."""
    return [name for name in injected(target) if name in PARTS]


def options_of(target: Any) -> dict[str, inspect.Parameter]:
    """The configurable arguments."""
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def validated(
    target: Any, options: dict[str, Any], group: str = "", origin: Callable[[str], str] = lambda key: ""
) -> dict[str, Any]:
    """The options with their types checked against the signature, and lengths such as 64k as numbers.

    Args:
        target: what the options are for.
        options: their values.
        group: the config group, for messages.
        origin: where a key was set, for messages.

    Raises:
        ConfigurationError: for the first option that is unknown, missing or of a wrong type.
    """
    parameters = options_of(target)
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default) for name, p in parameters.items()
    }
    schema = pydantic.create_model(
        "Options",
        __config__=pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True),
        **fields,
    )
    try:
        checked = schema(**options)
    except pydantic.ValidationError as error:
        raise _as_sentence(error, options, group, parameters, origin) from None
    return {name: getattr(checked, name) for name in options}


def _as_sentence(
    error: pydantic.ValidationError,
    options: dict[str, Any],
    group: str,
    parameters: dict[str, inspect.Parameter],
    origin: Callable[[str], str],
) -> ConfigurationError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    key = f"{group}.{name}" if group else name
    value = options.get(name)
    place = origin(key) and f" ({origin(key)})"
    if first["type"] == "extra_forbidden":
        hint = closest(key, [f"{group}.{n}" if group else n for n in parameters])
        return ConfigurationError(f"{key}={value}{place}: no such key; {hint}")
    if first["type"] == "missing":
        return ConfigurationError(f"{key} is missing.")
    if first["type"] == "literal_error":
        literals = [word.strip().strip("'") for word in re.split(r",| or ", first["ctx"]["expected"])]
        hint = closest(str(value), literals)
        return ConfigurationError(f"{key}={value}{place}: must be {first['ctx']['expected']}; {hint}")
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return ConfigurationError(f"{key}={value}{place}: {message.rstrip('.')}.")
