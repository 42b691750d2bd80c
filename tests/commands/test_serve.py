"""`teacher-forcing serve`: what is refused before a model is loaded; tests/serving/ has the server."""

import socket

import pytest

from pipeline import cli
from pipeline.commands import serve

TOKEN = "TEACHER_FORCING_TOKEN"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["serve", "model", *arguments]) == 2
    return capsys.readouterr().err


def test_a_missing_library_is_named_with_the_command(capsys, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda module: None)
    message = refused(capsys)
    assert "fastapi, uvicorn, prometheus-client, python-multipart" in message
    assert "pip install 'teacher-forcing[serve]'" in message


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda module: module)


def test_elsewhere_a_token_is_required(capsys, installed):
    message = refused(capsys, "--host", "0.0.0.0")
    assert "--host 0.0.0.0" in message and "--token-file" in message and TOKEN in message


@pytest.mark.parametrize("content", ["", " \n", "two words", "ключ", "a\x07b"])
def test_a_token_is_one_visible_word(capsys, installed, tmp_path, content, monkeypatch):
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    assert f"--token-file {file}: the token must be one word" in refused(capsys, "--token-file", str(file))
    monkeypatch.setenv(TOKEN, content)
    assert f"{TOKEN}: the token must be one word" in refused(capsys)


def test_a_token_file_that_cannot_be_read(capsys, installed, tmp_path):
    assert "No such file" in refused(capsys, "--token-file", str(tmp_path / "none"))
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(capsys, "--token-file", str(tmp_path / "token"))


def test_the_file_wins_over_the_environment(installed, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv(TOKEN, "from-environment")
    parser = cli.make_parsers()[1]["serve"]
    arguments = parser.parse_args(["model", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")])
    assert serve._read_token(arguments) == "from-file"
    assert serve._read_token(parser.parse_args(["model", "--host", "0.0.0.0"])) == "from-environment"
    monkeypatch.delenv(TOKEN)
    assert serve._read_token(parser.parse_args(["model"])) is None


def test_a_port_that_is_taken(capsys):
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use" in refused(capsys, "--port", port)


def test_a_type_is_of_the_torch_engine(capsys):
    pytest.importorskip("fastapi")
    assert "--dtype: 'int8' is unknown" in refused(capsys, "--port", "0", "--dtype", "int8")
    message = refused(capsys, "--port", "0", "--dtype", "float16", "--engine", "onnx")
    assert "an export for onnx has its own type" in message


@pytest.mark.parametrize("option, value", [("--port", "70000"), ("--batch-wait", "2000"), ("--timeout", "0")])
def test_numbers_out_of_bounds(capsys, option, value):
    with pytest.raises(SystemExit):
        cli.main(["serve", "model", option, value])
    assert f"{value} is not a number from" in capsys.readouterr().err
