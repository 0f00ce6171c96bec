"""Which compositions are measured: the values that the overrides list, each with full attention to compare it with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lcbench.composition import compose, sweep_arguments
from lcbench.configs import choices_of, config_directory
from lcbench.construction import construct, construct_task
from lcbench.cost.step import Scope, Work
from lcbench.errors import ConfigurationError, closest
from lcbench.schema import locate, options_of

#: tried in this order, then all others, where nobody says how positions are encoded
ENCODINGS = ("rope", "none")

FULL = "lcbench.attention.full.Full"
DECODER = "lcbench.model.decoder.Decoder"


@dataclass(frozen=True)
class Subject:
    """One composition.

    Args:
        label: what tells it from the others.
        work: what is computed.
        reference: the identity of the full attention it is compared with.
    """

    label: str
    work: Work
    reference: str


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        subjects: the compositions, and the full attention they are compared with.
        refused: label and reason of those that cannot be.
        notes: sentences on what was chosen for the user.
        outputs: where results are kept.
        rerun: whether to measure again what was measured before.
    """

    subjects: list[Subject]
    refused: list[tuple[str, str]]
    notes: list[str]
    outputs: Path
    rerun: bool

    @property
    def references(self) -> set[str]:
        """Identities of the full attentions."""
        return {subject.reference for subject in self.subjects}

    def reference_of(self, subject: Subject) -> Subject:
        """The full attention that a subject is compared with; itself if it is one."""
        return next(other for other in self.subjects if other.work.identity == subject.reference)


def plan(words: Sequence[str], overlays: Sequence[Path], scope: Scope) -> Plan:
    """The compositions that overrides ask for; values with commas are lists, as in a sweep.

    Options of a group go to those of several listed choices that have them. Without ``position=``, each mechanism gets
    rotary positions or, if it takes none, the first encoding that it takes. Full attention with rotary positions,
    through torch's fused kernel, is added for each shape that is not there yet.

    Raises:
        ConfigurationError: for a mistake in the overrides, or if nothing is left to measure.
    """
    sweep_arguments(words, overlays)
    listed = _listed(words)
    combinations = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    directories = [config_directory(), *overlays]
    for group in ("attention", "position"):
        combinations = _with_own_options(combinations, group, directories)
    words_of = {key: {combination[key] for combination in combinations if key in combination} for key in listed}
    varying = {key for key, found_words in words_of.items() if len(found_words) > 1}
    found: dict[str, Subject] = {}
    refused, notes = [], []
    config: dict[str, Any] = {}
    for combination in combinations:
        label = _label(combination, varying)
        try:
            config, note = _composed(combination, overlays, scope)
            work = _work(config, scope)
        except ConfigurationError as error:
            if len(combinations) == 1:
                raise
            refused.append((label or "as composed", str(error)))
            continue
        notes += [f"{label or _mechanism(work)}: {note}"] if note else []
        subject = Subject(label or _mechanism(work), work, _full(work).identity)
        found.setdefault(work.identity, subject)
    if not found:
        raise ConfigurationError(refused[0][1])
    for subject in list(found.values()):
        full = _full(subject.work)
        if full.identity not in found:
            shape = {other.reference for other in found.values()}
            suffix = "" if len(shape) == 1 else f", as {subject.label}"
            found[full.identity] = Subject(f"full (rope, fused){suffix}", full, full.identity)
    return Plan(list(found.values()), refused, notes, Path(config["outputs"]), config["rerun"])


def _listed(words: Sequence[str]) -> dict[str, list[str]]:
    """Every key with its values, as words of a command line."""
    found: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(words)):
        text = (override.input_line or "").lstrip("+")
        if override.is_delete():
            found[text] = [text]
            continue
        key = override.key_or_group
        values = [text.partition("=")[2]]
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        found[key] = [f"{key}={value}" for value in values]
    return found


