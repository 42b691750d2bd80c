"""The Hub, as unmodified clients and this project see it, with and without faults."""

import base64
import json
import logging
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainerState,
)

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.publishing import hub
from pipeline.publishing.card import card
from pipeline.run import run
from tests.conftest import HUB, ROOT
from tests.hub_data import ROWS, as_jsonl
from tests.hub_server import READER, WRITER
from tokenizer.training import train as train_tokenizer

REAL_SLEEP = time.sleep
pytestmark = pytest.mark.usefixtures("little_sleep")
SMALL = {"validation": None, "test": None, "options": {}}


def push_config(make_config, name: str, data: str = "reversal", training=None, **hub_settings):
    settings = {"push": True, "model_id": name, "license": "apache-2.0", **hub_settings}
    sections = {"hub": settings, "training": training or {}}
    if data != "reversal":
        sections["data"] = {"path": data, "streaming": True, "options": {}, "validation": "validation", "test": "test"}
    return make_config(**sections)


def files_of(commit: dict) -> set[str]:
    return set(commit["files"])


EVERY_FILE = {
    "README.md",
    "config.json",
    "configuration_seq2seq.py",
    "generation_config.json",
    "metrics.json",
    "linear_cross_entropy.py",
    "model.safetensors",
    "modeling_seq2seq.py",
    "run.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curves.png",
    "transformer_layers.py",
    "translation_pipeline.py",
}

LOAD = r"""
import json, re, sys
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

name, text = sys.argv[1:]
config = AutoConfig.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
assert not any(module.split(".")[0] in ("pipeline", "tokenizer") for module in sys.modules), "needs this package"
ids = model.generate(**tokenizer(text, return_tensors="pt")).tolist()
translate = pipeline("translation", model=name, trust_remote_code=True)
from huggingface_hub import hf_hub_download
card = open(hf_hub_download(name, "README.md")).read()
shown = re.findall(r"```python\n(.*?)```", card, re.S)
assert len(shown) == 2
for block in shown:
    exec(block, {})
print("RESULT" + json.dumps([ids, translate(text), translate([text, text], num_beams=2), type(config).__name__]))
"""


def test_round_trip(make_config, data_set, tmp_path):
    """Streamed from the Hub, trained, published in one commit, and loaded elsewhere by transformers alone."""
    data, commit = data_set(private=True, validation=ROWS[:8], test=ROWS[:8])
    HUB.add(data, {"train-0.jsonl": as_jsonl(ROWS[:1])})  # what is pinned is the head when the run starts
    pinned = HUB.commits(data, "datasets")[-1]["oid"]
    name = f"{data}-model"
    folder = run(push_config(make_config, name, data)).output_dir
    (folder / ".env").write_text(WRITER)
    first, last = HUB.commits(name)
    assert files_of(first) == set() and files_of(last) == EVERY_FILE
    state = json.loads((folder / "checkpoint-4" / "run_state.json").read_text())
    assert state["revision"] == pinned != commit
    text = HUB.blobs()[last["files"]["README.md"]["sha256"]].decode()
    assert f"at revision `{pinned}`" in text and "`apache-2.0`" in text
    result = card_data = ModelCard(text).data
    assert card_data.datasets == [data] and card_data.license == "apache-2.0"
    assert {each.dataset_revision for each in result.eval_results} == {pinned}
    assert not any(each.metric_type.startswith("skipped") for each in result.eval_results)
    for content in HUB.blobs().values():
        assert WRITER.encode() not in content and base64.b64encode(WRITER.encode())[:30] not in content
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, "a b 7"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ids, one, two, config = json.loads(done.stdout.split("RESULT")[1])
    from pipeline.tasks.registry import load

    model, task = load(folder)
    expected = model.generate(**task.tokenizer("a b 7", return_tensors="pt")).tolist()
    assert ids == expected and config == "Seq2SeqTransformerConfig"
    texts = task.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert one == [{"translation_text": texts[0]}]
    assert len(two) == 2 and set(two[0]) == {"translation_text"}


def test_a_resumed_run_keeps_the_revision(make_config, data_set, monkeypatch):
    data, commit = data_set()
    config = make_config(data={**SMALL, "path": data, "streaming": True}, training={"eval_strategy": "no"})
    folder = run(config).output_dir
    expected = load_file(folder / "model.safetensors")
    HUB.add(data, {"train-0.jsonl": as_jsonl([{"source": "x", "target": "y"}])})
    (folder / "metrics.json").unlink()
    subprocess.run(["rm", "-r", str(folder / "checkpoint-4")], check=True)
    assert all(
        torch.equal(tensor, expected[name])
        for name, tensor in load_file(run(config).output_dir / "model.safetensors").items()
    )
    assert json.loads((folder / "checkpoint-4" / "run_state.json").read_text())["revision"] == commit


