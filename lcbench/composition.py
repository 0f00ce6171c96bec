"""Overrides -> a checked config -> objects: the only module that knows Hydra.

A component's config is its constructor: ``_target_`` plus the constructor's keyword-only arguments. What comes before
the ``*`` in a constructor is handed over by the component's owner and cannot be configured. Defaults stand in the
signature and nowhere else; a config file holds what other groups decide. A mistake ends in a ``ConfigurationError``
before any data or training.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lcbench.configs import choices_of, config_directory, groups_of, is_computed
from lcbench.construction import construct, construct_model, construct_task
from lcbench.errors import ConfigurationError, closest
from lcbench.schema import PARTS, injected, is_own, locate, options_of, parts_of, validated

if TYPE_CHECKING:
    from lcbench.attention.base import Attention
    from lcbench.corpus.documents import Watcher
    from lcbench.engine.experiment import Experiment
    from lcbench.model.base import Model


@dataclass(frozen=True)
class Composition:
    """A checked config.

    Args:
        config: resolved, plain, loadable by itself.
        choices: the chosen file of each group.
        differs: the user's overrides that change what is computed, sorted by key.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    differs: tuple[tuple[str, str], ...]

    @property
    def hash(self) -> str:
        """8 hex digits of everything that decides what is computed."""
        computed = json.dumps(_computed(self.config), sort_keys=True)
        return hashlib.sha256(computed.encode()).hexdigest()[:8]

    @property
    def folder_name(self) -> str:
        """What differs, readable, and the hash, unique."""
        return f"{slug(self.differs)[:80] or 'default'}-{self.hash}"


#: the folders whose files set keys of any group, the strongest first, and by which choice
_OVERLAYS = (("tuned", "tuned@_global_"), ("experiment", "experiment"))


def slug(differs: Sequence[tuple[str, str]]) -> str:
    """Keys and values as part of a file's name."""
    words = [f"{key}-{value.strip('[]')}" for key, value in differs]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words)).strip("-")


@dataclass(frozen=True)
class _Files:
    """Where a key came from, for messages."""

    directories: Sequence[Path]
    choices: dict[str, str]
    given: dict[str, str]

    def origin(self, key: str) -> str:
        if any(key == name or key.startswith(f"{name}.") for name in self.given if "." in name):
            return "command line"
        overlays = [f"{folder}/{self.choices.get(choice)}.yaml" for folder, choice in _OVERLAYS]
        for name in overlays:
            for path in (directory / name for directory in self.directories):
                if path.exists() and OmegaConf.select(OmegaConf.load(path), key) is not None:  # type: ignore[arg-type]
                    return f"conf/{name}"
        group = key.split(".")[0]
        return f"conf/{group}/{self.choices[group]}.yaml" if group in self.choices else "config.yaml"


def compose(overrides: Sequence[str] = (), overlays: Sequence[Path] = ()) -> Composition:
    """Compose and check a run's config.

    Args:
        overrides: Hydra overrides, as on the command line; value overrides need no ``+``.
        overlays: folders searched after lcbench's own conf/ for the user's config files.

    Raises:
        ConfigurationError: for any mistake in the overrides, in one sentence.
    """
    parsed = _parse(overrides)
    _refuse_several(parsed)
    node, choices = _hydra(_arguments(parsed, overlays))
    given = {o.key_or_group: str(o.get_value_string()) for o in parsed}
    files = _Files([config_directory(), *overlays], choices, given)
    _drop_unused(node, choices, given, files)
    _fill_defaults(node, files)
    config = _checked(node, files)
    experiment = choices.get("experiment", "None")
    config["experiment"] = choices["task"] if experiment in ("None", "null") else experiment
    differs = tuple(sorted((key, value) for key, value in given.items() if is_computed(key)))
    return Composition(config=config, choices=choices, differs=differs)


def sweep_arguments(overrides: Sequence[str], overlays: Sequence[Path]) -> list[str]:
    """The overrides of a sweep as Hydra wants them, each checked by itself.

    Raises:
        ConfigurationError: for an override that no job could be made of.
    """
    return _arguments(_parse(overrides), overlays)


