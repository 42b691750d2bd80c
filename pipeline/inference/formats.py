"""Answers as text, JSON lines and Parquet.

A text file has one line for each text that was answered, whatever an answer holds; with several hypotheses or with
scores, a line has them all, best first, with tabs between. The others have columns:

    source, target                       the text, and its best answer: a corpus to train on
    score, tokens, probabilities, ...    of the best answer, as far as they are asked for
    hypotheses                           where several are asked for: all of them, the best included, with the same
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.inference.corpus import Answer, windows
from pipeline.inference.hypotheses import Hypothesis, Wanted

ROW_GROUP = 10_000  # rows of a Parquet file


def to_row(answer: Answer, wanted: Wanted) -> dict[str, Any]:
    """Return the columns of an answer; the same names for all answers."""
    best = answer.hypotheses[0] if answer.hypotheses else Hypothesis("")
    row = {"source": answer.source, "target": best.text} | {name: getattr(best, name) for name in _columns(wanted)}
    if wanted.num_best > 1:
        row["hypotheses"] = [
            {name: getattr(hypothesis, name) for name in ("text", *_columns(wanted))}
            for hypothesis in answer.hypotheses
        ]
    return row


def _columns(wanted: Wanted) -> list[str]:
    """Name what is told of each hypothesis beside its text."""
    asked = {
        "score": wanted.scores,
        "tokens": wanted.token_probabilities or wanted.alignments,
        "probabilities": wanted.token_probabilities,
        "alignment": wanted.alignments,
        "source_tokens": wanted.alignments,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _to_json(answer: Answer, wanted: Wanted) -> str:
    return json.dumps(to_row(answer, wanted), ensure_ascii=False)


def _to_text(answer: Answer, wanted: Wanted) -> str:
    if wanted.num_best == 1 and not wanted.scores:
        return _one_line(answer.hypotheses[0].text) if answer.hypotheses else ""
    fields = []
    for hypothesis in answer.hypotheses:
        fields.append(_one_line(hypothesis.text).replace("\t", " "))
        if wanted.scores:
            fields.append(f"{hypothesis.score:.6f}")
    return "\t".join(fields)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


LINES: dict[str, Callable[[Answer, Wanted], str]] = {"text": _to_text, "jsonl": _to_json}  # one for each answer
FORMATS = (*LINES, "parquet")


def write_answers(path: Path, format: str, answers: Iterable[Answer], wanted: Wanted) -> None:
    """Write answers to a file in one of `FORMATS`."""
    if format == "parquet":
        _write_parquet(path, answers, wanted)
        return
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for answer in answers:
            stream.write(LINES[format](answer, wanted) + "\n")


def _write_parquet(path: Path, answers: Iterable[Answer], wanted: Wanted) -> None:
    import pyarrow
    import pyarrow.parquet

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    types = {
        "score": pyarrow.float64(),
        "tokens": texts,
        "probabilities": pyarrow.list_(pyarrow.float64()),
        "alignment": pyarrow.list_(pyarrow.int64()),
        "source_tokens": texts,
    }
    told = [(name, types[name]) for name in _columns(wanted)]
    fields = [("source", text), ("target", text), *told]
    if wanted.num_best > 1:
        fields.append(("hypotheses", pyarrow.list_(pyarrow.struct([("text", text), *told]))))
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for some in windows(answers, ROW_GROUP):
            rows = [to_row(answer, wanted) for answer in some]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
