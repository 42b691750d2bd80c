"""The Hub, as unmodified clients and this project see it, with and without faults."""

import base64
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.publishing import hub
from pipeline.publishing.forms import is_published, list_files
from pipeline.run import train
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.trained_model import load_trained
from tests.conftest import HUB, ROOT
from tests.hub_data import ROWS, as_jsonl
from tests.hub_server import READER, WRITER

REAL_SLEEP = time.sleep
pytestmark = pytest.mark.usefixtures("little_sleep")
SMALL: dict[str, object] = {"validation": None, "test": None, "options": {}}

pytestmark = pytest.mark.usefixtures("little_sleep")


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


def test_round_trip(make_config, data_set, tmp_path, caplog):
    """Streamed from the Hub, trained, published in one commit without a warning, and loaded by only transformers."""
    caplog.set_level(logging.WARNING, "pipeline")
    data, commit = data_set(private=True, validation=ROWS[:8], test=ROWS[:8])
    HUB.add(data, {"train-0.jsonl": as_jsonl(ROWS[:1])})  # what is pinned is the head when the run starts
    pinned = HUB.commits(data, "datasets")[-1]["oid"]
    name = f"{data}-model"
    folder = train(push_config(make_config, name, data)).output_dir
    doubts = [record for record in caplog.records if record.name == "pipeline.run"]  # of so small a data set
    assert caplog.records == doubts
    (folder / ".env").write_text(WRITER)
    first, last = HUB.commits(name)
    assert files_of(first) == set() and files_of(last) == EVERY_FILE
    state = json.loads((folder / "checkpoint-4" / "run_state.json").read_text())
    assert {*state["revisions"].values()} == {pinned} != {commit}
    text = HUB.blobs()[last["files"]["README.md"]["sha256"]].decode()
    assert f"at revision `{pinned}`" in text and "`apache-2.0`" in text
    card_data = ModelCard(text).data
    assert card_data.datasets == [data] and card_data.license == "apache-2.0"
    assert {result.dataset_revision for result in card_data.eval_results} == {pinned}
    assert not any(result.metric_type.startswith("skipped") for result in card_data.eval_results)
    for content in HUB.blobs().values():
        assert WRITER.encode() not in content and base64.b64encode(WRITER.encode())[:30] not in content
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, "a b 7"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ids, one, two, config = json.loads(done.stdout.split("RESULT")[1])
    model, task = load_trained(folder)
    assert task.tokenizer is not None
    expected = model.generate(**task.tokenizer("a b 7", return_tensors="pt")).tolist()
    assert ids == expected and config == "Seq2SeqTransformerConfig"
    texts = task.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert one == [{"translation_text": texts[0]}]
    assert len(two) == 2 and set(two[0]) == {"translation_text"}


def test_a_resumed_run_keeps_the_revision(make_config, data_set, monkeypatch):
    data, commit = data_set()
    config = make_config(data={**SMALL, "path": data, "streaming": True}, training={"eval_strategy": "no"})
    folder = train(config).output_dir
    expected = load_file(folder / "model.safetensors")
    HUB.add(data, {"train-0.jsonl": as_jsonl([{"source": "x", "target": "y"}])})
    (folder / "metrics.json").unlink()
    subprocess.run(["rm", "-r", str(folder / "checkpoint-4")], check=True)
    assert all(
        torch.equal(tensor, expected[name])
        for name, tensor in load_file(train(config).output_dir / "model.safetensors").items()
    )
    revisions = json.loads((folder / "checkpoint-4" / "run_state.json").read_text())["revisions"]
    assert {*revisions.values()} == {commit}


def test_only_named_files_are_published():
    """What loading needs, what tells how the model was made, and the pictures of the tasks."""
    assert all(is_published(name) for name in EVERY_FILE | set(Forecasting.pictures))
    for name in (".env", "manifest.json", "run_state.json", "optimizer.pt", "train.jsonl", "notes.png"):
        assert not is_published(name), name


