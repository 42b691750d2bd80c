"""Measure this project beside stock transformers, other commits of its own, and its peers.

    scripts/benchmark.py CONFIG [section.key=value ...] --parts training decoding --rounds 5 --checkpoint RUN
    scripts/benchmark.py CONFIG --report

What is compared takes turns (A B C A B C ...), with a new process for every turn. The turns are added to --output, and
the figures are medians over all that it holds; so the turns can be taken one by one, by several commands, and
`--report` prints the figures again. What can have only one result, such as the answers of `generate`, is measured once.
Ratios are of medians, with the range of those of single turns.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import print_errors
from pipeline.commands.arguments import path, positive
from pipeline.errors import ConfigError, nearest
from pipeline.tasks.config_loading import load_config
from scripts import benchmark_decoding, benchmark_loader, benchmark_starting, benchmark_training
from scripts.benchmark_report import append, read_turns, report
from scripts.benchmark_setting import Contenders, Ratio, Setting


@dataclass(frozen=True)
class Part:
    """A thing to measure.

    Attributes:
        once: begins the names of contenders that take no turn where --output has one already.
    """

    contenders: Callable[[Setting], Contenders]
    ratios: Callable[[], list[Ratio]]
    once: str | None = None


PARTS = {
    "training": Part(benchmark_training.contenders, benchmark_training.ratios, once="batches of"),
    "decoding": Part(benchmark_decoding.contenders, benchmark_decoding.ratios, once=benchmark_decoding.REFERENCE),
    "saving": Part(benchmark_starting.saving_contenders, list),
    "starting": Part(benchmark_starting.starting_contenders, list),
    "memory": Part(benchmark_loader.memory_contenders, benchmark_loader.memory_ratios),
    "loader": Part(benchmark_loader.contenders, benchmark_loader.ratios),
    "lanes": Part(benchmark_loader.lanes_contenders, benchmark_loader.lanes_ratios),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a translation, such as configs/benchmark_multi30k_en_fr.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["training"], help="(default: training)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders to measure (default: all of the parts)")
    parser.add_argument("--rounds", type=positive, metavar="N", default=1, help="turns that each takes (default: 1)")
    parser.add_argument("--output", type=path, default=Path("benchmark.jsonl"), help="the file that keeps the turns")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the figures of --output")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--warm-up",
        nargs=2,
        type=positive,
        metavar=("LEAST", "MOST"),
        default=(40, 100),
        help="steps; in between it ends when the rates of two successive stretches of 20 steps differ by at most 2 %% "
        "(default: 40 100)",
    )
    training.add_argument("--seconds", type=positive, default=30, help="to measure after the warm-up (default: 30)")
    training.add_argument("--baseline", metavar="COMMIT", help="also measure another commit, or a folder that holds it")
    training.add_argument("--eole", metavar="PYTHON", help="interpreter of an environment with eole, to measure it too")
    training.add_argument("--joeynmt", metavar="PYTHON", help="likewise with JoeyNMT")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--checkpoint", help="a run of this config")
    arguments = parser.parse_intermixed_args(argv)
    if "decoding" in arguments.parts and not (arguments.checkpoint or arguments.report):
        parser.error("the part decoding needs --checkpoint: a run of this config")
    return print_errors(show if arguments.report else measure_parts, arguments)


def show(arguments: argparse.Namespace) -> None:
    for line in report(read_turns(arguments.output), {name: part.ratios() for name, part in PARTS.items()}):
        print(line)


def measure_parts(arguments: argparse.Namespace) -> None:
    """Take turns, keep each as soon as it is measured, and print the figures."""
    if (task := load_config(arguments.config, arguments.overrides).task) != "sequence_to_sequence":
        raise ConfigError(f"task: {task!r} has no counterpart here; take a config with task: sequence_to_sequence")
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(arguments, Path(folder))
        parts = choose({name: PARTS[name].contenders(setting) for name in arguments.parts}, arguments.only)
        of = " ".join([arguments.config, *arguments.overrides, *filter(None, [arguments.checkpoint])])
        machine = setting.measure(["describe_machine"])["machine"]
        for _ in range(arguments.rounds):
            for part, contenders in parts.items():
                for name, take_turn in contenders.items():
                    facts = {"part": part, "of": of, "contender": name}
                    if not (is_once(PARTS[part], name) and has_turn(arguments.output, facts)):
                        facts["time"] = time.strftime("%Y-%m-%d %H:%M:%S")
                        append(arguments.output, {**facts, "numbers": take_turn(), "machine": machine})
    show(arguments)


def is_once(part: Part, contender: str) -> bool:
    return part.once is not None and contender.startswith(part.once)


def has_turn(output: Path, facts: dict[str, str]) -> bool:
    return output.exists() and any(facts.items() <= turn.items() for turn in read_turns(output))


def choose(parts: dict[str, Contenders], names: Sequence[str] | None) -> dict[str, Contenders]:
    """Return the contenders of these names, by part; all where there are no names.

    Raises:
        ConfigError: for a name that no part has.
    """
    known = [name for contenders in parts.values() for name in contenders]
    if names is None:
        return parts
    for name in names:
        if name not in known:
            raise ConfigError(f"--only: {name!r} is unknown{nearest(name, known)}")
    return {part: {name: turns[name] for name in names if name in turns} for part, turns in parts.items()}


def make_setting(arguments: argparse.Namespace, folder: Path) -> Setting:
    return Setting(
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        device=arguments.device,
        folder=folder,
        warm_up=tuple(arguments.warm_up),
        seconds=arguments.seconds,
        baseline=find_commit(arguments.baseline, folder) if arguments.baseline else None,
        eole=arguments.eole,
        joeynmt=arguments.joeynmt,
        checkpoint=arguments.checkpoint,
    )


def find_commit(commit: str, folder: Path) -> Path:
    """Return the folder of another commit, whose files are written out where it is none already.

    Raises:
        ConfigError: for a commit that this clone does not know.
    """
    if Path(commit).is_dir():
        return Path(commit).resolve()
    tree = folder / "baseline"
    tree.mkdir()
    archive = ["git", "-C", str(Path(__file__).parents[1]), "archive", "--format=tar", commit]
    files = subprocess.run(archive, capture_output=True)
    if files.returncode:
        raise ConfigError(f"--baseline {commit}: {files.stderr.decode().strip()}; name a commit or a folder")
    subprocess.run(["tar", "x", "-C", str(tree)], input=files.stdout, check=True)
    return tree


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no training is left behind
    sys.exit(main())
