"""Keep secrets off the Hub: look for them in every file before it is uploaded.

The patterns are our own: of 27 forms tried, detect-secrets 1.5.0 (2024, the newest), without its measures of entropy,
misses ten, among them those of Hugging Face, Google, npm, OpenAI and Anthropic, and all of them in UTF-16.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import get_token

from pipeline.errors import ConfigError

FORMS = (
    r"hf_(?:oauth_|jwt_)?[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}",
    r"gl(?:pat|dt|ft|soat|rt|rtr|cbt|ptt|oas|agent|imt|ffct)-[\w-]{20,}",  # GitLab
    r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}",  # Google
    r"npm_[A-Za-z0-9]{36}|pypi-[\w-]{40,}",
    r"eyJ[\w-]{8,2000}\.eyJ[\w-]{8,4000}\.[\w-]{8,}",  # JWT: `{"` in base64, twice, and a signature
    r"(?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16}",  # AWS
    r"sk-(?=[\w-]{0,100}\d)[\w-]{20,}",  # OpenAI, Anthropic and others
    r"xox[a-z]-[\w-]{10,}|xapp-\d-[\w-]{10,}",  # Slack
    r"(?:gsk|r8|dop_v1|doo_v1|glsa|dckr_pat|shpat|sk_live|rk_live|sk_test|whsec)_\w{20,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    r"(?:dapi|SK|AC)[0-9a-f]{32}",  # Databricks, Twilio
    r"\d{8,10}:AA[\w-]{33}",  # Telegram
    r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40}",  # Discord
    r"hv[sbr]\.[\w-]{24,}|\w{14}\.atlasv1\.[\w-]{60,}|ATATT3[\w=-]{50,}",  # HashiCorp, Atlassian
    r"(?:lsv2_pt|lsv2_sk|lin_api|ntn|secret|figd|glc|sntrys|sntryu|rubygems|pscale_tkn|pscale_pw)_(?=\w{0,39}\d)[\w=-]{32,}",
    r"(?:pplx|nvapi|xai|HRKU|PMAK|NRAK|sq0atp|sq0csp)-(?=[\w-]{0,40}\d)[\w-]{20,}|dp\.(?:pt|st|ct|sa)\.[\w.-]{40,}",
    r"(?:pul|key)-[0-9a-f]{32,}",  # Pulumi, Mailgun
)
# What is secret by what stands before it.
IN_PLACE = (
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1",
    r"hooks\.slack\.com/services/\w+/\w+/\w+|discord(?:app)?\.com/api/webhooks/\d+/[\w-]+",
    r"://[\w.~%!$&*+,;=\x80-\xff-]{0,100}:[\w.~%!$&*+,;=?#^\x80-\xff-]{1,200}@[A-Za-z0-9\[]",  # user:password@host
    r"://[\w-]{20,200}@[A-Za-z0-9\[]",  # token@host
    r"\blogin\s{1,8}\S{1,100}\s{1,8}password\s{1,8}\S",  # .netrc
    r"[?&]sig=[\w%+/-]{40,}",  # Azure, a signed address
    r"AccountKey=[A-Za-z0-9+/]{60,}",  # Azure
    r"(?i:aws|secret)[\w \"'\\:=>.-]{0,40}?[ \"'\\:=>](?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Z0-9/+]{0,39}[a-z])"
    r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",  # an AWS secret key, which has no form of its own
    r"(?i:password|passwd|secret|api_?key|access_?key|auth_?token|_token|authorization)[\"']?\s{0,3}[:=]\s{0,3}"
    r"(?:(?i:bearer|basic)\s)?[\"']?(?=[\w+/=-]{0,60}\d[\w+/=-]{0,60}\d)(?=[\w+/=-]{0,60}[A-Za-z])[\w+/=-]{20,}",
    r"(?:PASSWORD|PASSWD|SECRET|TOKEN|API_KEY)=[\"']?(?=[^\s\"'$<>{}]{0,60}\d)[^\s\"'$<>{}]{8,}",  # of a shell
    r"(?i:password|passwd)[\"']?\s{0,3}[:=]\s{0,3}(?:\"[^\s\"]{6,}\"|'[^\s']{6,}')",
)
SECRET = re.compile(
    "|".join((rf"(?<![A-Za-z0-9])(?:{'|'.join(FORMS)})", *IN_PLACE)).encode(),
)
ESCAPE = re.compile(rb"\\(?:(?:u00|U000000|x)([0-9a-fA-F]{2})|([nrt])|([\"'/\\]))")
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$")  # of an environment variable
SHORTEST = 16  # characters; a shorter value of such a variable would be found by chance
NESTED_ESCAPES = 3  # JSON in JSON in JSON


def refuse_secrets(files: Sequence[Path]) -> None:
    """Check that no file holds this user's own secrets or, outside weights, what looks like an access token.

    Raises:
        ConfigError: for the first that does, naming file and line, and never the secret.
    """
    for path in files:
        refuse_secrets_in(path.read_bytes(), str(path), is_weights=path.suffix == ".safetensors")


def refuse_secrets_in(content: bytes, name: str, first_line: int = 1, is_weights: bool = False) -> None:
    """Check some lines of a file, or a whole one; see `refuse_secrets`.

    Args:
        name: of the file.
        first_line: the number of the first of the lines.
    """
    own_secrets = [secret.encode() for secret in _own_secrets()]
    for text in _readings(content, is_weights):
        position = _find_secret(text, own_secrets)
        if position is not None:
            line = first_line + text.count(b"\n", 0, position)
            raise ConfigError(
                f"{name}:{line} holds what looks like an access token or password; nothing was uploaded. Remove "
                "it there, and revoke it where it was made if others may have seen it"
            )
    if any(secret in content for secret in own_secrets):
        raise ConfigError(f"{name} holds one of your own access tokens or passwords; nothing was uploaded")


def _readings(content: bytes, is_weights: bool) -> Iterator[bytes]:
    """Yield a file's text as a reader would see it: without the zero bytes of UTF-16 and UTF-32, and unescaped.

    Weights may look like a token by chance, so of those only the header counts, which is JSON.
    """
    if is_weights:
        content = content[8 : 8 + int.from_bytes(content[:8], "little")]
    text = content.replace(b"\0", b"")
    yield text
    for _ in range(NESTED_ESCAPES):
        plain = ESCAPE.sub(_unescape, text)
        if plain == text:
            return
        text = plain
        yield text


def _unescape(match: re.Match[bytes]) -> bytes:
    code, space, character = match.groups()
    return bytes([int(code, 16)]) if code else b" " if space else character


def _find_secret(text: bytes, own_secrets: list[bytes]) -> int | None:
    """Return where a secret begins."""
    if match := SECRET.search(text):
        return match.start()
    positions = (text.find(secret) for secret in own_secrets)
    return next((position for position in positions if position >= 0), None)


def _own_secrets() -> Iterator[str]:
    """Yield the token of this login, and the values of environment variables whose names say that they are secret."""
    if token := get_token():
        yield token
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            yield value