def test_links_are_not_followed(finished_folder, hub_name, tmp_path):
    """Neither one that has the name of a file of a model, nor that of the folder for what waits."""
    (tmp_path / "private.txt").write_text("private")
    (finished_folder / "merges.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(ConfigError, match=r"run/merges.txt is a link; only files of the folder itself are published"):
        hub.publish(finished_folder, hub_name)
    assert not HUB.commits(hub_name)
    (finished_folder / ".outbox").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"run/.outbox is a link; remove it"):
        hub.Publisher(HubConfig(push=True, model_id=hub_name), finished_folder, lambda parcel: None)


def test_a_link_in_a_checkpoint_stays_at_home(make_config, finished_folder, hub_name, tmp_path, caplog):
    (tmp_path / "private.txt").write_text("private")
    (finished_folder / "checkpoint-4" / "merges.txt").symlink_to(tmp_path / "private.txt")
    settings = HubConfig(push=True, model_id=hub_name)
    hub.prepare(settings)
    publisher = hub.Publisher(settings, finished_folder, lambda parcel: None)
    publisher.on_save(SimpleNamespace(output_dir=finished_folder), SimpleNamespace(global_step=4), None)
    deadline = time.monotonic() + 60
    while "is a link" not in caplog.text and time.monotonic() < deadline:
        REAL_SLEEP(0.01)
    publisher.finish()
    assert "merges.txt is a link" in caplog.text and len(HUB.commits(hub_name)) == 1


def test_every_save_is_published_and_loads(make_config, hub_name):
    """Each intermediate commit holds all that loading needs; the last is the finished model."""
    config = push_config(make_config, hub_name, training={"max_steps": 6, "save_steps": 2}, every_save=True)
    folder = train(config).output_dir
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


STOCK_FILES = {name for name in EVERY_FILE if not name.endswith(".py")}


def contents(commit: dict) -> dict[str, bytes]:
    return {name: HUB.blobs()[file["sha256"]] for name, file in commit["files"].items()}


def test_a_repository_changes_its_form_without_a_trace(finished_run, hub_name):
    """One commit each way; what somebody else put there stays, and the model is the same in each."""
    kept = {"LICENSE": b"mine", "app.py": b"mine", "notes/config.json": b"mine", ".gitattributes": b"mine"}
    hub.publish(finished_run, hub_name)
    own = contents(HUB.commits(hub_name)[-1])
    assert own.keys() == EVERY_FILE
    HUB.add(hub_name, kept | {"model-00001-of-00002.safetensors": b"of another model"}, "models")
    hub.publish(finished_run, hub_name, form="transformers")
    stock = contents(HUB.commits(hub_name)[-1])
    assert stock.keys() == STOCK_FILES | kept.keys()
    assert {"auto_map", "custom_pipelines"}.isdisjoint(json.loads(stock["config.json"]))
    assert b"trust_remote_code=True" not in stock["README.md"] and hub_name.encode() in stock["README.md"]
    assert ModelCard(stock["README.md"].decode()).data.to_dict() == ModelCard(own["README.md"].decode()).data.to_dict()
    model, task = load_trained(finished_run)
    assert task.tokenizer is not None
    inputs = task.tokenizer(["1 2 3", "7 5"], padding=True, return_tensors="pt")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(hub_name)
    assert (
        AutoTokenizer.from_pretrained(hub_name)(["1 2 3", "7 5"], padding=True)["input_ids"]
        == inputs["input_ids"].tolist()
    )
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))
    hub.publish(finished_run, hub_name, form="transformers", with_pipeline=True)
    assert files_of(HUB.commits(hub_name)[-1]) == STOCK_FILES | {"translation_pipeline.py"} | kept.keys()
    translate = pipeline("translation", model=hub_name, trust_remote_code=True)
    assert translate("1 2 3") == [
        {"translation_text": task.tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)}
    ]
    hub.publish(finished_run, hub_name)
    assert contents(HUB.commits(hub_name)[-1]) == own | kept
    assert len(HUB.commits(hub_name)) == 6


