"""Keep access tokens off the Hub: look for them in every file before it is uploaded."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_token

from pipeline.errors import ConfigError

# Access tokens of Hugging Face, GitHub, OpenAI and others, AWS, Slack, and keys in PEM.
SECRET = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{30,}|AKIA[A-Z0-9]{16}"
    rb"|xox[baprs]-[A-Za-z0-9-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$")  # of an environment variable
SHORTEST = 16  # characters; a shorter value of such a variable would be found by chance
BINARY_PROBE = 4096  # bytes; a file with a zero byte among the first of these is binary


def refuse_secrets(files: list[Path]) -> None:
    """Check that no file holds this user's own secrets or, in a text file, what looks like an access token.

    Raises:
        ConfigError: for the first that does, naming file and line.
    """
    own_secrets = [secret.encode() for secret in _own_secrets()]
    for path in files:
        content = path.read_bytes()
        position = _find_secret(content, own_secrets)
        if position is not None:
            line = content.count(b"\n", 0, position) + 1
            raise ConfigError(f"{path}:{line} holds what looks like an access token; nothing was uploaded")


def _find_secret(content: bytes, own_secrets: list[bytes]) -> int | None:
    """Return where a secret begins. Weights may look like a token by chance, so patterns are for texts only."""
    is_text = b"\0" not in content[:BINARY_PROBE]
    if is_text and (match := SECRET.search(content)):
        return match.start()
    positions = (content.find(secret) for secret in own_secrets)
    return next((position for position in positions if position >= 0), None)


def _own_secrets() -> Iterator[str]:
    """Yield the token of this login, and the values of environment variables whose names say that they are secret."""
    if token := get_token():
        yield token
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            yield value
