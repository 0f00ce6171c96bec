"""Which keys tell configurations apart, under the names people type.

A column is a dotted key (``model.d_model``), or a group where its choice differs (``position``). Left out are keys
that do not differ, keys that another one explains (an option that only one of two chosen classes has; a value that a
config file takes from another key), the seed, and what is no part of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from lcbench.configs import choices_of, config_directory, groups_of, is_computed

TARGET = "._target_"

#: what a run consists of, in the order of columns
GROUPS = (
    *("task", "corpus", "tokenizer", "dataset", "model", "attention", "position"),
    *("objective", "optimizer", "trainer", "evaluation"),
)

Config = Mapping[str, Any]


class _Absent:
    def __repr__(self) -> str:
        return ""


#: the value of a key that a config does not have
ABSENT = _Absent()


def label_of(key: str) -> str:
    """The column's name: ``position._target_`` is ``position``."""
    return key.removesuffix(TARGET)


def key_of(label: str, known: Iterable[str]) -> str | None:
    """The key behind a column's name or an override's; None if there is none."""
    known = set(known)
    return next((key for key in (f"{label}{TARGET}", label) if key in known), None)


def value_of(config: Config, key: str) -> Any:
    """The value as it is shown and typed: a class of lcbench by the choice that names it; hashable."""
    value = config.get(key, ABSENT)
    if key.endswith(TARGET) and isinstance(value, str):
        parts = value.split(".")
        return parts[-2] if parts[0] == "lcbench" and len(parts) > 2 else value
    return repr(value) if isinstance(value, list | dict) else value


def shown(value: Any) -> str:
    """A value as YAML and the command line write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_value(value: Any, text: str) -> bool:
    """Whether ``text``, as typed, is ``value``: 1e-3 is 0.001."""
    if shown(value) == text:
        return True
    try:
        return not isinstance(value, bool) and float(value) == float(text)
    except (TypeError, ValueError):
        return False


def order_of_values(value: Any) -> tuple[int, float, str]:
    """Numbers by size before words, and what is absent last."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return (2, 0, "") if value is ABSENT else (1, 0, shown(value))


def varying(configs: Sequence[Config]) -> list[str]:
    """Keys of what is computed, but for the seed, that are not the same everywhere, in the order of columns."""
    keys = dict.fromkeys(key for config in configs for key in config)
    differ = [key for key in keys if key != "seed" and is_computed(key) and _differs(configs, key)]
    return sorted(differ, key=_order_of_keys)


def _differs(configs: Sequence[Config], key: str) -> bool:
    # comparing with the first is several times faster than making thousands of values hashable
    first = configs[0].get(key, ABSENT)
    return any(config.get(key, ABSENT) != first for config in configs)


def _order_of_keys(key: str) -> tuple[int, bool, str]:
    group = key.split(".")[0]
    return (GROUPS.index(group) if group in GROUPS else len(GROUPS)), not key.endswith(TARGET), key


def columns(configs: Sequence[Config]) -> list[str]:
    """The keys that tell ``configs``, all different, apart."""
    candidates = [key for key in varying(configs) if not _follows(key, configs)]
    chosen = [k for k in candidates if len({value_of(c, k) for c in configs} - {ABSENT}) > 1]
    for key in candidates:
        # an option that only some have is explained by the class that has it, if anything else tells these apart
        if key not in chosen and any(
            len({value_of(config, key) for config in alike}) > 1 for alike in _alike(configs, chosen)
        ):
            chosen.append(key)
    return sorted(chosen, key=_order_of_keys)


def _alike(configs: Sequence[Config], keys: Sequence[str]) -> Iterable[list[Config]]:
    groups: dict[tuple[Any, ...], list[Config]] = {}
    for config in configs:
        groups.setdefault(tuple(value_of(config, key) for key in keys), []).append(config)
    return groups.values()


def _follows(key: str, configs: Sequence[Config]) -> bool:
    """Whether the key, wherever it is present, has the value of the key that its config file takes it from."""
    for config in configs:
        if key in config:
            leader = _leaders().get((config.get(f"{key.split('.')[0]}{TARGET}"), key))
            if leader is None or leader not in config or config[leader] != config[key]:
                return False
    return True


@cache
def _leaders() -> dict[tuple[str | None, str], str]:
    """By target and key, the key that a config file takes the value from: ``context: ${task.length}``."""
    directory = config_directory()
    found = {}
    for group in groups_of([directory]):
        for path in choices_of(group, [directory]).values():
            lines = [line.partition(": ") for line in path.read_text().splitlines() if not line.startswith(("#", " "))]
            options = {name: value.strip() for name, _, value in lines}
            for name, value in options.items():
                if value.startswith("${") and value.endswith("}"):
                    found[options.get("_target_"), f"{group}.{name}"] = value[2:-1]
    return found