def test_every_save_is_published_and_loads(make_config, hub_name):
    """Each intermediate commit holds all that loading needs; the last is the finished model."""
    config = push_config(make_config, hub_name, training={"max_steps": 6, "save_steps": 2}, every_save=True)
    folder = run(config).output_dir
    commits = HUB.commits(hub_name)[1:]
    assert [commit["title"] for commit in commits][-1] == "Finished model"
    assert len(commits) >= 2 and all(commit["title"].startswith("Step ") for commit in commits[:-1])
    for commit in commits[:-1]:
        assert files_of(commit) == EVERY_FILE - {"metrics.json"}
        text = HUB.blobs()[commit["files"]["README.md"]["sha256"]].decode()
        step = commit["title"].removeprefix("Step ")
        assert f"for {step} {'' if step == '6' else 'of 6 '}optimizer steps" in text
    weights = HUB.blobs()[commits[-1]["files"]["model.safetensors"]["sha256"]]
    assert weights == (folder / "model.safetensors").read_bytes()
    assert not (folder / ".outbox").exists()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 503, "times": 12},
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "reset"},
        {"kind": "lost"},
    ],
    ids=["503", "503 for long", "429", "reset", "answer lost"],
)
def test_a_commit_is_tried_again(make_config, hub_name, fault):
    """Once is enough for stock clients to lose it; here it comes, once."""
    HUB.break_next({"method": "POST", "path": "/commit/", **fault})
    run(push_config(make_config, hub_name))
    assert [commit["title"] for commit in HUB.commits(hub_name)] == ["initial commit", "Finished model"]


@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch", "/_lfs/", "/api/models/"])
def test_other_calls_of_a_push_are_tried_again(make_config, hub_name, path):
    HUB.break_next({"path": path, "kind": "status", "status": 503, "times": 8})
    run(push_config(make_config, hub_name))
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE


def test_large_weights_go_up_in_parts(make_config, hub_name):
    """Each part once failing; what arrives is what was sent."""
    folder = run(make_config()).output_dir
    weights = {"large": torch.rand(900_000)}
    save_file(weights, folder / "model.safetensors")
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    HUB.break_next(
        {"path": "/part/2", "kind": "reset", "times": 2}, {"path": "/complete", "kind": "status", "status": 503}
    )
    hub.publish(folder, hub_name, "Large", 60)
    assert sum("/part/" in line for line in HUB.log()) >= 4
    stored = HUB.blobs()[HUB.commits(hub_name)[-1]["files"]["model.safetensors"]["sha256"]]
    assert stored == (folder / "model.safetensors").read_bytes()


def test_a_commit_of_somebody_else_comes_between(make_config, hub_name, monkeypatch):
    create = hub.HfApi.create_commit

    def after_another(self, *args, **kwargs):
        monkeypatch.setattr(hub.HfApi, "create_commit", create)
        HUB.add(hub_name, {"notes.txt": b"mine"}, "models")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(hub.HfApi, "create_commit", after_another)
    run(push_config(make_config, hub_name))
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE | {"notes.txt"}


@pytest.mark.parametrize("status", [503, 401])
def test_a_push_that_fails_for_good_is_said(make_config, hub_name, status, caplog):
    """In the log when it happens, and at the end; the training goes on, the local copy stays, and can be published."""
    config = push_config(make_config, hub_name, every_save=True, patience=0.3)
    HUB.break_next({"method": "POST", "path": "/commit/", "kind": "status", "status": status, "times": 10**6})
    with pytest.raises(hub.NotPublished, match=r"run is trained, scored and saved, but not on the Hub: .*publish.py"):
        run(config)
    assert f"publishing to {hub_name}: HfHubHTTPError" in caplog.text or "is not on the Hub: " in caplog.text
    HUB.break_next()
    assert run(config).was_finished
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE


@pytest.mark.parametrize(
    "name, token, fault, message",
    [
        (None, WRITER, {}, r"hub.model_id: name the repository to push to as owner/name \(given: None\)"),
        ("me/x", None, {}, "hub.push: there is no login; log in by `hf auth login`, or set HF_TOKEN"),
        ("me/x", "hf_unknown", {}, "hub.push: the Hub does not know this login"),
        ("me/x", READER, {}, "hub.push: this token may only read; make one that may write"),
        ("you/x", WRITER, {}, "hub.model_id: me cannot write to you/; there are: me, team"),
        ("me/x", WRITER, {"path": "/repos/create", "kind": "status", "status": 403, "times": 9}, "no access to me/x"),
    ],
)
def test_what_a_push_needs_is_checked_before_the_first_step(make_config, hub, monkeypatch, name, token, fault, message):
    from pipeline.publishing import hub as module

    config = make_config(hub={"push": True, "model_id": name})
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    if fault:
        HUB.break_next(fault)
    monkeypatch.setattr(module, "publish", lambda *_: pytest.fail("published"))
    with pytest.raises(ConfigError, match=message):
        run(config)