def from_config(config: dict[str, Any], trust: bool = False) -> Composition:
    """A composition from a run's own ``config.yaml``.

    Args:
        config: the resolved config of a run.
        trust: allow targets that are no classes of lcbench, torch or lightning, and ``${...}`` in values.

    Raises:
        ConfigurationError: if the config names such a target and ``trust`` is False, or does not fit its targets.
    """
    return changed(config, (), (), "", trust=trust)


def changed(
    config: dict[str, Any],
    overrides: Sequence[str],
    free: Sequence[str],
    reason: str,
    overlays: Sequence[Path] = (),
    trust: bool = False,
) -> Composition:
    """A composition from a run's own ``config.yaml`` with some keys changed.

    Args:
        config: the resolved config of a run.
        overrides: as on the command line.
        free: the keys and groups that may change.
        reason: half a sentence on why no others may.
        overlays: folders of the user's own config files, for the choice of a group.
        trust: allow the run's config to name targets outside lcbench, torch and lightning.

    Raises:
        ConfigurationError: if the config names such a target and ``trust`` is False, if it does not fit its targets,
            or for an override that cannot be.
    """
    for path, target in _targets(config):
        if not trust and not is_own(target):
            raise ConfigurationError(
                f"{path}._target_={target} is no class of lcbench, torch or lightning; add --trust to run its code."
            )
    if not trust:
        _refuse_interpolations(config)
    parsed = _parse(overrides)
    _refuse_several(parsed)
    given = {o.key_or_group: str(o.get_value_string()) for o in parsed}
    files = _Files([config_directory(), *overlays], {}, given)
    node = OmegaConf.create(config)
    # a group's choice comes first: the keys beside it are options of what was chosen
    for override in sorted(parsed, key=lambda override: "." in override.key_or_group):
        _change(node, override, free, reason, files)
    differs = tuple(sorted((key, value) for key, value in given.items() if is_computed(key)))
    return Composition(config=_checked(node, files), choices={}, differs=differs)


def _change(node: DictConfig, override: Override, free: Sequence[str], reason: str, files: _Files) -> None:
    key, words = override.key_or_group, (override.input_line or "").lstrip("+")
    groups = [str(name) for name, child in node.items() if isinstance(child, DictConfig) and "_target_" in child]
    options = {f"{group}.{name}" for group in groups for name in options_of(locate(node[group]._target_, group))}
    known = {*map(str, node), *options, *free}
    if key not in known or override.is_delete():
        raise ConfigurationError(f"{words}: no such key; {closest(key, known)}")
    if not any(key == name or key.startswith(f"{name}.") for name in free):
        raise ConfigurationError(f"{words}: {reason}; what may change is {', '.join(free)}.")
    if key not in groups:
        OmegaConf.update(node, key, override.value(), merge=False)
        return
    choices, name = choices_of(key, files.directories), str(override.get_value_string()).strip("'\"")
    if name not in choices:
        raise ConfigurationError(f"{words}: no such choice; {closest(name, choices)} `lcbench list {key}`.")
    node[key] = OmegaConf.load(choices[name])
    _fill_group(node, key, files)


def build(composition: Composition, trained: bool = False, watcher: Watcher | None = None) -> Experiment:
    """The objects of a run, and the checks that need them: nothing is trained, no data is drawn, no file is written.

    Args:
        composition: the config.
        trained: the network has its weights already.
        watcher: told how far it is with a text that must be read to check the parts; None: nobody.

    Raises:
        ConfigurationError: for parts that do not work together.
    """
    from lcbench.engine.experiment import Experiment
    from lcbench.task.landmarked import Landmarked

    config = composition.config
    task = construct_task(config)
    if watcher is not None:
        task.watcher = watcher
    trainer = construct(config["trainer"])
    dataset = construct(config["dataset"], task, config["seed"], trainer.batch_size)
    if dataset.insertion is not None:
        task = Landmarked(task, dataset.insertion)
    return Experiment(
        config=config,
        name=config["experiment"],
        seed=config["seed"],
        folder_name=composition.folder_name,
        identity=composition.hash,
        outputs=Path(config["outputs"]),
        rerun=config["rerun"],
        retry=config["retry"],
        task=task,
        dataset=dataset,
        make_model=lambda: construct_model(config, len(task.vocabulary)),
        objective=construct(config["objective"]),
        optimizer=construct(config["optimizer"]),
        trainer=trainer,
        evaluation=construct(config["evaluation"]),
        logger=construct(config["logger"]),
    ).checked(trained)