@pytest.mark.slow
def test_a_run_pushes_one_form_from_first_to_last(make_config, finished_run, hub_name):
    """Also into a repository of the other; its weights are those of a run that pushes nothing."""
    HUB.add(hub_name, {"modeling_seq2seq.py": b"", "README.md": b"old", "LICENSE": b"mine"}, "models")
    config = push_config(make_config, hub_name, every_save=True, form="transformers")
    folder = train(config).output_dir
    assert_equal_weights(folder, finished_run)
    commits = HUB.commits(hub_name)[2:]
    assert commits[-1]["title"] == "Finished model" and commits[0]["title"].startswith("Step ")
    for commit in commits:
        assert files_of(commit) - {"metrics.json"} == (STOCK_FILES | {"LICENSE"}) - {"metrics.json"}
        card = contents(commit)["README.md"].decode()
        assert "loads this model as `PegasusForConditionalGeneration`" in card and hub_name in card
    assert "translation_pipeline.py" in {path.name for path in folder.iterdir()} and not (folder / ".outbox").exists()


def assert_equal_weights(folder: Path, other: Path) -> None:
    expected, found = (load_file(path / "model.safetensors") for path in (other, folder))
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_form_that_the_model_cannot_have_is_refused_before_training(make_config, hub_name, dry_run):
    config = make_config(
        hub={"push": True, "model_id": hub_name, "form": "transformers"}, model={"tie_word_embeddings": False}
    )
    with pytest.raises(ConfigError, match=r"hub.form: .* model.tie_word_embeddings: .* or set hub.form=own"):
        train(config, dry_run=dry_run)


def test_a_failed_push_says_how_to_publish_the_same_form(finished_folder, hub_name):
    (finished_folder / "merges.txt").symlink_to(finished_folder / "run.yaml")
    settings = HubConfig(push=True, model_id=hub_name, form="transformers", with_pipeline=True)
    with pytest.raises(hub.NotPublished, match=f"publish .*run {hub_name} --as transformers --with-pipeline"):
        hub.publish_result(finished_folder, settings)


