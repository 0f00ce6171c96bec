"""The command: dispatches to a run or to a verb; imports nothing heavy before it knows which."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lcbench.engine.interrupt import Interrupted, preemptible, requeue
from lcbench.errors import ConfigurationError, closest, no_room
from lcbench.words import ALL

HELP = """\
lcbench: which mechanism remembers what it has read, and at what cost

  lcbench [key=value ...]        train and score one run; without arguments, a one-minute demonstration
  lcbench -m [key=a,b ...]       a sweep: every combination, as many at a time as fit the cores; the same again
                                 continues, retry=true repeats what failed, hydra/launcher=slurm runs it elsewhere
  lcbench list [GROUP]           what there is, a line each
  lcbench show [key=value ...]   the resolved config with parameters, tokens, operations and memory; trains nothing
  lcbench show RUN               the scores of a run's folder
  lcbench show RUN --document N  a page: a text coloured by what each of its tokens costs the network, in bits
  lcbench show RUN --maps        what each layer and head looks at in an example: attention weights, gates of CoPE
  lcbench generate RUN --prompt TEXT     what the trained network writes next, as it is drawn
  lcbench compare PATHS          a table of runs, one row per configuration: mean and 95 % interval over seeds, cost
  lcbench report PATHS           the same as one HTML page with figures and filters, and the record of a study
  lcbench resume RUN             continue a stopped run; with trainer.max_steps=N, a new run that goes on from it
  lcbench evaluate RUN [evaluation.key=value ...]    score a trained network elsewhere: lengths=[1k,4k], sets=[sparse]
  lcbench verify [key=value ...] the conformance suite on this composition: a certificate
  lcbench cost [key=a,b ...]     time, memory, operations and state against length, beside full attention's
  lcbench cost --memory          what each mechanism carries from call to call, by formula and measured
  lcbench doctor                 what this machine has and lacks

options of compare
  --metric SET/METRIC    what is compared, such as sparse/error, sparse or sequence_error; several with commas
  --against KEY=VALUE    the difference from a baseline, such as position=rope, paired by seed
  --by KEY[,KEY]         rows by these keys alone; --sort COLUMN, or =-COLUMN for the reverse
  --solved 0.01          the error up to which a seed has solved a set
  --csv FILE, --json FILE    everything, for other programs; - is the standard output, and then no table

options of report
  --output report.html   the page, one file that needs nothing else
  --by, --against, --solved    as of compare
  --experiments DIR      where studies (study.yaml) and their records are, by default ./experiments
  --wandb                the same panels as a workspace of W&B

options of generate
  --file FILE            a prompt of any length, - for the standard input; what --prompt says comes after it
  --tokens 200           how many are written
  --temperature 1        0 writes the likeliest token; --top-p 1, draw from the smallest set of that probability
  --seed 0               the same seed writes the same text

options of show RUN
  --set NAME             whose documents or examples; the first of the run's evaluation sets without
  --document N, --maps, --example N      from 0

options of cost
  --lengths 1k,4k,64k    what is measured; --rounds 5, readings of each time; --clock cpu, in place of wall
  --model                the whole network, in place of one layer of attention with its projections
  --seconds 30           a length at which one step would take longer is not measured, nor one that memory cannot hold
  --extrapolate 1e9      operations, bytes, state and time at lengths that nobody runs
  --csv FILE, --json FILE

options
  --config-dir DIR   a folder of your own config files, searched beside lcbench's
  --trust            let a run's config name code outside lcbench, torch and lightning
  --completion bash  print the completion script: eval "$(lcbench --completion bash)"
  --version, --help

examples
  lcbench task=counting position=rope seed=1
  lcbench position=relative model.n_layers=4 trainer.max_steps=2000
  lcbench experiment=cope/flip_flop logger=none
  lcbench show experiment=cope/flip_flop_paper
  lcbench compare outputs/flip_flop --against position=rope
  lcbench report outputs/cope --output cope.html
  lcbench cost attention=sliding_window,infini --lengths 1k,4k,16k,64k --extrapolate 1e9
  lcbench evaluate outputs/flip_flop/default-1a2b3c4d evaluation.sets=[sparse] evaluation.lengths=[1k,4k]
  lcbench generate outputs/flip_flop/default-1a2b3c4d --prompt "w 0 i 1 w 1 i 0 r" --tokens 8 --temperature 0
