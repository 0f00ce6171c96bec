"""Tab completion without Hydra: choices are files, keys are the arguments of the chosen file's target."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lcbench.configs import choices_of, config_directory, groups_of
from lcbench.errors import ConfigurationError
from lcbench.words import ALL

VERBS = ("list", "show", "compare", "report", "resume", "evaluate", "generate", "verify", "cost", "doctor")

SCRIPTS = {
    "bash": """\
_lcbench() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    word="${line##* }"
    local IFS=$'\\n'
    COMPREPLY=($(lcbench --complete "$line" 2>/dev/null))
    # readline splits words at = and :, and replaces only the last piece
    local cut="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _lcbench lcbench""",
    "zsh": """\
_lcbench() {
    local -a found
    found=(${(f)"$(lcbench --complete "${BUFFER[1,CURSOR]}" 2>/dev/null)"})
    compadd -S '' -- $found
}
compdef _lcbench lcbench""",
}


def script(shell: str) -> str:
    """The completion script for bash or zsh."""
    if shell not in SCRIPTS:
        raise ConfigurationError(f"--completion {shell}: there is none; the closest is --completion bash.")
    return SCRIPTS[shell]


def complete(words: list[str]) -> list[str]:
    """Completions of the last word of a command line, whole words."""
    before = " ".join(words).split(" ")
    word, earlier = before[-1], before[1:-1]
    directories = [config_directory()]
    groups = groups_of(directories)
    if earlier[:1] == ["list"]:
        return [group for group in groups if group.startswith(word)]
    if earlier and earlier[0] in ALL and word.startswith("--"):
        of_verb = ALL[earlier[0]]
        options = [*(f"{name}=" for name in of_verb.values), *of_verb.flags]
        return [option for option in options if option.startswith(word)]
    if "=" in word:
        group, _, value = word.partition("=")
        # of several values, the last one is being typed
        before_value, comma, value = value.rpartition(",")
        if group not in groups:
            return []
        found = [choice for choice in choices_of(group, directories) if choice.startswith(value)]
        return [f"{group}={before_value}{comma}{choice}" for choice in found]
    options = [f"{group}=" for group in groups] + ["seed=", "outputs=", "rerun=", "tags="]
    options += [f"{group}." for group in groups if group != "experiment"] if "." not in word else []
    if "." in word:
        options = [f"{key}=" for key in _keys(word.split(".")[0], groups, earlier)]
    if not earlier:
        options += VERBS
    return sorted(option for option in options if option.startswith(word))


def _keys(group: str, groups: list[str], earlier: list[str]) -> Iterator[str]:
    if group not in groups:
        return
    chosen = {key: value for key, _, value in (word.partition("=") for word in earlier)}
    choice = chosen.get(group) or _default(group)
    path = choices_of(group, [config_directory()]).get(choice)
    target = (
        next((line.split()[1] for line in path.read_text().splitlines() if line.startswith("_target_:")), "")
        if path
        else ""
    )
    module, _, name = target.rpartition(".")
    for option in _signature(module, name):
        yield f"{group}.{option}"


def _default(group: str) -> str:
    lines = (config_directory() / "config.yaml").read_text().splitlines()
    entries = (line.strip().removeprefix("- ").split(": ") for line in lines if line.strip().startswith("- "))
    return next((entry[1] for entry in entries if entry[0] == group and len(entry) == 2), "")


def _signature(module: str, name: str) -> list[str]:
    """Keyword-only arguments of a class of lcbench, read from its source: importing it would import torch."""
    source = Path(__file__).resolve().parents[1].joinpath(*module.split(".")).with_suffix(".py")
    if not source.exists():
        return []
    tree = ast.parse(source.read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    origins = {alias.name: node.module or "" for node in imports for alias in node.names}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return _signature(origins[name], name) if origins.get(name, "").startswith("lcbench.") else []
    for item in classes[name].body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return [argument.arg for argument in item.args.kwonlyargs]
    return [
        option for base in classes[name].bases if isinstance(base, ast.Name) for option in _signature(module, base.id)
    ]