def build_model(overrides: Sequence[str] = ()) -> Model:
    """The network that a command line would train, freshly initialised with the config's seed."""
    import torch

    experiment = build(compose(overrides))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        return experiment.make_model()


def build_attention(
    name: str, *, d_model: int, n_heads: int, position: str | dict[str, Any] = "none", **options: Any
) -> Attention:
    """One attention layer by its config name.

    Args:
        name: a choice of the attention group.
        d_model: width; divisible by ``n_heads``.
        n_heads: heads.
        position: a choice of the position group, or a dict with ``name`` and that encoding's options.
        options: the mechanism's own options; a mechanism within it is a name, or a dict as for ``position``.
    """
    from lcbench.position.base import LayerShape

    chosen = {"name": position} if isinstance(position, str) else dict(position)
    encoding = chosen.pop("name")
    overrides = [f"attention={name}", f"position={encoding}"]
    for part in [key for key in PARTS if key in options]:
        within = options.pop(part)
        within = {"name": within} if isinstance(within, str) else dict(within)
        overrides.append(f"attention.{part}={within.pop('name')}")
        options |= {f"{part}.{key}": value for key, value in within.items()}
    overrides += [f"++attention.{key}={json.dumps(value)}" for key, value in options.items()]
    overrides += [f"++position.{key}={json.dumps(value)}" for key, value in chosen.items()]
    config = compose(overrides).config
    shape = LayerShape(d_model=d_model, n_heads=n_heads)
    return construct(config["attention"], shape, construct(config["position"], shape))


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            raise ConfigurationError(
                f"{text!r} is not an override; write key=value, and quote values with commas: 'key=\"a, b\"'."
            ) from None
    return parsed