"""


def main(arguments: Sequence[str] | None = None, *, requeues: bool = True) -> int:
    """Run the command line.

    Args:
        arguments: its words; None: those of the process.
        requeues: ask a cluster that stopped this process to start it again; a sweep does so for its jobs.

    Returns:
        The exit code: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C, 75 stopped by another signal and worth
        another try.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with preemptible():
            return _dispatch(words)
    except Interrupted as stopped:
        if requeues:
            requeue(stopped)
        return int(str(stopped.code))
    except ConfigurationError as error:
        print(f"lcbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lcbench: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # the reader (head, less) has seen enough
            sys.stderr.close()
            return 0
        cause = no_room(error)
        if cause is None:
            raise
        print(f"lcbench: {cause}", file=sys.stderr)
        return 1


def _dispatch(words: list[str]) -> int:
    if "--help" in words or "-h" in words or words == ["help"]:
        print(HELP, end="")
        return 0
    if "--version" in words:
        from importlib import metadata

        print(f"lcbench {metadata.version('lcbench')}")
        return 0
    if words[:1] == ["--completion"]:
        from lcbench.completion import script

        print(script(words[1] if len(words) > 1 else "bash"))
        return 0
    if words[:1] == ["--complete"]:
        from lcbench.completion import complete

        print("\n".join(complete(words[1:])))
        return 0
    overlays, words = _take_overlays(words)
    if words and words[0] in ("-m", "--multirun"):
        return _sweep(words[1:], overlays)
    trust = "--trust" in words
    words = [word for word in words if word != "--trust"]
    verb: Callable[[list[str], list[Path], bool], int] = _run
    has_options = False
    if words and "=" not in words[0] and not words[0].startswith(("+", "~", "-")):
        has_options = words[0] in ALL
        verb = _verb(words.pop(0))
    for word in words:
        if word.startswith("-") and not has_options:
            raise ConfigurationError(f"{word}: no such option; {closest(word, OPTIONS)}")
    return verb(words, overlays, trust)


def _take_overlays(words: list[str]) -> tuple[list[Path], list[str]]:
    overlays, rest, pending = [], [], list(words)
    while pending:
        word = pending.pop(0)
        if word == "--config-dir" or word.startswith("--config-dir="):
            value = word.partition("=")[2] or (pending.pop(0) if pending else "")
            if not Path(value).is_dir() or not value:
                raise ConfigurationError(f"--config-dir {value}: no such folder.")
            overlays.append(Path(value))
        else:
            rest.append(word)
    return overlays, rest


def _verb(word: str) -> Callable[[list[str], list[Path], bool], int]:
    if word not in VERBS:
        raise ConfigurationError(f"{word}: no such verb; {closest(word, VERBS)} (an override is key=value)")
    return VERBS[word]


def _run(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    from lcbench.composition import build, compose
    from lcbench.engine.progress import composing

    console = Console(highlight=False)
    with composing(console) as watcher:
        experiment = build(compose(words, overlays), watcher=watcher)
        from lcbench.engine.run import run
    result = run(experiment, console)
    if result["status"] == "completed":
        console.print("\nworth trying next", style="dim")
        for line in _suggestions(words):
            console.print(f"  {line}", soft_wrap=True)
    return _exit_code(result)


def _exit_code(result: dict[str, Any]) -> int:
    if result["status"] == "interrupted":
        raise Interrupted(signal.Signals[result["signal"]])
    return 0 if result["status"] == "completed" else 1


def _suggestions(words: list[str]) -> list[str]:
    """Three commands that answer the next question, whatever was asked."""
    rest = " ".join(word for word in words if not word.startswith(("position=", "seed=")))
    position = "cope" if any(word.startswith("position=") and "cope" not in word for word in words) else "rope"
    again = " ".join(["lcbench", *([rest] if rest else []), f"position={position}"])
    task = "flip_flop" if any(word.startswith("task=") for word in words) else "counting"
    commands = {
        again: "the same with another encoding",
        f"lcbench task={task} trainer.max_steps=1000": "another task",
        "lcbench show experiment=cope/flip_flop_paper": "what the paper's size would take",
    }
    width = max(map(len, commands))
    return [f"{command:<{width}}  # {why}" for command, why in commands.items()]


def _sweep(words: list[str], overlays: list[Path]) -> int:
    from rich.console import Console

    from lcbench.sweep.forked import start_server

    if not any(word.startswith("hydra/launcher=") for word in words):
        # jobs run here: what they import is imported while this process finds out what they are
        start_server()
    from lcbench.sweep.command import sweep

    return sweep(words, overlays, Console(highlight=False))


def _resume(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    path = _run_of("resume", words)
    from lcbench.again import resume

    return _exit_code(resume(path, words[1:], Console(highlight=False), trust, overlays))


def _evaluate(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    path = _run_of("evaluate", words)
    from lcbench.again import evaluate

    return _exit_code(evaluate(path, words[1:], Console(highlight=False), trust, overlays))


def _run_of(verb: str, words: list[str]) -> Path:
    if not words or "=" in words[0] or any("=" not in word for word in words[1:]):
        raise ConfigurationError(
            f"{verb} takes one run's folder, then overrides: lcbench {verb} outputs/flip_flop/default-1a2b3c4d."
        )
    return Path(words[0])


def _show(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if any(word.startswith("--") for word in words):
        from lcbench.inside.command import show_command

        return show_command(words, console, trust)
    if len(words) == 1 and "=" not in words[0]:
        from lcbench.results.evaluations import show_evaluations
        from lcbench.results.record import RunFolder
        from lcbench.results.table import show_run

        show_run(console, RunFolder(Path(words[0])).read_result(), Path(words[0]))
        show_evaluations(console, Path(words[0]))
        return 0
    from lcbench.composition import build, compose
    from lcbench.engine.progress import composing
    from lcbench.engine.show import show

    with composing(console) as watcher:
        experiment = build(compose(words, overlays), watcher=watcher)
    show(console, experiment)
    return 0


def _generate(words: list[str], overlays: list[Path], trust: bool) -> int:
    from lcbench.inside.command import generate_command

    return generate_command(words, trust)


def _compare(words: list[str], overlays: list[Path], trust: bool) -> int:
    from lcbench.results.command import compare_command

    return compare_command(words)


def _verify(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    from lcbench.composition import compose
    from lcbench.verify import verify

    console = Console(highlight=False)
    with console.status("verifying"):
        certificate = verify(compose(words, overlays))
    console.print(certificate.render())
    return 0 if certificate.passed else 1


def _report(words: list[str], overlays: list[Path], trust: bool) -> int:
    from rich.console import Console

    from lcbench.results.report.command import report_command

    return report_command(words, Console(highlight=False))


def _cost(words: list[str], overlays: list[Path], trust: bool) -> int:
    from lcbench.cost.command import cost_command

    return cost_command(words, overlays)


def _doctor(words: list[str], overlays: list[Path], trust: bool) -> int:
    if words:
        raise ConfigurationError(f"doctor takes nothing, not {words[0]}.")
    from lcbench.doctor import report

    print(report())
    return 0


def _list(words: list[str], overlays: list[Path], trust: bool) -> int:
    from lcbench.configs import choices_of, config_directory, describe, groups_of

    directories = [config_directory(), *overlays]
    groups = groups_of(directories)
    for group in words:
        if group not in groups:
            raise ConfigurationError(f"{group}: no such group; {closest(group, groups)}")
    for group in words or groups:
        choices = choices_of(group, directories)
        if not words:
            print(group)
        width = max(len(name) for name in choices)
        for name, path in choices.items():
            print(f"{'' if words else '  '}{name:<{width}}  {describe(path)}")
    return 0


VERBS: dict[str, Callable[[list[str], list[Path], bool], int]] = {
    "list": _list,
    "show": _show,
    "compare": _compare,
    "report": _report,
    "resume": _resume,
    "evaluate": _evaluate,
    "generate": _generate,
    "verify": _verify,
    "cost": _cost,
    "doctor": _doctor,
}
OPTIONS = ["--config-dir", "--trust", "--completion", "--version", "--help"]
