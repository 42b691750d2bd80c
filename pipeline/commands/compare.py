"""teacher-forcing compare: what several systems answered to the same rows."""

import dataclasses
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import Parser, add_json, add_languages, name, path, shortest_names
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.commands.texts import check_text
from pipeline.errors import ConfigError, explain_path, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import SacrebleuConfig
    from pipeline.inference.compare import Answer, Breakdown, Comparison, Difference, Pair
    from pipeline.inference.prediction_files import Answers, Texts

SHOWN = 3  # sentences of a pair that are printed each way; the page and the JSON have more
LONGEST = 300  # characters of a text that is printed
LONGEST_NAME = 28


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "systems",
        nargs="+",
        type=name,
        metavar="[NAME=]SYSTEM",
        help="a trained model's folder, or a file of predictions: one a line, or JSON lines as score --predictions "
        "writes them; the first is the baseline",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=["train", "validation", "test"],
        help="rows that a model's folder predicts, as its own config names them (default: test)",
    )
    parser.add_argument(
        "--sources", type=path, help="source texts, one a line; a model's folder predicts these instead"
    )
    parser.add_argument("--references", type=path, nargs="+", default=[], help="a file for each reference of a row")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="bleu chrf chrf++ ter, or exact_match for classes")
    parser.add_argument("--tokenize", metavar="NAME", help="how BLEU cuts words: 13a, zh, ... (default: as the config)")
    parser.add_argument("--output", type=path, metavar="PAGE", help="write all as an HTML page")
    add_languages(parser)
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Compare systems on the same rows: scores with tests of significance, groups of rows, differing sentences."""
    paths = name_systems(arguments.systems)
    _check_output("--output", arguments.output)
    inputs = (*paths.values(), *arguments.references, *filter(None, [arguments.sources]))
    if arguments.output is not None and arguments.output.resolve() in {file.resolve() for file in inputs}:
        raise ConfigError(f"--output {arguments.output} is what is compared; name another file for the page")
    with quick_imports():
        from pipeline.inference.compare import System, compare
        from pipeline.inference.prediction_files import agree, read_texts
        from pipeline.pages.comparison import write_page

    show_logs()
    sources = arguments.sources and read_texts(arguments.sources)
    references = [read_texts(file) for file in arguments.references]
    answers, metrics, settings = _collect_answers(arguments, [*paths.values()], sources)
    comparison = compare(
        agree(answers, sources, references),
        [System(label, its.predictions) for label, its in zip(paths, answers, strict=True)],
        metrics=metrics,
        settings=settings,
    )
    if arguments.output is not None:
        with explain_path(f"--output {arguments.output}"):
            write_page(comparison, arguments.output)
    return Report(dataclasses.asdict(comparison), as_text(comparison))


def _check_output(option: str, file: Path | None) -> None:
    """Refuse a file that cannot be written before the work, not after it."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ConfigError(f"{option} {file} cannot be written; name a file in a folder that exists")


# ---- the systems


def name_systems(words: "Sequence[str]") -> dict[str, Path]:
    """Return name -> path of the systems that a command line names, as NAME=PATH or by the path only.

    The name of a path is the shortest part by which it is told from the others: checkpoint-100 or en_fr.

    Raises:
        ConfigError: for a path that does not exist, and for a name that is given twice.
    """
    named: list[tuple[str, Path]] = []
    for word in words:
        check_text(word, "system")
        label, mark, rest = word.partition("=")
        if not mark or os.path.exists(word):
            label, rest = "", word
        if not os.path.exists(rest):
            raise ConfigError(f"{rest}: no such folder or file; name a trained model's folder or a file of predictions")
        named.append((label, Path(rest)))
    short = iter(shortest_names([place for label, place in named if not label]))
    systems: dict[str, Path] = {}
    for label, place in named:
        unique = label or next(short)
        if unique in systems:
            raise ConfigError(f"two systems have the name {unique}; give each its own, such as other={place}")
        systems[unique] = place
    return systems


