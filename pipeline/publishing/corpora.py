"""Publish the answers to a corpus as a data set of the Hub, with a card that says how they were made."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Template

from pipeline.errors import ConfigError, NotPublished
from pipeline.inference.corpus import windows
from pipeline.inference.parts import Output
from pipeline.publishing.hub import FAILURES, commit, explain, prepare_repository
from pipeline.publishing.secrets import refuse_secrets_in

TEMPLATE = Path(__file__).with_name("corpus.md.jinja")
OPTION = "--push-to-hub"
FILES = ("train.jsonl", "train.parquet")  # what an earlier commit of ours may have left
PATIENCE = 600.0  # seconds, for faults in a row
LINES = 10_000  # that are looked through at a time


def prepare(name: str, private: bool) -> None:
    """Check before the work that the data set can be pushed, and create its repository.

    Raises:
        ConfigError: when the token is missing or may not write there, or the Hub is down.
    """
    prepare_repository(name, private, (OPTION, OPTION), kind="dataset")


def publish(output: Output, name: str) -> None:
    """Publish a finished file of answers, in one commit.

    Args:
        name: owner/name of the repository, which is there.

    Raises:
        ConfigError: for what looks like an access token in it.
        NotPublished: when the Hub refuses it or cannot be reached.
    """
    format = output.facts["settings"]["format"]
    for first, lines in _texts(output.path, format):
        refuse_secrets_in(lines, str(output.path), first)
    with TemporaryDirectory(prefix="publish-") as workspace:
        file = Path(workspace, f"train.{format}")
        file.symlink_to(output.path.resolve())
        card = Path(workspace, "README.md")
        card.write_text(render_card(output, name), encoding="utf-8")
        refuse_secrets_in(card.read_bytes(), "the card")
        try:
            message = f"Answers of {output.facts['model']['name']}"
            commit([file, card], name, message, PATIENCE, FILES.__contains__, kind="dataset")
        except FAILURES as error:
            if isinstance(error, ConfigError):
                raise
            raise NotPublished(
                f"{output.path} is finished, but not on the Hub: {explain(error, name)}; fix that and run the same "
                "command with --resume"
            ) from error


def render_card(output: Output, name: str) -> str:
    """Return the text of the README.md of a data set."""
    facts: dict[str, Any] = output.facts
    model = facts["model"]
    settings = {key: value for key, value in facts["settings"].items() if key not in ("wanted", "generation")}
    settings |= {key: value for key, value in facts["settings"]["wanted"].items() if value}
    metadata = DatasetCardData(
        tags=["synthetic", "machine-generated", "teacher-forcing"],
        base_model=model["name"] if "revision" in model else None,
    )
    text = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True).render(
        title=name.split("/")[-1],
        model=model,
        data=facts["data"],
        settings=settings,
        generation=facts["settings"]["generation"],
        summary=output.read_summary(),
        as_json=json.dumps,
    )
    return str(DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}"))


def _texts(path: Path, format: str) -> Iterator[tuple[int, bytes]]:
    """Yield all of a file as text, some lines or rows at a time, each with the number of the first."""
    first = 1
    if format == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(LINES):
                rows = batch.to_pylist()
                yield first, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
                first += len(rows)
        return
    with path.open("rb") as stream:
        for lines in windows(stream, LINES):
            yield first, b"".join(lines)
            first += len(lines)
