"""A checked config -> objects: a node's target, called with what its owner injects and what the node configures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lcbench.schema import injected, locate, parts_of, validated

if TYPE_CHECKING:
    from lcbench.model.base import Model
    from lcbench.task.base import Task


def construct(node: dict[str, Any], *injected: Any) -> Any:
    """Call a node's target with what its owner injects and what the node configures; a part within the node arrives
    as a factory."""
    target = locate(node["_target_"], "_target_")
    options = _without_target(node)
    parts = [_factory(options.pop(name)) for name in parts_of(target)]
    return target(*injected, *parts, **validated(target, options))


def construct_task(config: dict[str, Any]) -> Task:
    """The task of a config, given the corpus and the tokenizer of the config if it takes them by name."""
    made: dict[str, Any] = {}
    for group in ("corpus", "tokenizer", "task"):
        # a run's config from before a group was there has none
        if group in config:
            target = locate(config[group]["_target_"], f"{group}._target_")
            parts = [made[name] for name in injected(target) if name in made]
            made[group] = construct(config[group], *parts)
    return made["task"]


def construct_model(config: dict[str, Any], vocabulary_size: int) -> Model:
    """The network of a config: parts it takes by name (``attention``, ``position``) arrive as factories."""
    target = locate(config["model"]["_target_"], "model._target_")
    parts = [_factory(config[name]) for name in injected(target) if name in ("attention", "position")]
    return construct(config["model"], vocabulary_size, *parts)


def _factory(node: dict[str, Any]) -> Callable[..., Any]:
    return lambda *injected: construct(node, *injected)


def _without_target(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}