def _collect_answers(
    arguments: Namespace, paths: "Sequence[Path]", sources: "Texts | None"
) -> "tuple[list[Answers], Sequence[str], SacrebleuConfig]":
    """Read or generate the answers of all systems, and choose metrics and settings: those of the first model."""
    from pipeline.config import SacrebleuConfig, make_section
    from pipeline.inference.compare import DEFAULT_METRICS
    from pipeline.inference.prediction_files import read_answers

    answers: list[Answers] = []
    metrics, settings = None, None
    for place in paths:
        if place.is_dir():
            its_answers, its_metrics, its_settings = _predict(place, arguments, sources)
            answers.append(its_answers)
            metrics, settings = metrics or its_metrics, settings or its_settings
        else:
            answers.append(read_answers(place))
    settings = settings or SacrebleuConfig()
    if arguments.tokenize:
        values = {**dict(settings), "tokenize": arguments.tokenize}
        settings = make_section("evaluation.sacrebleu", SacrebleuConfig, **values)
    return answers, arguments.metrics or metrics or DEFAULT_METRICS, settings


def _predict(
    folder: Path, arguments: Namespace, sources: "Texts | None"
) -> "tuple[Answers, Sequence[str], SacrebleuConfig | None]":
    """Return what a trained model answers to the sources, or to a split of the config that it was trained with.

    Raises:
        ConfigError: for a model that gives no texts.
    """
    from pipeline.inference.compare import DEFAULT_METRICS, EXACT
    from pipeline.inference.evaluation import evaluate_features
    from pipeline.inference.generation import generate
    from pipeline.inference.metrics import exact_match
    from pipeline.inference.prediction_files import Answers
    from pipeline.tasks.config_loading import load_config
    from pipeline.tasks.encoding import encode_split
    from pipeline.tasks.text_classification import TextClassification
    from pipeline.tasks.trained_model import load_trained, use_attention_of_any_shape
    from pipeline.training.checkpoints import find_config

    use_attention_of_any_shape()
    model, task = load_trained(folder)
    if not task.has_metrics:
        raise ConfigError(f"{folder}: this model gives no texts to compare; teacher-forcing score gives its scores")
    metrics = (EXACT,) if isinstance(task, TextClassification) else DEFAULT_METRICS
    if sources is not None:
        languages = {"source_lang": arguments.source_lang, "target_lang": arguments.target_lang}
        told = languages if task.languages.targets else {}  # another system may know no language but its own
        texts = generate(model, task, sources.lines, **told)
        return Answers(str(folder), texts, sources.lines), metrics, None
    config, split = load_config(find_config(folder)), arguments.split
    if split != "train" and not config.data.held_out(split):
        raise ConfigError(f"{folder}: its config has no data.{split}; choose another --split, or give --sources")
    result = evaluate_features(
        model,
        task,
        encode_split(config, task, split),
        batch_size=None,
        generation=getattr(model, "generation_config", None),
        metrics=[exact_match],  # so that texts are generated
    )
    rows = result.predictions
    corpora = [row.corpus for row in rows if row.corpus is not None]
    answers = Answers(
        str(folder),
        [row.prediction or "" for row in rows],
        [row.source for row in rows],
        [row.reference for row in rows],
        corpora if len(corpora) == len(rows) else None,
    )
    return answers, metrics, config.evaluation.sacrebleu


# ---- the text


