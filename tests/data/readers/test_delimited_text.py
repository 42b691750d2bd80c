import gzip

import pytest

from pipeline.config import DataConfig
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, DataError
from tests.data.folders import open_folder, texts

VALUES = ["000", "1e0", "0.50", "True", "NA", "null", "", " a ", "1,5", "-", "inf", "01"]
STREAMING = pytest.mark.parametrize("streaming", [False, True])


def pairs(rows):
    return [(row["source"], row["target"]) for row in rows]


@STREAMING
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_values_stay_as_they_stand(tmp_path, streaming, suffix):
    """In every file, whatever the values of the others look like."""
    for shard, values in enumerate((["1", "2"], VALUES, ["a"])):
        marks = ("\t", "") if suffix == "tsv" else (",", '"')
        lines = ["en{0}fr", *(f"{{1}}{value}{{1}}{{0}}x" for value in values)]
        content = ("\n".join(lines) + "\n").format(*marks).encode()
        (tmp_path / f"train-{shard}.{suffix}").write_bytes(gzip.compress(content) if "gz" in suffix else content)
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert pairs(rows) == [(value, "x") for value in ("1", "2", *VALUES, "a")]
    assert rows[2][PLACE] == f"{tmp_path}/train-1.{suffix}:2"
    if not streaming:
        assert pairs(open_folder(tmp_path, "train[1:3]")) == [("2", "x"), ("000", "x")]


@STREAMING
def test_a_quote_in_tsv_is_a_character(tmp_path, streaming):
    rows = [('"Stop, he said', "Arrête"), ("two", '"deux"'), ('"Go', "Va"), ('5 " pipe', 'tuyau "')]
    (tmp_path / "train.tsv").write_text("en\tfr\n" + "".join(f"{en}\t{fr}\n" for en, fr in rows))
    assert pairs(open_folder(tmp_path, streaming=streaming)) == rows
    (tmp_path / "train.tsv").write_text('en\tfr\n"a\tb"\t"c ""d"""\n')
    for asked in ({"quoting": 0}, {"quotechar": '"'}):
        assert pairs(open_folder(tmp_path, streaming=streaming, **asked)) == [("a\tb", 'c "d"')]


@STREAMING
def test_a_field_that_swallows_lines_is_one_bad_row(tmp_path, streaming):
    lines = ["en,fr", "one,un", '"Stop, he said,x', "two,deux", '"Go, she said,y', "three"]
    lines += ['four,"quatre" 4', "five,cinq,5", "six,six", '"open,z', "seven,sept"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    rows = list(open_folder(tmp_path, streaming=streaming))
    good = [row for row in rows if row[PROBLEM] is None]
    assert pairs(good) == [("one", "un"), ("two", "deux"), ("six", "six"), ("seven", "sept")]
    swallows = 'a field opens with " and does not end with one, so that it swallows the lines up to'
    assert {int(row[PLACE].rsplit(":", 1)[1]): row[PROBLEM] for row in rows if row[PROBLEM]} == {
        3: f"{swallows} 5",
        5: f"{swallows} 7",
        6: "the row has 1 fields, where the header has 2",
        7: 'a field opens with " and does not end with one',
        8: "the row has 3 fields, where the header has 2",
        10: f"{swallows} 11",
    }


@STREAMING
def test_a_row_may_span_lines(tmp_path, streaming):
    (tmp_path / "train.csv").write_bytes(b'\xef\xbb\xbf"en","fr"\r\n"a\r\nb","c"\r\n\r\n"d ""e""",\r\na "b" c,5" 6\r\n')
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert pairs(rows) == [("a\r\nb", "c"), ('d "e"', ""), ('a "b" c', '5" 6')]
    assert [row[PLACE].rsplit(":", 1)[1] for row in rows] == ["2", "5", "6"]


@STREAMING
def test_options_of_the_format(tmp_path, streaming):
    (tmp_path / "train.csv").write_text("01;a\n'x;y';b\n")
    rows = open_folder(tmp_path, streaming=streaming, sep=";", names=["en", "fr"], quotechar="'")
    assert pairs(rows) == [("01", "a"), ("x;y", "b")]
    (tmp_path / "train.csv").write_text('en,fr\n"a,b\n')
    assert pairs(open_folder(tmp_path, streaming=streaming, quoting=3)) == [('"a', "b")]


@STREAMING
def test_columns_may_have_any_name_but_one_twice(tmp_path, streaming):
    names = ["place", "problem", "row", "lines", "text.en", "(x)"]
    (tmp_path / "train.csv").write_text(f"{','.join(names)}\n{','.join(map(str, range(6)))}\n")
    for source, target in zip(names, names[1:] + names[:1], strict=True):
        rows = texts(open_folder(tmp_path, streaming=streaming, source=source, target=target))
        assert rows == [{"source": str(names.index(source)), "target": str(names.index(target))}]
    with pytest.raises(DataError, match=r"train.csv: there is no column 'problm'; did you mean problem\?"):
        open_folder(tmp_path, streaming=streaming, source="problm", target="row")
    (tmp_path / "train.csv").write_text("en,fr,en\na,b,c\n")
    with pytest.raises(DataError, match=r"train.csv: there are 2 columns 'en'; rename one"):
        open_folder(tmp_path, streaming=streaming)


def test_a_blank_line_of_one_column_is_an_empty_field(tmp_path):
    """So that no step of a series gets lost; at the end of a file, and between rows of several columns, it is none."""
    (tmp_path / "train.csv").write_text("load\n1\n\n3\n\n")
    rows = list(open_split(DataConfig(path=str(tmp_path)), "train", {"load": "load"}))
    assert [(row["load"], row[PLACE].rpartition(":")[2]) for row in rows] == [("1", "2"), ("", "3"), ("3", "4")]
    (tmp_path / "train.csv").write_text("en,fr\na,b\n\nc,d\n")
    assert pairs(open_folder(tmp_path)) == [("a", "b"), ("c", "d")]


@STREAMING
def test_names_of_files_without_a_header(tmp_path, streaming):
    """They are those of every file of the split; a row with another number of fields is a bad one."""
    (tmp_path / "train-0.tsv").write_text("a\tun\nb\tdeux\ttrop\n")
    (tmp_path / "train-1.tsv").write_text("c\ttrois\n")
    options = {"streaming": streaming, "source": "source", "target": "target"}
    rows = list(open_folder(tmp_path, **options, names=["source", "target"]))
    assert pairs(rows) == [("a", "un"), (None, None), ("c", "trois")]
    assert rows[1][PROBLEM] == "the row has 3 fields, where data.options.names has 2"
    assert [row[PLACE][-13:] for row in rows] == ["train-0.tsv:1", "train-0.tsv:2", "train-1.tsv:1"]
    (tmp_path / "train-0.tsv").unlink()
    with pytest.raises(DataError, match=r"train-1.tsv:1: the row has 2 fields, where data.options.names has 3"):
        open_folder(tmp_path, **options, names=["source", "target", "id"])
    with pytest.raises(
        DataError, match=r"no column 'target'; choose from source, other. The first row: .'source': 'c'"
    ):
        open_folder(tmp_path, **options, names=["source", "other"])
    with pytest.raises(ConfigError, match=r"data.options.names: give a list, as in \[source, target\]"):
        open_folder(tmp_path, **options, names="source")
