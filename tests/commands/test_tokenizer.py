"""`teacher-forcing tokenizer`."""

from argparse import Namespace

from transformers import AutoTokenizer

from pipeline.commands.tokenizer import _read_columns, _read_files


def test_tokenizer(command, make_pairs, tmp_path):
    pairs = make_pairs()
    done = command("tokenizer", tmp_path / "a", "--data", pairs, "--kind", "word", "--vocab-size", 50)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a b")["input_ids"]) == ["a", "b", "</s>"]
    (tmp_path / "text").write_text("hello world\nhello\n" * 5)
    done = command("tokenizer", tmp_path / "b", "--files", tmp_path / "text", "--vocab-size", 300)
    assert done.returncode == 0, done.stderr
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "b").decode(
            AutoTokenizer.from_pretrained(tmp_path / "b")("  hello ✓")["input_ids"], skip_special_tokens=True
        )
        == "  hello ✓"
    )
    done = command("tokenizer", tmp_path / "c", "--sentencepiece", tmp_path / "text")
    assert done.returncode == 2 and "not a SentencePiece model" in done.stderr
    done = command("tokenizer", tmp_path / "c", "--data", pairs, "--columns", "src")
    assert done.returncode == 2 and "no column 'src'" in done.stderr


def test_tokenizer_names_what_is_wrong(command, tmp_path):
    text, latin = tmp_path / "text", tmp_path / "latin"
    text.write_text("hello world\nhello\n" * 5)
    latin.write_bytes(b"hello\nw\xf6rld\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").touch()
    for words, message in (
        ([tmp_path / "a", "--files", tmp_path / "none"], f"--files {tmp_path / 'none'}: No such file or directory"),
        ([tmp_path / "a", "--files", text, latin, "--vocab-size", 300], f"{latin}:2: invalid UTF-8"),
        ([tmp_path / "a", "--files", text, "--kind", "wrod"], "--kind: 'wrod' is unknown; did you mean word?"),
        ([tmp_path / "a", "--files", text, "--vocab-size", 10], "tokenizer.vocab_size: 10 is too small"),
        ([text, "--files", text, "--vocab-size", 300], f"{text} is a file; name a folder"),
        ([run, "--files", text, "--vocab-size", 300], f"{run} holds a model, which needs its own tokenizer"),
        ([text / "a", "--files", text, "--vocab-size", 300], f"{text / 'a'}: Not a directory"),
    ):
        done = command("tokenizer", *words)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "a").exists()


def test_files_are_bounded_and_have_no_mark(command, tmp_path):
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf1 2\r\n\n3")
    assert "".join(_read_files([tmp_path / "marked"])).startswith("1 2")
    done = command("tokenizer", tmp_path / "out", "--files", "/dev/zero")
    assert done.returncode == 2 and done.stderr.startswith("error: /dev/zero:1: the line has more than 10 MB")


def test_a_tokenizer_is_trained_on_the_columns_alone(tmp_path):
    """And not on the places of the rows, nor on what is wrong with them."""
    (tmp_path / "train.jsonl").write_text('{"a": "x", "place": "y"}\n{"a": "z"}\n')
    arguments = Namespace(data=str(tmp_path), split="train", columns=["a", "place"])
    assert list(_read_columns(arguments)) == ["x", "y"]