def test_a_passing_fault_before_the_first_step_is_waited_for(make_config, hub_name):
    HUB.break_next(
        {"path": "/whoami", "kind": "status", "status": 503, "times": 2},
        {"path": "/repos/create", "kind": "status", "status": 503, "times": 2},
    )
    run(push_config(make_config, hub_name))
    assert len(HUB.commits(hub_name)) == 2


@pytest.mark.parametrize("secret", [WRITER, "hf_" + "aB3" * 12, "AKIA" + "A1B2C3D4E5F6G7H8", "ghp_" + "z" * 36])
def test_what_looks_like_a_token_is_not_uploaded(make_config, hub_name, secret):
    folder = run(make_config()).output_dir
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    (folder / "run.yaml").write_text(f"data:\n  options: {{token: {secret}}}\n")
    with pytest.raises(ConfigError, match=r"run.yaml:2 holds what looks like an access token; nothing was uploaded"):
        hub.publish(folder, hub_name, "x", 0)
    assert len(HUB.commits(hub_name)) == 1


def test_an_environment_variable_in_the_weights_is_found(make_config, hub_name, monkeypatch):
    folder = run(make_config()).output_dir
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"0123456789abcdef0123")
    with pytest.raises(ConfigError, match=r"model.safetensors:\d+ holds what looks like an access token"):
        hub.publish(folder, hub_name, "x", 0)


def test_the_card_is_true_and_parses(make_config, make_model):
    config = make_config()
    scores = {"test": {"loss": 0.25, "sacrebleu": 41.5, "sacrebleu_signature": "nrefs:1|case:mixed"}}
    text = card(config, make_model(), TrainerState(global_step=1234, max_steps=1234), scores, 'say "x"')
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.datasets is None and data.base_model is None
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"loss": 0.25, "sacrebleu": 41.5}
    for said in ("trained from scratch", "1,234 optimizer steps", "`reversal`", "nrefs:1|case:mixed", "Not stated"):
        assert said in text
    assert "fine-tuned" not in text and r'translate("say \"x\"")' in text


# Fine-tuning


