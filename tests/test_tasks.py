"""Every task but pairs of texts, through `pipeline.run`: what a run leaves, and that it goes on where it stopped."""

import csv
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from pipeline.errors import ConfigError, DataError, RunError
from pipeline.inference.generation import generate
from pipeline.run import run
from pipeline.tasks.registry import load
from tests.conftest import HUB, ROOT, TINY

NO_METRICS = {"metrics": [], "show": 0}


@pytest.fixture
def make_task(tmp_path, make_config):
    """Makes data of one task, and the config of a run of seconds on them."""

    def make(task, **changes):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        values = {name: dict(section) for name, section in WRITERS[task](folder).items()}
        for name, section in changes.items():
            values[name] = values.get(name, {}) | section
        config = make_config(**values)
        config.model.clear()
        config.model.update(values["model"])
        return config.model_copy(update={"task": task})

    return make


def write_classes(folder):
    generator = random.Random(0)
    for split, count in (("train", 48), ("validation", 8), ("test", 8)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for _ in range(count):
                words = generator.choices("abcdefgh", k=generator.randint(1, 6))
                print(json.dumps({"text": " ".join(words), "label": int("a" in words)}), file=stream)
    return {
        "data": {"path": str(folder), "source": "text", "target": "label", "options": {}},
        "model": {name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")},
        "evaluation": {"metrics": ["macro_f1"], "show": 1},
        "generation": {"max_new_tokens": 128},
    }


def write_text(folder):
    generator = random.Random(0)
    paragraphs = [
        " ".join(generator.choices(["Anna", "and", "the", "prince", "went", "home"], k=30)) + "." for _ in range(40)
    ]
    (folder / "novel.txt").write_text("\n\n".join(paragraphs))
    return {
        "data": {
            "path": str(folder / "novel.txt"),
            "options": {"sample_by": "paragraph"},
            "source": "text",
            "train": "train[:80%]",
            "validation": "train[80%:90%]",
            "test": "train[90%:]",
            "bptt": 8,
        },
        "tokenizer": {"kind": "word_punct"},
        "model": {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.1},
        "evaluation": NO_METRICS,
    }


def write_series(folder):
    steps = np.arange(120)
    rows = np.stack([np.sin(steps / 3) * 5 + 20, np.cos(steps / 5), steps / 10], 1)
    with (folder / "power.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["date", "HUFL", "OT", "load"], *([f"t{n}", *row] for n, row in enumerate(rows))])
    return {
        "data": {
            "path": str(folder / "power.csv"),
            "options": {},
            "series": ["HUFL", "OT"],
            "train": "train[:80]",
            "validation": "train[68:100]",
            "test": "train[88:120]",
        },
        "model": {
            **{name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")},
            **{"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2},
        },
        "evaluation": NO_METRICS,
    }


WRITERS = {"text_classification": write_classes, "language_modeling": write_text, "forecasting": write_series}


def rewind(folder, step):
    """Puts a finished run back to the moment at which it had written a checkpoint."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    "task, changes",
    [
        ("text_classification", {}),
        ("text_classification", {"augmentation": {"swap": 0.2, "delete": 0.2, "insert": 0.2}}),
        ("language_modeling", {}),
        ("language_modeling", {"training": {"gradient_accumulation_steps": 2}}),
        ("forecasting", {}),
    ],
    ids=["classification", "augmented", "lstm", "lstm-accumulating", "forecasting"],
)
def test_a_resumed_run_is_the_uninterrupted_one(make_task, task, changes):
    """Bit by bit; the carried state, and the noise on the rows, are part of it."""
    config = make_task(task, **changes)
    first = run(config)
    weights = load_file(first.output_dir / "model.safetensors")
    rewind(first.output_dir, 2)
    again = run(config)
    assert again.scores == first.scores and not again.was_finished
    for name, tensor in load_file(again.output_dir / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_classification(make_task):
    result = run(make_task("text_classification", data={"labels": ["without", "with"]}))
    folder = result.output_dir
    assert set(result.scores["test"]) == {"loss", "accuracy", "macro_f1"}
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "without", 1: "with"}
    assert not (folder / "generation_config.json").exists()
    classify = pipeline("text-classification", model=str(folder))
    answer = classify("a b c")
    own, task = load(folder)
    assert [answer[0]["label"]] == generate(own, task, ["a b c"])
    inputs = AutoTokenizer.from_pretrained(folder)("a b c", return_tensors="pt")
    probability = model(input_ids=inputs["input_ids"]).logits.softmax(-1).max().item()
    assert answer[0]["score"] == pytest.approx(probability, abs=1e-5)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "class in column `label` of the text" in card
    assert not any(word in model.config.to_dict() for word in ("custom_pipelines", "embeddings"))
    right = sum(each.prediction == each.reference for each in result.last.predictions) / 8
    assert result.scores["test"]["accuracy"] == right


def test_classes_do_not_reach_the_vocabulary(make_task):
    config = make_task("text_classification", tokenizer={"kind": "word"})
    tokenizer = AutoTokenizer.from_pretrained(run(config).output_dir)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"}


def test_an_unseen_class_in_validation(make_task, tmp_path):
    config = make_task("text_classification")
    with (tmp_path / "data" / "validation.jsonl").open("a") as stream:
        print(json.dumps({"text": "a b", "label": 7}), file=stream)
    with pytest.raises(DataError, match=r"validation\.jsonl:9: target '7' is no class of the training"):
        run(config)


@pytest.mark.parametrize("trainable", [True, False, "both"])
def test_word_vectors(make_task, tmp_path, trainable):
    """They join the vocabulary, are kept or tuned, and are not needed any more when the run goes on."""
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {n} {n * n} 1 0.5\n" for n, word in enumerate(["a", "b", "unseen"])))
    config = make_task(
        "text_classification",
        tokenizer={"kind": "word", "words": str(path)},
        model={"embeddings": {"path": str(path), "trainable": trainable}},
    )
    folder = run(config).output_dir
    before = load_file(folder / "checkpoint-2" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    learned, static = "encoder.embed_tokens.weight", "encoder.static_tokens.weight"
    assert torch.equal(before[learned], after[learned]) is not trainable
    assert (static in after) is (trainable == "both")
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert "unseen" in vocabulary
    if static in after:
        assert torch.equal(before[static], after[static])
        with_vector = after[static].any(-1).nonzero().squeeze(1).tolist()
        assert sorted(with_vector) == sorted(vocabulary[word] for word in ("a", "b", "unseen"))
    rewind(folder, 2)
    path.unlink()
    run(config)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("given", ["glove.txt", {"path": "x"}, {"path": "x", "trainable": 1}])
def test_word_vectors_wrongly_asked_for(make_task, given):
    with pytest.raises(ConfigError, match=r"model\.embeddings: write \{path: FILE, trainable: true\}"):
        run(make_task("text_classification", model={"embeddings": given}))


def test_word_vectors_beside_learned_ones_need_a_model_for_them(make_task):
    model = {"embeddings": {"path": "x", "trainable": "both"}}
    with pytest.raises(ConfigError, match=r"model\.embeddings: language_modeling has no place for both"):
        run(make_task("language_modeling", model=model))


def test_a_language_model(make_task):
    result = run(make_task("language_modeling"))
    folder, scores = result.output_dir, result.scores["test"]
    assert set(scores) == {"loss", "perplexity", "token_accuracy"}
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("Anna and the prince", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.eos_token_id != prompt["input_ids"][0, -1]
    torch.manual_seed(0)
    ids = model.generate(**prompt, do_sample=True, top_k=10, temperature=0.6, max_new_tokens=12)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text.startswith("Anna and the prince") and " ." not in text
    own, task = load(folder)
    answers = generate(own, task, ["Anna and the", "the prince went home"])
    assert [answer[: len("Anna and the")] for answer in answers[:1]] == ["Anna and the"]
    assert answers[0] == generate(own, task, ["Anna and the"])[0]  # padded to the longer one, or alone
    with pytest.raises(ConfigError, match="prompt 2 is empty"):
        generate(own, task, ["Anna", " "])
    assert "pipeline_tag: text-generation" in (folder / "README.md").read_text()


@pytest.mark.parametrize("tokenizer", [{"kind": "character"}, {"kind": "bpe", "vocab_size": 270}])
def test_other_vocabularies_of_a_language_model(make_task, tokenizer):
    model, task = load(run(make_task("language_modeling", tokenizer=tokenizer)).output_dir)
    prompt = "Anna and the prince"
    assert generate(model, task, [prompt])[0].startswith(prompt)
    assert len(task.encode({"source": [prompt], "row": [0]})[0]["input_ids"]) > 5  # the words are no tokens


def test_a_language_model_is_scored_over_the_whole_text(make_task, tmp_path):
    """Each token once, with what came before it in its stream; sixteen streams cost it little context."""
    folder = run(make_task("language_modeling")).output_dir
    model, task = load(folder)
    text = (tmp_path / "data" / "novel.txt").read_text().split("\n\n")[36:]
    ids = torch.tensor([[*(each for part in text for each in task.tokenizer(part)["input_ids"]), 2]])
    scores = json.loads((folder / "metrics.json").read_text())["test"]
    length = math.ceil((ids.shape[1] - 1) / 16)
    losses = [
        model(input_ids=ids[:, start : start + length], shift_labels=ids[:, start + 1 : start + 1 + length])
        for start in range(0, ids.shape[1] - 1, length)
    ]
    sizes = [min(length, ids.shape[1] - 1 - start) for start in range(0, ids.shape[1] - 1, length)]
    losses = [
        torch.nn.functional.cross_entropy(output.logits[0, :size], ids[0, n * length + 1 :][:size], reduction="sum")
        for n, (output, size) in enumerate(zip(losses, sizes, strict=True))
    ]
    assert scores["loss"] == pytest.approx(sum(losses).item() / (ids.shape[1] - 1), rel=1e-5)


def test_streams_of_text_are_contiguous(make_task):
    """Row r of each batch goes on where row r of the batch before it ended, over processes as well."""
    folder = run(make_task("language_modeling")).output_dir
    _, task = load(folder)
    features = task.encode({"source": ["Anna and the prince went home."] * 40, "row": list(range(40))})
    for world_size in (1, 2):
        task.bptt = 8
        batches = task.arrange(3, world_size)(features, np.random.default_rng(0))
        streams = [[[] for _ in range(3)] for _ in range(world_size)]
        for number, batch in enumerate(batches):
            assert all(each["is_first"] == (number < world_size) for each in batch)
            for row, each in enumerate(batch):
                rest = streams[number % world_size][row]
                assert not rest or rest[-1] == each["input_ids"][0]
                rest.extend(each["labels"])
        flat = [each for rank in streams for row in rank for each in row if each != -100]
        everything = [each for feature in features for each in feature["input_ids"]][1:]
        assert flat == [*everything, task.tokenizer.eos_token_id]


def test_the_state_of_other_processes_is_refused(make_task):
    config = make_task("language_modeling")
    folder = run(config).output_dir
    rewind(folder, 2)
    checkpoint = folder / "checkpoint-2"
    shutil.copy(checkpoint / "carried_0.safetensors", checkpoint / "carried_1.safetensors")
    with pytest.raises(RunError, match="holds the states of 2 processes"):
        run(config)


@pytest.mark.parametrize("task", ["language_modeling", "forecasting"])
def test_what_has_no_source_cannot_be_augmented_nor_compared(make_task, task):
    with pytest.raises(ConfigError, match=f"augmentation: {task} has no source to change"):
        run(make_task(task, augmentation={"delete": 0.1}))
    with pytest.raises(ConfigError, match=r"evaluation\.metrics: .* is scored by loss, .* alone; give \[\]"):
        run(make_task(task, evaluation={"metrics": ["exact_match"]}))


def test_forecasting(make_task):
    result = run(make_task("forecasting"))
    folder, scores = result.output_dir, result.scores["test"]
    assert (folder / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    model = AutoModel.from_pretrained(folder)
    steps = np.arange(120)
    values = np.stack([np.sin(steps / 3) * 5 + 20, np.cos(steps / 5)], 1)
    means, stds = values[:80].mean(0), values[:80].std(0)
    assert model.config.means == pytest.approx(means) and model.config.stds == pytest.approx(stds)
    windows = np.stack([values[start : start + 16] for start in range(88, 105)])  # every one of the test split
    past, future = torch.tensor(windows[:, :12]).float(), windows[:, 12:]
    with torch.no_grad():
        errors = model(past_values=past).prediction_outputs.numpy() - future
    assert scores["mse"] == pytest.approx(((errors / stds) ** 2).mean(), rel=1e-4)
    assert scores["mae"] == pytest.approx(abs(errors / stds).mean(), rel=1e-4)
    assert scores["mse_original"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert scores["mae_original"] == pytest.approx(abs(errors).mean(), rel=1e-4)
    repeated = (windows[:, 11:12] - future) / stds
    assert scores["repeat_last_mse"] == pytest.approx((repeated**2).mean(), rel=1e-4)
    assert scores["repeat_last_mae"] == pytest.approx(abs(repeated).mean(), rel=1e-4)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: time-series-forecasting" in card and "forecasts.png" in card
    own, task = load(folder)
    with pytest.raises(ConfigError, match="takes no texts"):
        generate(own, task, ["1 2 3"])


@pytest.mark.parametrize(
    "changes, error, problem",
    [
        ({"train": "train[:10]"}, DataError, "a split has 10 rows, where one window needs 16"),
        ({"validation": "train[90:100]"}, DataError, "a split has 10 rows"),
        ({"series": None}, ConfigError, r"data\.series: name the columns to forecast"),
        ({"series": ["HUFL", "TO"]}, DataError, "there is no column 'TO'; choose from HUFL, OT"),
        ({"series": ["date"]}, DataError, "data.series: date is 't0' in row 0 of the split, no number"),
    ],
)
def test_series_that_cannot_be_used(make_task, changes, error, problem):
    with pytest.raises(error, match=problem):
        run(make_task("forecasting", data=changes))


def test_a_gap_in_a_series_is_named(make_task, tmp_path):
    config = make_task("forecasting")
    file = tmp_path / "data" / "power.csv"
    lines = file.read_text().splitlines()
    date, high, _, load_ = lines[31].split(",")
    file.write_text("\n".join([*lines[:31], f"{date},{high},,{load_}", *lines[32:]]))
    with pytest.raises(DataError, match="OT is nan in row 30 of the split"):
        run(config)
    config = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_row": "skip"})})
    assert run(config).scores["training"]["skipped_rows"] > 0


def test_gradient_accumulation_in_forecasting(make_task):
    """Windows weigh the same however a step is cut: 1 x 8 and 4 x 2 give the same weights."""
    found = []
    for rows, steps in ((8, 1), (2, 4)):
        training = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": steps,
            "max_steps": 1,
            "output_dir": f"{make_task('forecasting').training['output_dir']}-{rows}",
            "data_seed": 1,
        }
        config = make_task("forecasting", training=training, model={"dropout": 0.0, "head_dropout": 0.0})
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": "train[:23]"})})
        found.append(load_file(run(config).output_dir / "model.safetensors"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_published_works_as_its_card_says(make_task, tmp_path, hub):
    """From the Hub, in a fresh process, with transformers alone."""
    codes = []
    for task in WRITERS:
        name = f"me/{task.replace('_', '-')}"
        config = make_task(task, training={"output_dir": str(tmp_path / task)}, hub={"push": True, "model_id": name})
        folder = run(config).output_dir
        codes += re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        assert len(HUB.commits(name)) == 2  # the first one is empty
    assert len(codes) == 3 and all("trust_remote_code=True" in code for code in codes)
    codes.append("import sys; assert not any(name.startswith('pipeline.') for name in sys.modules)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(codes)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    label, text, forecast = done.stdout.split("\n", 2)
    assert "'label'" in label and text.strip() and forecast.startswith("tensor(")


def test_scripts(make_task, command, tmp_path, monkeypatch):
    """What is asked of a finished model from the shell, whatever its task."""
    monkeypatch.chdir(tmp_path)
    classifier = run(make_task("text_classification", training={"output_dir": "runs/classes"})).output_dir
    assert set(command("generate.py", classifier, "a b", "c d").stdout.split()) <= {"0", "1"}
    refused = command("generate.py", classifier, "a b", "--set", "num_beams=2")
    assert refused.returncode == 2 and "this model generates no text" in refused.stderr
    lstm = run(make_task("language_modeling", training={"output_dir": "runs/lstm"})).output_dir
    done = command("generate.py", lstm, "Anna and the prince", "--set", "do_sample=true", "top_k=10", "temperature=0.6")
    assert done.returncode == 0 and done.stdout.startswith("Anna and the prince")
    refused = command("generate.py", lstm, "")
    assert refused.returncode == 2 and "prompt 1 is empty" in refused.stderr
    scores = json.loads(command("score_ngrams.py", lstm).stdout)
    own = json.loads((lstm / "metrics.json").read_text())["test"]["perplexity"]
    assert scores["model"] == pytest.approx(own) and scores["kneser_ney_3"] > 1 and 1 < scores["unigram"] < 12
    refused = command("score_ngrams.py", classifier)
    assert refused.returncode == 2 and "text_classification has no n-grams" in refused.stderr
    forecaster = run(make_task("forecasting", training={"output_dir": "runs/forecaster"})).output_dir
    assert json.loads(command("score.py", forecaster).stdout)["mse"] > 0
    refused = command("generate.py", forecaster, "1 2 3")
    assert refused.returncode == 2 and "takes no texts" in refused.stderr


@pytest.mark.slow
def test_a_language_model_on_two_processes(make_task, tmp_path):
    """Each carries the state of its own streams; stopped and resumed, they end with the same weights."""
    config = make_task("language_modeling", training={"use_cpu": True})
    with (tmp_path / "lstm.yaml").open("w") as stream:
        YAML().dump(config.model_dump(), stream)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = tmp_path / "run"
    found = []
    for _ in range(2):
        subprocess.run(
            [*command, str(ROOT / "scripts" / "train.py"), str(tmp_path / "lstm.yaml")], check=True, capture_output=True
        )
        assert {path.name for path in (folder / "checkpoint-2").glob("carried_*")} == {
            "carried_0.safetensors",
            "carried_1.safetensors",
        }
        found.append(load_file(folder / "model.safetensors"))
        rewind(folder, 2)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
