"""What must never be uploaded."""

import pytest

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.publishing import hub
from pipeline.publishing.secrets import refuse_secrets
from tests.conftest import HUB
from tests.hub_server import WRITER

pytestmark = pytest.mark.usefixtures("little_sleep")


@pytest.mark.parametrize("secret", [WRITER, "hf_" + "aB3" * 12, "AKIA" + "A1B2C3D4E5F6G7H8", "ghp_" + "z" * 36])
def test_what_looks_like_a_token_is_not_uploaded(finished_folder, hub_name, secret):
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    (finished_folder / "run.yaml").write_text(f"data:\n  options: {{token: {secret}}}\n")
    with pytest.raises(ConfigError, match=r"run.yaml:2 holds what looks like an access token; nothing was uploaded"):
        hub.upload(finished_folder, hub_name, "x", 0)
    assert len(HUB.commits(hub_name)) == 1


def test_an_environment_variable_in_the_weights_is_found(finished_folder, hub_name, monkeypatch):
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    path = finished_folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"0123456789abcdef0123")
    with pytest.raises(ConfigError, match=r"model.safetensors:\d+ holds what looks like an access token"):
        hub.upload(finished_folder, hub_name, "x", 0)
    assert len(HUB.commits(hub_name)) == 1


def test_what_only_resembles_a_secret_goes_through(tmp_path, monkeypatch):
    """A pattern in binary weights, which is chance, and a short value of a secret variable."""
    monkeypatch.setenv("DB_PASSWORD", "abc")
    weights, text = tmp_path / "model.safetensors", tmp_path / "README.md"
    weights.write_bytes(b"\0" + b"AKIA" + b"A1B2C3D4E5F6G7H8")
    text.write_text("abc")
    refuse_secrets([weights, text])
