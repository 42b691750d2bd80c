"""teacher-forcing serve: a model behind HTTP, in the formats of clients that people have."""

import logging
import os
import socket
from argparse import ArgumentTypeError, Namespace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.commands.arguments import Parser, add_dtype, add_engine, name, path, positive
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.texts import check_text
from pipeline.errors import ConfigError, explain_path
from pipeline.serving.hosts import is_loopback

if TYPE_CHECKING:
    from pipeline.serving.asking import Limits

TOKEN = "TEACHER_FORCING_TOKEN"  # a variable of the environment
LIBRARIES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
LIBRARIES["python_multipart"] = "python-multipart"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=name, help="folder or Hub id of a trained model")
    parser.add_argument(
        "--host", type=name, default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="(default: 8000; 0 takes a free one)")
    parser.add_argument(
        "--token-file",
        type=path,
        metavar="FILE",
        help=f"holds the token that every request must carry (default: {TOKEN} of the environment); needed where "
        "others can reach the server",
    )
    add_engine(parser)
    add_dtype(parser)
    limits = parser.add_argument_group("bounds")
    limits.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="texts answered together (default: 64)"
    )
    limits.add_argument(
        "--batch-wait",
        type=_milliseconds,
        default=10,
        metavar="MS",
        help="milliseconds that texts wait for others, at most (default: 10)",
    )
    limits.add_argument(
        "--queue", type=positive, default=2048, metavar="N", help="texts that may wait; more get 429 (default: 2048)"
    )
    limits.add_argument(
        "--timeout", type=positive, default=60, metavar="S", help="seconds for an answer; then 504 (default: 60)"
    )


def run(arguments: Namespace) -> None:
    """Serve a model: LibreTranslate, DeepL, Hugging Face and OpenAI clients work with it as they are.

    It listens on this machine only, unless --host says otherwise; then a token is required. SIGTERM and Ctrl-C end it
    when it has answered the requests that it took.
    """
    _check_libraries()
    token = _read_token(arguments)
    with quick_imports():
        from pipeline.serving.answering import load_served
        from pipeline.serving.app import make_app
        from pipeline.serving.server import make_server, signals_end_quietly

    show_logs(logging.INFO)
    limits = _limits(arguments)
    check_text(arguments.host, "--host")
    with _listen(arguments.host, arguments.port) as listener:
        served = load_served(arguments.checkpoint, arguments.engine, arguments.dtype)
        server = make_server(make_app(served, limits, token), limits)
        logging.getLogger("pipeline.serving").info("serving %s at %s", served.name, _address(listener))
        with signals_end_quietly():
            server.run([listener])


def _check_libraries() -> None:
    missing = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'teacher-forcing[serve]'")


def _limits(arguments: Namespace) -> "Limits":
    from pipeline.serving.asking import Limits

    return Limits(
        batch_size=arguments.batch_size,
        latency=arguments.batch_wait / 1000,
        waiting=arguments.queue,
        seconds=arguments.timeout,
    )


def _read_token(arguments: Namespace) -> str | None:
    """Return the token of the file or the environment.

    Raises:
        ConfigError: where others can reach the server and there is none, and for a file without a token.
    """
    place, token = TOKEN, os.environ.get(TOKEN)
    if arguments.token_file is not None:
        place = f"--token-file {arguments.token_file}"
        with explain_path(place):
            content = arguments.token_file.read_bytes()
        try:
            token = content.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{place}: it is not UTF-8; write a token with: openssl rand -hex 32") from error
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() and " " not in token):
        raise ConfigError(f"{place}: the token must be one word of visible ASCII; write one with: openssl rand -hex 32")
    if token is None and not is_loopback(arguments.host):
        raise ConfigError(
            f"--host {arguments.host}: others can reach the server there, so requests must carry a token; write one to "
            f"a file and name it with --token-file, or set {TOKEN}"
        )
    return token


def _listen(host: str, port: int) -> socket.socket:
    """Open the port before the model is loaded, so that one that is taken is known at once.

    Raises:
        ConfigError: where it cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; choose another address or port"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _port(argument: str) -> int:
    number = int(argument)
    if not 0 <= number < 2**16:
        raise ArgumentTypeError(f"{number} is not a number from 0 to {2**16 - 1}")
    return number


def _milliseconds(argument: str) -> int:
    number = int(argument)
    if not 0 <= number <= 1000:
        raise ArgumentTypeError(f"{number} is not a number from 0 to 1000")
    return number