def as_text(comparison: "Comparison") -> str:
    """Return a comparison as lines for a terminal, a screen or two long."""
    blocks = [_scores(comparison), *(_breakdown(comparison, breakdown) for breakdown in comparison.breakdowns)]
    blocks += [_pair(comparison, pair) for pair in comparison.pairs]
    blocks.append([f"{metric.title}: {text}" for metric in comparison.metrics for text in metric.signatures.values()])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _scores(comparison: "Comparison") -> list[str]:
    from pipeline.inference.compare import FEWEST_DIFFERENT
    from pipeline.pages.comparison import LEVEL, format_difference, format_p, format_score

    head = [f"{comparison.num_rows:,} row{'s' if comparison.num_rows > 1 else ''}"]
    head += [f"{metric.title} {'↑' if metric.better == 'higher' else '↓'}" for metric in comparison.metrics]
    rows = [head]
    for number, system in enumerate(comparison.systems):
        scores = [(metric.title, metric.scores[0], metric.scores[number]) for metric in comparison.metrics]
        rows.append(
            [_cut(system)]
            + [f"{format_score(its.score, title)} ± {format_score(its.ci, title)}" for title, _, its in scores]
        )
        if number == 0:
            continue
        changes = [format_difference(its.score - base.score, title) for title, base, its in scores]
        rows.append(["  difference", *changes])
        tests = dict.fromkeys(test for _, _, its in scores for test in its.p_values)
        for test in tests:
            p_values = [its.p_values.get(test) for _, _, its in scores]
            marks = ["*" if p is not None and p < LEVEL else " " for p in p_values]
            rows.append([f"  p, {test}", *(f"{format_p(p)} {mark}" for p, mark in zip(p_values, marks, strict=True))])
    notes = []
    if comparison.pairs:
        notes = ["", f"* p < {LEVEL} against {_cut(comparison.systems[0])}"]
        notes += [
            f"{_cut(pair.other)} answers {pair.num_different} rows differently; resampling needs {FEWEST_DIFFERENT}"
            for pair in comparison.pairs
            if pair.num_different < FEWEST_DIFFERENT
        ]
    return [*_table(rows), *notes]


def _breakdown(comparison: "Comparison", breakdown: "Breakdown") -> list[str]:
    """Show the first score of each group; the page and the JSON have all."""
    from pipeline.pages.comparison import format_score

    title = next(iter(breakdown.groups[0].scores))
    rows = [[f"{breakdown.title}: {title}", breakdown.unit, *map(_cut, comparison.systems)]]
    rows += [
        [f"  {_cut(group.name)}", f"{group.size:,}", *(format_score(score, title) for score in group.scores[title])]
        for group in breakdown.groups
    ]
    return _table(rows)


def _pair(comparison: "Comparison", pair: "Pair") -> list[str]:
    baseline, other = _cut(pair.baseline), _cut(pair.other)
    lines = [
        f"{pair.num_different:,} of {comparison.num_rows:,} answers of {other} differ from those of {baseline}: "
        f"{pair.num_better:,} are better, {pair.num_worse:,} worse ({comparison.sentence_metric})"
    ]
    for title, differences in ((f"{other} is better", pair.gains), (f"{other} is worse", pair.losses)):
        for difference in differences[:SHOWN]:
            lines += ["", *_difference(title, difference, comparison.sentence_metric)]
    return lines


def _difference(title: str, difference: "Difference", metric: str) -> list[str]:
    from pipeline.pages.comparison import format_difference

    texts = [] if difference.source is None else [("source", difference.source)]
    texts += [("reference", text) for text in difference.references]
    texts += [(_cut(said.system), _mark(said) or "(empty)") for said in (difference.baseline, difference.other)]
    width = max(len(label) for label, _ in texts)
    change = format_difference(difference.other.score - difference.baseline.score, metric)
    return [
        f"{title}, row {difference.row}: {change}",
        *(f"  {label.ljust(width)}  {_cut(text, LONGEST)}" for label, text in texts),
    ]


def _mark(answer: "Answer") -> str:
    """Write an answer with brackets around what the other one lacks."""
    return "".join(f"[{piece.text}]" if piece.differs else piece.text for piece in answer.pieces)


def _table(rows: "Sequence[Sequence[str]]") -> list[str]:
    """Align columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, aligned, strict=True)]
    return [line.rstrip() for line in lines]


def _cut(text: str, length: int = LONGEST_NAME) -> str:
    """Return a text as one line that a terminal shows as it is, cut if it is long."""
    line = one_line(text)
    return line if len(line) <= length else f"{line[: length - 3]}..."
