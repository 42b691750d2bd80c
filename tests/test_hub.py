import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainerState

from pipeline import hub
from pipeline.config import ConfigError, HubConfig


def test_card_is_true_and_parses(make_config, make_model, tmp_path):
    config = make_config()
    scores = {"test": {"loss": 0.25, "sacrebleu": 41.5, "sacrebleu_signature": "nrefs:1|case:mixed"}}
    text = hub.card(config, make_model(), TrainerState(global_step=1234), scores)
    (tmp_path / "README.md").write_text(text)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": 0.25, "sacrebleu": 41.5}
    for said in (
        "trained from scratch",
        "1,234 optimizer steps",
        "`reversal`",
        "nrefs:1|case:mixed",
        "trust_remote_code",
    ):
        assert said in text
    assert "fine-tuned" not in text


def test_publish_uploads_the_allowed_files_alone(tmp_path, monkeypatch):
    """The client's own filter decides; its two calls over the network are replaced."""
    for name in (
        "model.safetensors",
        "config.json",
        "README.md",
        "run.yaml",
        "modeling_seq2seq.py",
        "training_curves.png",
    ):
        (tmp_path / name).write_text("x")
    for name in (
        ".env",
        "optimizer.pt",
        "training_args.bin",
        "data.jsonl",
        "checkpoint-5/model.safetensors",
        "runs/a/b.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    created, uploaded = {}, []

    def upload_folder(self, *, folder_path, allow_patterns, ignore_patterns, **options):
        files = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        uploaded.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **options: created.update({name: options}))
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    hub.publish(tmp_path, HubConfig(push=True, model_id="me/model"))
    assert created["me/model"]["private"] is True
    assert sorted(uploaded) == sorted(
        ["README.md", "config.json", "model.safetensors", "modeling_seq2seq.py", "run.yaml", "training_curves.png"]
    )


def test_publish_needs_a_name(tmp_path):
    with pytest.raises(ConfigError, match=r"hub.model_id"):
        hub.publish(tmp_path, HubConfig(push=True))
