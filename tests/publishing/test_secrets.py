"""What must never be uploaded."""

import base64
import json
import random
import string
import time

import pytest

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.publishing import hub
from pipeline.publishing.forms import is_published, list_files
from pipeline.publishing.secrets import refuse_secrets
from tests.conftest import HUB
from tests.hub_server import WRITER

pytestmark = pytest.mark.usefixtures("little_sleep")


@pytest.mark.parametrize("secret", [WRITER, "hf_" + "aB3" * 12, "AKIA" + "A1B2C3D4E5F6G7H8", "ghp_" + "z" * 36])
def test_what_looks_like_a_token_is_not_uploaded(finished_folder, hub_name, secret):
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    (finished_folder / "run.yaml").write_text(f"data:\n  options: {{token: {secret}}}\n")
    with pytest.raises(
        ConfigError, match=r"run.yaml:2 holds what looks like an access token or password; nothing was upl"
    ):
        hub.upload(list_files(finished_folder), hub_name, "x", 0)
    assert len(HUB.commits(hub_name)) == 1


def test_an_environment_variable_in_the_weights_is_found(finished_folder, hub_name, monkeypatch):
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    path = finished_folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"0123456789abcdef0123")
    with pytest.raises(ConfigError, match=r"model.safetensors holds one of your own access tokens or passwords"):
        hub.upload(list_files(finished_folder), hub_name, "x", 0)
    assert len(HUB.commits(hub_name)) == 1


def random_text(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(random.Random(length).choices(letters, k=length))


def json_in_base64(**values: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


HEX, UPPER = "0123456789abcdef", string.ascii_uppercase + string.digits
SECRETS = {  # made up here, so that no file of the repository holds what looks like one
    "Hugging Face": "hf_" + random_text(34),
    "GitHub": "ghp_" + random_text(36),
    "GitHub, fine-grained": "github_pat_" + random_text(22) + "_" + random_text(59),
    "GitLab": "glpat-" + random_text(20),
    "Google API": "AIza" + random_text(35),
    "Google OAuth": "ya29." + random_text(60),
    "npm": "npm_" + random_text(36),
    "PyPI": "pypi-" + random_text(90),
    "JWT": json_in_base64(alg="HS256") + "." + json_in_base64(sub="123456") + "." + random_text(43),
    "URL": "https://user:" + random_text(10) + "@host.org/x",
    "URL of a database": "postgres://:s3cret!x" + "@db:5432/x",
    "AWS access key": "AKIA" + random_text(16, UPPER),
    "AWS session key": "ASIA" + random_text(16, UPPER),
    "AWS secret key": "aws_secret_access_key = " + random_text(40),
    "Slack": "xoxb-" + random_text(12, string.digits) + "-" + random_text(24),
    "OpenAI": "sk-proj-" + random_text(48),
    "Anthropic": "sk-ant-api03-" + random_text(93),
    "private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "private key of SSH": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "named": "WANDB_API_KEY=" + random_text(40, HEX),
    "named, short": "DB_PASSWORD=" + "Tr0ub4dor&3xyz",
    "quoted": "password='" + "open-sesame'",
    ".netrc": "machine host login me password " + "geheim",
    "URL with a token": "https://" + random_text(40) + "@github.com/x",
    "URL of a German": "https://müller:" + "geheim@host",
    "Hugging Face OAuth": "hf_oauth_" + random_text(40),
    "Discord": "M" + random_text(25) + "." + random_text(6) + "." + random_text(38),
    "HashiCorp": "hvs." + random_text(90),
    "Notion": "ntn_" + random_text(46),
    "NVIDIA": "nvapi-" + random_text(64),
    "Azure, signed": "https://x.net/c?sig=" + random_text(43) + "%3D",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_known_forms_in_every_writing(tmp_path, secret):
    """As they stand, in JSON of JSON, escaped, in UTF-16 with and without its mark, and in the header of weights."""
    escaped = "".join(f"\\u{ord(character):04x}" for character in secret)
    header = json.dumps({"__metadata__": {"made": f"by {secret} "}}).encode()
    writings = {
        "run.yaml": f"a: 1\nx: {secret}\n".encode(),
        "config.json": json.dumps({"x": json.dumps({"y": secret.replace("/", "\\/")})}).encode(),
        "tokenizer.json": f'{{"x":\n"{escaped}"}}'.encode(),
        "merges.txt": json.dumps({"y": json.dumps({"x": escaped})}).encode(),
        "vocab.json": f"a: 1\nx: {secret}\n".encode("utf-16"),
        "README.md": f"a: 1\nx: {secret}\n".encode("utf-16-be"),
        "model.safetensors": len(header).to_bytes(8, "little") + header,
    }
    for name, content in writings.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name}:[12] holds what looks like an access token") as caught:
            refuse_secrets([tmp_path / name])
        assert secret not in str(caught.value)


def test_what_a_run_leaves_is_free_of_them(finished_run):
    refuse_secrets([path for path in finished_run.rglob("*") if path.is_file() and is_published(path.name)])


@pytest.mark.parametrize("content", ["hf_" * 90_000, "eyJ-" * 90_000, "sk-" * 90_000, "a://" * 90_000, "\\" * 10**6])
def test_the_search_takes_no_longer_than_the_file_is_long(tmp_path, content):
    (tmp_path / "README.md").write_text(content)
    started = time.process_time()
    refuse_secrets([tmp_path / "README.md"])
    assert time.process_time() - started < 5


def test_what_only_resembles_a_secret_goes_through(tmp_path, monkeypatch):
    """A pattern in binary weights, which is chance, and a short value of a secret variable."""
    monkeypatch.setenv("DB_PASSWORD", "abc")
    weights, text = tmp_path / "model.safetensors", tmp_path / "README.md"
    weights.write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}" + b"AKIA" + b"A1B2C3D4E5F6G7H8")
    text.write_text(
        "abc risk-management-of-2-something-very-long hf_hub_download eos_token: </s> batch_tokens=4096 http://x:8/@y"
    )
    refuse_secrets([weights, text])