def _with_own_options(
    combinations: Sequence[dict[str, str]], group: str, directories: Sequence[Path]
) -> list[dict[str, str]]:
    """The combinations with those options of ``group`` that its chosen member has, where several are listed."""
    chosen = {combination[group].partition("=")[2] for combination in combinations if group in combination}
    if len(chosen) < 2:
        return list(combinations)
    files = choices_of(group, directories)
    options = {name: set(options_of(locate(_target(files[name]), group))) for name in chosen}
    kept = []
    for combination in combinations:
        own = options[combination[group].partition("=")[2]]
        for key in combination:
            prefix, _, option = key.partition(".")
            known = sorted(set().union(*options.values()))
            if prefix == group and option and option.partition(".")[0] not in known:
                hint = closest(key, [f"{group}.{name}" for name in known])
                raise ConfigurationError(f"{combination[key]}: none of {', '.join(sorted(chosen))} has it; {hint}")
        kept.append(
            {
                key: word
                for key, word in combination.items()
                if not key.startswith(f"{group}.") or key.split(".")[1] in own
            }
        )
    unique = {tuple(sorted(combination.items())): combination for combination in kept}
    return list(unique.values())


def _target(file: Path) -> str:
    return str(OmegaConf.load(file)._target_)  # type: ignore[union-attr]


def _label(combination: Mapping[str, str], varying: set[str]) -> str:
    """The mechanism, and what else tells a combination from the others; empty where nothing was chosen."""
    words = [word for key, word in combination.items() if key in varying and key != "attention"]
    attention = combination.get("attention") or combination.get("attention._target_")
    name = [] if attention is None else [attention.rpartition("=")[2]]
    return " ".join([*name, *words])


def _mechanism(work: Work) -> str:
    """The config name of the mechanism, or of a network without any."""
    module, _, name = (work.attention or work.model)["_target_"].rpartition(".")
    return module.rpartition(".")[2] if module.startswith("lcbench.") else name


def _composed(combination: Mapping[str, str], overlays: Sequence[Path], scope: Scope) -> tuple[dict[str, Any], str]:
    """The config, and a note on the encoding if it was chosen here and is not the first choice."""
    words = list(combination.values())
    if any(key == name or key.startswith(f"{name}.") for key in combination for name in ("position", "experiment")):
        return compose(words, overlays).config, ""
    config = compose(words, overlays).config
    if "position" not in config:
        return config, ""
    first: ConfigurationError | None = None
    others = [name for name in choices_of("position", [config_directory()]) if name not in ENCODINGS]
    for encoding in (*ENCODINGS, *others):
        try:
            config = compose([*words, f"position={encoding}"], overlays).config
            _work(config, scope)
        except ConfigurationError as error:
            first = first or error
        else:
            return config, "" if first is None else f"position={encoding}, as it takes no rope"
    assert first is not None
    raise first


def _work(config: dict[str, Any], scope: Scope) -> Work:
    """What a config asks for, tried out without memory.

    Raises:
        ConfigurationError: if its parts do not fit together, or it has no layer of attention.
    """
    if scope == "layer" and "attention" not in config:
        model = config["model"]["_target_"].split(".")[-2]
        raise ConfigurationError(f"model={model} has no layer of attention; add --model to measure the whole network.")
    trainer = construct(config["trainer"])
    task = construct_task(config)
    dataset = construct(config["dataset"], task, config["seed"], trainer.batch_size)
    work = Work(
        scope=scope,
        attention=config.get("attention"),
        position=config.get("position"),
        model=config["model"] if scope == "model" else _shape(config["model"]),
        vocabulary=len(task.vocabulary) + (dataset.insertion is not None) if scope == "model" else 0,
        precision=trainer.precision,
        device=trainer.device,
        threads=trainer.threads,
        seed=config["seed"],
    )
    with torch.device("meta"):
        work.make()
    return work


def _shape(model: dict[str, Any]) -> dict[str, Any]:
    """What a layer is told of its network."""
    return {name: model[name] for name in ("d_model", "n_heads", "bias", "dropout") if name in model}


def _full(work: Work) -> Work:
    """Full attention with rotary positions, of the same shape."""
    model = work.model
    if work.scope == "model":
        options = options_of(locate(DECODER, "model._target_"))
        model = {"_target_": DECODER, **{name: value for name, value in model.items() if name in options}}
        model = compose(_words(model)).config["model"]
    position = compose(["position=rope"]).config["position"]
    return replace(work, attention={"_target_": FULL}, position=position, model=model)


def _words(model: dict[str, Any]) -> list[str]:
    """A network's options as words of a command line."""
    options = {key: "null" if value is None else value for key, value in model.items() if key != "_target_"}
    return [f"model.{key}={value}" for key, value in options.items()]