def _refuse_several(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigurationError(
                f"{override.input_line!r} lists several values; one run takes one (-m makes a sweep of them, "
                "key=[a,b] is one list)."
            )


def _arguments(parsed: Sequence[Override], overlays: Sequence[Path]) -> list[str]:
    directories = [config_directory(), *overlays]
    arguments = [_checked_override(override, directories) for override in parsed]
    if overlays:
        arguments.append(f"hydra.searchpath=[{','.join(f'file://{path.resolve()}' for path in overlays)}]")
    return arguments


def _checked_override(override: Override, directories: Sequence[Path]) -> str:
    """The override as Hydra wants it: choices exist, and value overrides may name any key of a signature."""
    text = override.input_line or ""
    key, groups = override.key_or_group, groups_of(directories)
    if key.startswith("hydra") or override.is_delete():
        return text
    root, _, part = key.partition(".")
    within = root in groups and part in PARTS  # a part is of the same group as the whole
    if key in groups or within:
        known = list(choices_of(root, directories))
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
        for value in (str(value).strip("'\"") for value in values):
            if value != "null" and value not in known:
                hint = f"{closest(value, known)} `lcbench list {root}`."
                raise ConfigurationError(f"{key}={value}: no such choice; {hint}")
        return f"{root}@{key}={text.partition('=')[2]}" if within else text.lstrip("+")
    known = sorted({*groups, *_root_keys()})
    if root not in known:
        raise ConfigurationError(f"{key}={override.get_value_string()}: no such key; {closest(key, known)}")
    return "++" + text.lstrip("+")


def _root_keys() -> Iterator[str]:
    node = OmegaConf.load(config_directory() / "config.yaml")
    assert isinstance(node, DictConfig)
    return (str(key) for key in node if key != "defaults")


def _hydra(arguments: list[str]) -> tuple[DictConfig, dict[str, str]]:
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(config_directory()), version_base="1.3"):
            node = hydra_compose("config", overrides=arguments, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        if lone := re.search(r"Could not override '(\w+)@(\1\.\w+)'", str(error)):
            raise ConfigurationError(
                f"{lone[2]}: the {lone[1]} that was chosen has no other {lone[1]} within it; drop it, or take one "
                "that has, such as attention=block_causal."
            ) from None
        raise ConfigurationError(" ".join(str(error).split())) from None
    choices = {str(k): str(v) for k, v in node.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    OmegaConf.set_struct(node, False)
    del node["hydra"]
    return node, choices


def _drop_unused(node: DictConfig, choices: dict[str, str], given: dict[str, str], files: _Files) -> None:
    """Removes the groups that nothing chosen takes; asking for one all the same is a mistake."""
    # in this order: what is removed itself takes nothing any more
    for group, owners, remedy in (
        ("attention", ("model",), "model=decoder"),
        ("position", ("model",), "model=decoder"),
        ("tokenizer", ("task",), "task=language_modelling"),
        ("corpus", ("task", "tokenizer"), "task=language_modelling"),
    ):
        present = [owner for owner in owners if owner in node]
        if any(group in injected(locate(node[owner]._target_, f"{owner}._target_")) for owner in present):
            continue
        asked = [key for key in given if key == group or key.startswith(f"{group}.")]
        if asked:
            owner = owners[0]
            raise ConfigurationError(
                f"{asked[0]}={given[asked[0]]}: {owner}={choices[owner]} has no {group}; drop it, or take {remedy}."
            )
        del node[group]
        choices.pop(group, None)


def _fill_defaults(node: DictConfig, files: _Files) -> None:
    for group in map(str, list(node)):
        if isinstance(node[group], DictConfig) and "_target_" in node[group]:
            _fill_group(node, group, files)


def _fill_group(node: DictConfig, group: str, files: _Files) -> None:
    child: Any = OmegaConf.select(node, group)
    target = locate(child._target_, f"{group}._target_")
    options, parts = options_of(target), parts_of(target)
    for part in parts:
        if part not in child:
            raise ConfigurationError(f"{group}.{part} is missing: {child._target_} needs it.")
        _fill_group(node, f"{group}.{part}", files)
    for key in map(str, list(child)):
        full = f"{group}.{key}"
        if key == "_target_" or key in options or key in parts:
            continue
        if f"{group}._target_" in files.given and full not in files.given:
            # the file's options belong to the class it names, not to the user's own
            del child[key]
        else:
            value: Any = OmegaConf.select(node, full)
            raise ConfigurationError(
                f"{full}={value!s} ({files.origin(full)}): no such key; "
                f"{closest(full, [f'{group}.{name}' for name in options])}"
            )
    for name, parameter in options.items():
        if name not in child:
            if parameter.default is parameter.empty:
                raise ConfigurationError(f"{group}.{name} is missing: {child._target_} needs it.")
            child[name] = parameter.default if not isinstance(parameter.default, tuple) else [*parameter.default]


def _checked(node: DictConfig, files: _Files) -> dict[str, Any]:
    """Resolved and plain, every group checked in order: what one reads of an earlier one is already a number."""
    # configs that were written before it was there
    node.setdefault("retry", False)
    for key, kind in {"seed": int, "rerun": bool, "retry": bool, "outputs": str}.items():
        value = node[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigurationError(f"{key}={value} ({files.origin(key)}): must be {kind.__name__}.")
    for group in map(str, list(node)):
        if isinstance(node[group], DictConfig) and "_target_" in node[group]:
            node[group] = _validated(_resolved(node[group]), group, files)
    return _resolved(node)


def _validated(child: dict[str, Any], group: str, files: _Files) -> dict[str, Any]:
    name = child.pop("_target_")
    target = locate(name, f"{group}._target_")
    parts = {}
    for part in parts_of(target):
        if part not in child:
            raise ConfigurationError(f"{group}.{part} is missing: {name} needs it.")
        parts[part] = _validated(child.pop(part), f"{group}.{part}", files)
    return {"_target_": name, **validated(target, child, group, files.origin), **parts}


def _resolved(node: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        raise ConfigurationError(f"{error.full_key}: {' '.join(str(error.msg).split())}.") from None
    except OmegaConfBaseException as error:
        raise ConfigurationError(" ".join(str(error).split())) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, str(node["_target_"])
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, path)


def _refuse_interpolations(node: Any, path: str = "") -> None:
    """A run's own config has its values filled in; ``${oc.env:...}`` in one would read the reader's environment."""
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_interpolations(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for value in node:
            _refuse_interpolations(value, path)
    elif isinstance(node, str) and "${" in node:
        raise ConfigurationError(f"{path}={node} is to be filled in; a run's config has values; add --trust to do so.")


def _computed(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if is_computed(path):
            kept[key] = _computed(value, f"{path}.") if isinstance(value, dict) else value
    return kept