@pytest.fixture
def pretrained(tmp_path):
    """A small random model of a family, with a tokenizer, as a folder."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    common = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "dropout": 0.0}

    def make(family: str):
        tokenizer = train_tokenizer([row["source"] for row in ROWS] * 2, "word", 400, max_length=64)
        size = {"vocab_size": len(tokenizer), **common}
        torch.manual_seed(0)
        if family == "marian":
            model = MarianMTModel(MarianConfig(**size, **sizes, decoder_start_token_id=0, forced_eos_token_id=None))
        elif family == "bart":
            model = BartForConditionalGeneration(BartConfig(**size, **sizes, decoder_start_token_id=2))
        else:
            t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
            model = T5ForConditionalGeneration(T5Config(**(size | t5), decoder_start_token_id=0))
        folder = tmp_path / family
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def fine_tune(make_config, pairs, source, folder, rows: int, accumulation: int, **model):
    training = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "label_smoothing_factor": 0.1,
    }
    data = {"path": str(pairs), "options": {}, "validation": None, "test": "test", "max_source_length": 60}
    data["max_target_length"] = 60
    return run(make_config(model={"from": str(source), **model}, training=training, data=data))


@pytest.mark.parametrize("family", ["marian", "bart", "t5"])
def test_micro_batches_change_nothing_for_other_models(make_config, make_pairs, pretrained, tmp_path, family):
    """Steps of the same eight rows as 8 x 1 and 2 x 4: their own losses would grow with the accumulation."""
    source, pairs = pretrained(family), make_pairs(rows=8)
    config = make_config()  # the base has sizes of our own model, which others do not know
    config.model.clear()

    def make(**changes):
        made = make_config(**changes)
        made.model.clear()
        made.model.update(changes["model"])
        return made

    whole = fine_tune(make, pairs, source, tmp_path / "whole", 8, 1)
    parts = fine_tune(make, pairs, source, tmp_path / "parts", 2, 4)
    expected, before = (load_file(path / "model.safetensors") for path in (whole.output_dir, source))
    got = load_file(parts.output_dir / "model.safetensors")
    assert any(not torch.equal(got[name], before[name]) for name in before)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-4)
    losses = [
        [
            entry["loss"]
            for entry in TrainerState.load_from_json(
                result.output_dir / "checkpoint-4" / "trainer_state.json"
            ).log_history
            if "loss" in entry
        ]
        for result in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]
    assert parts.scores["test"]["loss"] == pytest.approx(whole.scores["test"]["loss"], rel=1e-4)


def test_fine_tuning_from_the_hub(make_config, hub_name):
    """A published model of our own: its weights, its tokenizer, and a card that says so."""
    first = run(push_config(make_config, hub_name)).output_dir

    def make(**changes):
        made = make_config(**changes)
        made.model.clear()
        made.model.update({"from": hub_name, "dropout": 0.0})
        return made

    training = {"output_dir": str(first) + "-2", "max_steps": 2, "learning_rate": 0.0}
    folder = run(make(training=training, hub={"push": True, "model_id": f"{hub_name}-2"})).output_dir
    before, after = (load_file(path / "model.safetensors") for path in (first, folder))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((folder / "config.json").read_text())["dropout"] == 0.0
    assert (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
        == AutoTokenizer.from_pretrained(first, trust_remote_code=False).get_vocab()
    )
    text = (folder / "README.md").read_text()
    assert f"fine-tuned from `{hub_name}`" in text and ModelCard(text).data.base_model == hub_name
    assert files_of(HUB.commits(f"{hub_name}-2")[-1]) == EVERY_FILE
    HUB.stop()  # a resumed run needs the pretrained model no more
    (folder / "metrics.json").unlink()
    assert run(make(training=training)).output_dir == folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"from": "me/no-such-model"}, "model.from: there is no me/no-such-model on the Hub, or it is private"),
        ({"from": "no-such-folder"}, "model.from: 'no-such-folder' is no folder on this machine"),
        ({"from": 7}, "model.from: 7 is no folder and no owner/name"),
        ({"from": "me/picked"}, "me/picked has no weights in safetensors"),
    ],
)
def test_a_pretrained_model_that_cannot_be_had(make_config, hub, changes, message):
    HUB.add("me/picked", {"config.json": b"{}", "pytorch_model.bin": b"x"}, "models")
    config = make_config(training={"eval_strategy": "no"})
    config.model.clear()
    config.model.update(changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(config)


def test_settings_of_a_pretrained_model_are_checked(make_config, pretrained):
    config = make_config(data={"max_source_length": 60, "max_target_length": 60})
    config.model.clear()
    config.model.update({"from": str(pretrained("marian")), "droput": 0.2})
    with pytest.raises(ConfigError, match=r"model.droput: MarianConfig has no such field; did you mean dropout\?"):
        run(config)
    config = make_config(data={"max_source_length": 128})
    config.model.clear()
    config.model["from"] = str(pretrained("marian"))
    with pytest.raises(ConfigError, match=r"data.max_source_length: 128 is more than the 64 positions of model.from"):
        run(config)


def test_logging_is_quiet_without_faults(make_config, hub_name, caplog):
    caplog.set_level(logging.WARNING, "pipeline")
    run(push_config(make_config, hub_name))
    assert not caplog.records


@pytest.mark.slow
def test_a_hub_that_is_gone_for_half_a_minute_costs_nothing(make_config, data_set, tmp_path):
    """Killed while a training streams from it and pushes every checkpoint to it, and back after thirty seconds."""
    data, _ = data_set("parquet", validation=ROWS[:8], test=ROWS[:8])

    def start(name: str) -> subprocess.Popen:
        training = {"max_steps": 600, "save_steps": 100, "eval_strategy": "no", "logging_steps": 10}
        training |= {"output_dir": str(tmp_path / name), "report_to": "none", "use_cpu": True}
        sections = {"data": {"path": data, "streaming": True, "options": {}, "test": "test", "shuffle_window": 40}}
        sections |= {"hub": {"push": True, "model_id": f"{data}-{name}", "every_save": True}, "training": training}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(make_config(**sections).model_dump()))
        log = (tmp_path / f"{name}.log").open("w")
        return subprocess.Popen(
            [sys.executable, "scripts/train.py", str(tmp_path / f"{name}.yaml")], cwd=ROOT, stdout=log, stderr=log
        )

    assert start("quiet").wait() == 0
    disturbed = start("disturbed")
    while "'loss'" not in (tmp_path / "disturbed.log").read_text() and disturbed.poll() is None:
        REAL_SLEEP(0.02)
    HUB.stop()
    REAL_SLEEP(30)
    HUB.start()
    log = (tmp_path / "disturbed.log").read_text
    assert disturbed.wait() == 0, log()
    assert "trying again in" in log() or "Retrying" in log()
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("quiet", "disturbed"))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    last = HUB.commits(f"{data}-disturbed")[-1]
    assert last["title"] == "Finished model" and files_of(last) == EVERY_FILE
