"""`teacher-forcing generate`."""

from pathlib import Path

import pytest

from pipeline.commands.generate import _read_lines
from pipeline.errors import DataError


def test_generate(command, finished_folder, tmp_path):
    answers = command("generate", finished_folder, "1 2 3 4", "5 6 7 8")
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == 2
    (tmp_path / "texts").write_text("1 2 3 4\r\n\n5 6 7 8\n")
    first, second = answers.stdout.splitlines()
    assert command("generate", finished_folder, "--file", tmp_path / "texts").stdout == f"{first}\n\n{second}\n"
    assert command("generate", finished_folder, stdin="1 2 3 4\n5 6 7 8").stdout == answers.stdout
    sampled = ["--set", "do_sample=true", "top_k=10", "temperature=2.0", "--seed", "1"]
    one, two = (
        command("generate", finished_folder, *words)
        for words in (["1 2 3 4", *sampled], ["--seed", "1", "1 2 3 4", *sampled[:-2]])
    )
    assert one.returncode == 0 and one.stdout == two.stdout


def test_generate_names_what_is_wrong(command, finished_folder, tmp_path):
    (tmp_path / "latin").write_bytes(b"1 2\n3 \xff 4\n")
    for words, message in (
        (["1 2 3 4", "--set", "topk=10"], "--set: generation.topk is not one of GenerationConfig; did you mean top_k?"),
        (["1 2 3 4", "--set", "top_k=10"], "--set: "),  # which needs do_sample
        (
            ["1 2 3 4", "--set", "do_sample=true", "top_k=-1"],
            "--set: generation.top_k: Input should be greater",
        ),
        (["1 2 3 4", "--set", "num_beams=many"], "--set: "),
        (["1 2 3 4", "--file", tmp_path / "latin"], "give texts or --file, not both"),
        (["--file", tmp_path / "nothing"], f"--file {tmp_path / 'nothing'}: No such file or directory"),
        (["--file", tmp_path / "latin"], f"{tmp_path / 'latin'}:2: invalid UTF-8"),
        (["1 2", "3 \udcff"], "text 2: invalid UTF-8"),
    ):
        done = command("generate", finished_folder, *words)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and not done.stdout
    done = command("generate", finished_folder, stdin=b"1 2\n\xff\n")
    assert done.returncode == 2 and "error: standard input:2: invalid UTF-8" in done.stderr
    done = command("generate", tmp_path / "nothing", "1 2")
    assert done.returncode == 2 and "error: " in done.stderr
    with pytest.raises(SystemExit):
        command("generate", finished_folder, "1 2", "--batch-size", "0")


def test_lines_are_bounded_and_have_no_mark(tmp_path):
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf1 2\r\n\n3\xe2\x80\xa84")
    assert _read_lines(tmp_path / "marked") == ["1 2", "", "3\u20284"]
    with pytest.raises(DataError, match="/dev/zero:1: the line has more than 10 MB"):
        _read_lines(Path("/dev/zero"))