@pytest.mark.slow
def test_the_stock_form_loads_in_a_fresh_process(finished_run, hub_name, tmp_path):
    """Without code of ours, by what the card shows."""
    hub.publish(finished_run, hub_name, form="transformers")
    code = """
import re, sys
from huggingface_hub import hf_hub_download
card = open(hf_hub_download(sys.argv[1], "README.md")).read()
(block,) = re.findall(r"```python\\n(.*?)```", card, re.S)
exec(block, {})
assert not any("modeling_seq2seq" in name or "transformers_modules" in name for name in sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "elsewhere")
    command = [sys.executable, "-c", code, hub_name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
def test_a_commit_is_tried_again(finished_run, hub_name, fault):
    """Once is enough for stock clients to lose it; here it comes, once."""
    settings = HubConfig(push=True, model_id=hub_name)
    hub.prepare(settings)
    HUB.break_next({"method": "POST", "path": "/commit/", **fault})
    hub.publish_result(finished_run, settings)
    assert [commit["title"] for commit in HUB.commits(hub_name)] == ["initial commit", "Finished model"]


@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch", "/_lfs/", "/api/models/"])
def test_other_calls_of_a_push_are_tried_again(finished_run, hub_name, path):
    settings = HubConfig(push=True, model_id=hub_name)
    HUB.break_next({"path": path, "kind": "status", "status": 503, "times": 8})
    hub.prepare(settings)
    hub.publish_result(finished_run, settings)
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE


def test_large_weights_go_up_in_parts(finished_folder, hub_name):
    """Although parts fail; what arrives is what was sent."""
    weights = {"large": torch.rand(900_000)}
    save_file(weights, finished_folder / "model.safetensors")
    hub.prepare(HubConfig(push=True, model_id=hub_name))
    HUB.break_next(
        {"path": "/part/2", "kind": "reset", "times": 2}, {"path": "/complete", "kind": "status", "status": 503}
    )
    hub.upload(list_files(finished_folder), hub_name, "Large", 60)
    assert sum("/part/" in line for line in HUB.log()) >= 4
    stored = HUB.blobs()[HUB.commits(hub_name)[-1]["files"]["model.safetensors"]["sha256"]]
    assert stored == (finished_folder / "model.safetensors").read_bytes()


def test_a_commit_of_somebody_else_comes_between(finished_run, hub_name, monkeypatch):
    settings = HubConfig(push=True, model_id=hub_name)
    hub.prepare(settings)
    create = hub.HfApi.create_commit

    def after_another(self, *args, **kwargs):
        monkeypatch.setattr(hub.HfApi, "create_commit", create)
        HUB.add(hub_name, {"notes.txt": b"mine"}, "models")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(hub.HfApi, "create_commit", after_another)
    hub.publish_result(finished_run, settings)
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE | {"notes.txt"}


def test_a_push_that_fails_for_good_is_said(make_config, hub_name, caplog):
    """In the log when it happens, and at the end; the training goes on, the local copy stays, and can be published."""
    config = push_config(make_config, hub_name, every_save=True, patience=0.3)
    HUB.break_next({"method": "POST", "path": "/commit/", "kind": "status", "status": 503, "times": 10**6})
    with pytest.raises(
        hub.NotPublished, match=r"run is trained, scored and saved, but not on the Hub: .*teacher-forcing publish"
    ):
        train(config)
    assert f"publishing to {hub_name}: HfHubHTTPError" in caplog.text or "is not on the Hub: " in caplog.text
    HUB.break_next()
    assert train(config).was_finished
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE


def test_a_push_that_is_refused_is_said(make_config, finished_folder, hub_name, caplog):
    """At once: of a checkpoint in the log, of the finished model as an error; the same command publishes it later."""
    config = push_config(make_config, hub_name)
    assert Path(config.training["output_dir"]) == finished_folder
    hub.prepare(config.hub)
    HUB.break_next({"method": "POST", "path": "/commit/", "kind": "status", "status": 401, "times": 10**6})
    publisher = hub.Publisher(config.hub, finished_folder, lambda parcel: None)
    args, state = SimpleNamespace(output_dir=finished_folder), SimpleNamespace(global_step=4)
    publisher.on_save(args, state, None)
    deadline = time.monotonic() + 60
    while "hub: step 4 is not on the Hub: " not in caplog.text and time.monotonic() < deadline:
        REAL_SLEEP(0.01)
    publisher.finish()
    assert "hub: step 4 is not on the Hub: " in caplog.text
    with pytest.raises(
        hub.NotPublished, match=r"run is trained, scored and saved, but not on the Hub: .*teacher-forcing publish"
    ):
        train(config)
    HUB.break_next()
    assert train(config).was_finished
    assert files_of(HUB.commits(hub_name)[-1]) == EVERY_FILE


@pytest.mark.usefixtures("hub")
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
def test_what_a_push_needs_is_checked_before_the_first_step(make_config, monkeypatch, name, token, fault, message):
    config = make_config(hub={"push": True, "model_id": name})
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    if fault:
        HUB.break_next(fault)
    monkeypatch.setattr(hub, "upload", lambda *_: pytest.fail("published"))
    with pytest.raises(ConfigError, match=message):
        train(config)


@pytest.mark.usefixtures("finished_folder")
def test_a_passing_fault_before_the_first_step_is_waited_for(make_config, hub_name):
    HUB.break_next(
        {"path": "/whoami", "kind": "status", "status": 503, "times": 2},
        {"path": "/repos/create", "kind": "status", "status": 503, "times": 2},
    )
    train(push_config(make_config, hub_name))
    assert len(HUB.commits(hub_name)) == 2


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


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "run.yaml"])
def test_a_damaged_model_is_not_published(finished_folder, hub_name, name):
    (finished_folder / "README.md").write_text("a card may be edited")
    content = (finished_folder / name).read_bytes()
    (finished_folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=f"run is damaged: {name} has .* the command that trained it makes"):
        hub.publish(finished_folder, hub_name)
    with pytest.raises(hub.NotPublished, match=f"not on the Hub: .*run is damaged: {name} has"):
        hub.publish_result(finished_folder, HubConfig(push=True, model_id=hub_name))
    assert not HUB.commits(hub_name)


def test_an_unfinished_run_is_not_published(finished_folder, hub_name):
    (finished_folder / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="the run in it is not finished; go on with it, or publish one of its"):
        hub.publish(finished_folder, hub_name)
