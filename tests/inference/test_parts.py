import json
import os
import random
from typing import Any

import pytest

from pipeline.data.corpus import Text
from pipeline.errors import ConfigError, RunError
from pipeline.inference.corpus import Answer, Summary
from pipeline.inference.hypotheses import Hypothesis, Wanted
from pipeline.inference.parts import Output

TEXTS = [Text(number, f"text {number}", f"a {number}" if number % 7 else "") for number in range(23)]
FACTS: dict[str, dict[str, Any]] = {"model": {"name": "m", "weights": "1"}, "settings": {"batch_size": 2}}
LINES = b"".join(f"A {number}\n".encode() if number % 7 else b"\n" for number in range(23))


class Killed(BaseException):
    """What no code here catches."""


def answer(texts):
    return [Answer(text.content, [Hypothesis(text.content.upper())] if text.content else []) for text in texts]


def write(output: Output, resume=False, texts=TEXTS, answer=answer, format="text") -> Summary:
    """Make the whole file."""
    output.begin(resume)
    if not output.is_finished:
        with output.locked():
            output.join(output.fill(texts, 4, answer, lambda texts: None), format, Wanted())
    return output.read_summary()


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "new" / "out.txt", FACTS)


def test_an_output_is_written_in_order_and_leaves_its_manifest(output):
    assert write(output) == Summary(texts=23, empty=4)
    assert output.path.read_bytes() == LINES
    assert sorted(path.name for path in output.path.parent.iterdir()) == ["out.txt", "out.txt.manifest.json"]
    assert json.loads(output.manifest.read_bytes())["facts"] == FACTS


def test_nothing_is_overwritten_unless_it_goes_on(output):
    write(output)
    with pytest.raises(ConfigError, match=r"out.txt exists; go on with it by --resume, remove it, or name another"):
        write(output)
    assert write(output, resume=True, answer=None).texts == 23  # is finished
    output.path.write_bytes(LINES.replace(b"A 1\n", b"B 1\n"))
    with pytest.raises(ConfigError, match=r"out.txt was changed or removed since it was made"):
        write(output, resume=True)
    output.manifest.unlink()
    with pytest.raises(ConfigError, match=r"out.txt exists, but no .*manifest.json says what it was made of"):
        write(output, resume=True)


def test_another_model_or_setting_does_not_go_on(output, tmp_path):
    write(output)
    other = Output(output.path, {"model": {"name": "copy", "weights": "2"}, "settings": {"batch_size": 2, "seed": 1}})
    with pytest.raises(
        ConfigError, match=r"another model.weights \(1, now 2\); settings.seed \(None, now 1\); remove it"
    ):
        write(other, resume=True)
    moved = Output(output.path, {**FACTS, "model": {"name": "copy", "weights": "1"}})
    write(moved, resume=True)  # the same under another name


def test_killed_at_any_write_it_goes_on_with_the_same_bytes(output, monkeypatch):
    """Three kills: at the first part, in the middle, and while joining. What is written is not answered again."""
    replace = os.replace
    asked: list[int] = []

    def ask(texts):
        asked.extend(text.number for text in texts)
        return answer(texts)

    for kill in ("000000.jsonl", "000003.jsonl", "out.txt"):

        def fail(source, target, kill=kill):
            if os.path.basename(target) == kill:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(Killed):
            write(output, resume=True, answer=ask)
        assert not output.path.exists()
    monkeypatch.setattr(os, "replace", replace)
    assert write(output, resume=True, answer=ask).texts == 23 and output.path.read_bytes() == LINES
    assert [number for number in asked if asked.count(number) > 1] == [*range(4), *range(12, 16)] * 2 or len(
        asked
    ) == 31
    assert not output.parts.exists()


def test_killed_while_the_parts_are_removed_it_is_finished(output, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            write(output)
    assert output.parts.exists() and write(output, resume=True, answer=None).texts == 23 and not output.parts.exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: b"", lambda content: content[9:]])
def test_a_damaged_part_is_made_again(output, damage):
    output.begin(False)
    output.fill(TEXTS, 4, answer, lambda texts: None)
    part = output.parts / "000002.jsonl"
    part.write_bytes(damage(part.read_bytes()))
    asked: list[Text] = []

    def ask(texts):
        asked.extend(texts)
        return answer(texts)

    write(output, resume=True, answer=ask)
    assert [text.number for text in asked] == [8, 9, 10, 11] and output.path.read_bytes() == LINES


def test_other_texts_do_not_go_on_though_nothing_tells_them_apart_before(output):
    """Standard input has no fingerprint."""
    output.begin(False)
    output.fill(TEXTS[:8], 4, answer, lambda texts: None)
    others = [*TEXTS[:5], Text(5, "standard input:6", "b"), *TEXTS[6:]]
    with pytest.raises(ConfigError, match="--resume: text 4 and what follows are other texts"):
        write(output, resume=True, texts=others)
    write(output, resume=True)
    assert output.path.read_bytes() == LINES


def test_processes_share_the_windows(output):
    output.begin(False)
    asked: dict[int, list[Text]] = {0: [], 1: []}
    for rank in (1, 0):

        def ask(texts, own=asked[rank]):
            own.extend(texts)
            return answer(texts)

        count = output.fill(TEXTS, 4, ask, lambda texts: None, rank, 2)
    assert [text.number // 4 for text in asked[1]] == [1] * 4 + [3] * 4 + [5] * 3 and len(asked[0]) == 12
    output.join(count, "text", Wanted())
    assert output.path.read_bytes() == LINES


def test_two_commands_do_not_write_one_output(output):
    output.begin(False)
    with output.locked(), pytest.raises(RunError, match=r"another process writes to .*out.txt"), output.locked():
        pass


def test_where_nothing_can_be_written_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*file/out.txt: (Not a directory|File exists)"):
        Output(tmp_path / "file" / "out.txt", FACTS).begin(False)
    output = Output(tmp_path / "out.txt", FACTS)
    output.begin(False)
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(RunError, match=r"--output .*out.txt: No space left; make room, then the same command goes on"):
        output.write(0, TEXTS[:4], answer(TEXTS[:4]))


def test_an_empty_corpus_has_an_empty_output(output):
    assert write(output, texts=[]).texts == 0 and output.path.read_bytes() == b""


def test_random_kills(output, monkeypatch):
    """At a random write each time, until none is left."""
    generator, replace = random.Random(0), os.replace

    def fail(source, target):
        if generator.random() < 0.3:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    for _ in range(200):
        try:
            write(output, resume=True)
            break
        except Killed:
            continue
    assert output.path.read_bytes() == LINES
