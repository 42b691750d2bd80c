import gzip
import io
import json
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.data.corpus import Text, given_texts, is_table, split_rows, text_file, text_stream
from pipeline.errors import ConfigError, DataError


def contents(corpus):
    return [text.content for text in corpus.read()]


def test_a_line_is_a_text_and_only_newlines_end_it(tmp_path):
    file = tmp_path / "texts"
    file.write_bytes(b"\xef\xbb\xbf1 2\r\n\n3\xe2\x80\xa84\n \n\xff 5\n6")
    corpus = text_file(file)
    texts = list(corpus.read())
    assert [text.content for text in texts] == ["1 2", "", "3\u20284", " ", "", "6"] and corpus.count == 6
    assert texts[4] == Text(4, f"{file}:5", "", texts[4].problem) and "invalid UTF-8" in str(texts[4].problem)
    assert not any(text.problem for number, text in enumerate(texts) if number != 4)
    assert list(corpus.read()) == texts  # again from the beginning
    packed = tmp_path / "texts.gz"
    packed.write_bytes(gzip.compress(b"1\n\n2\n"))
    assert contents(text_file(packed)) == ["1", "", "2"] and text_file(packed).count is None
    assert contents(text_stream(io.BytesIO(b"1\n\n2"), "standard input")) == ["1", "", "2"]


def test_files_that_are_not_there_and_endless_lines_are_named():
    with pytest.raises(ConfigError, match="--file nothing: No such file or directory"):
        text_file(Path("nothing"))
    with pytest.raises(DataError, match="/dev/zero:1: the line has more than 10 MB"):
        next(text_file(Path("/dev/zero")).read())


def test_another_content_has_other_facts(tmp_path):
    file = tmp_path / "texts"
    file.write_text("a\n")
    before = text_file(file).facts
    file.write_text("b\n")
    assert text_file(file).facts != before == {**before, "name": "texts"}
    assert given_texts(["a", "b"]).facts != given_texts(["ab"]).facts


def test_tables_are_told_by_their_suffix():
    assert all(is_table(Path(name)) for name in ("a.jsonl", "a.csv", "a.tsv.gz", "a.parquet", "a.json"))
    assert not any(is_table(Path(name)) for name in ("a.txt", "a.en", "a", "a.txt.gz", "jsonl"))


ROWS = [{"t": {"en": "a b"}}, {"t": {"en": None}}, {"t": {"en": ""}}, {"t": {"en": 7}}, {"t": {}}, {"t": {"en": "c"}}]


def test_rows_of_a_table_that_hold_no_text_have_a_problem(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n")
    corpus = split_rows(DataConfig(path=str(file)), "train", "t.en")
    texts = list(corpus.read())
    assert [text.content for text in texts] == ["a b", "", "", "", "", "c", ""] and corpus.count == 7
    problems = [text.problem or "" for text in texts]
    assert problems[1] == "t.en is None, where a text is needed" and problems[3].startswith("t.en is 7")
    assert "no column 't.en'" in problems[4] and "not JSON" in problems[6]
    assert not any(problems[index] for index in (0, 2, 5)) and texts[6].place == f"{file}:7"
    with pytest.raises(DataError, match=r"no column 'fr'"):
        list(split_rows(DataConfig(path=str(file)), "train", "fr").read())


def test_rows_of_a_delimited_file_keep_what_is_written(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'id,en\r\n1,"a, b"\r\n2,\r\n3,\xff\r\n4,NA\r\n')
    texts = list(split_rows(DataConfig(path=str(tmp_path / "rows.csv")), "train", "en").read())
    assert [text.content for text in texts] == ["a, b", "", "", "NA"] and "UTF-8" in str(texts[2].problem)


def test_a_slice_of_a_split(make_pairs):
    corpus = split_rows(DataConfig(path=str(make_pairs())), "train[10:13]", "source")
    assert corpus.count == 3 and len(contents(corpus)) == 3


def test_a_split_of_the_hub_is_read_at_one_commit(data_set, hub, little_sleep):
    name, commit = data_set("parquet")
    corpus = split_rows(DataConfig(path=name), "train", "source")
    assert corpus.facts["revision"] == commit and corpus.facts["name"] == name
    hub.add(name, {"train-0.parquet": b"gone"})
    hub.break_next({"path": "/resolve/", "kind": "status", "status": 503, "times": 2})
    assert len(contents(corpus)) == 300
