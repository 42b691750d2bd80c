"""The LSTM language model as a task: contiguous streams, a carried state, scores over the whole text."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.data.rows import separate
from pipeline.errors import ConfigError, RunError
from pipeline.inference.evaluation import evaluate_features
from pipeline.inference.generation import generate
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.run import RunFolder, train
from pipeline.tasks import language_modeling
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.trained_model import load_trained
from tests.conftest import ROOT
from tests.tasks.conftest import rewind
from tokenizer.training import train as train_tokenizer


def test_a_language_model(finished):
    folder = finished("language_modeling").output_dir
    scores = RunFolder(folder).read_scores()["test"]
    assert set(scores) == {"loss", "perplexity", "token_accuracy"}
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("Anna and the prince", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.eos_token_id != prompt["input_ids"][0, -1]
    torch.manual_seed(0)
    ids = model.generate(**prompt, do_sample=True, top_k=10, temperature=0.6, max_new_tokens=12)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text.startswith("Anna and the prince") and " ." not in text
    own, task = load_trained(folder)
    answers = generate(own, task, ["Anna and the", "the prince went home"])
    assert [answer[: len("Anna and the")] for answer in answers[:1]] == ["Anna and the"]
    assert answers[0] == generate(own, task, ["Anna and the"])[0]  # padded to the longer one, or not
    with pytest.raises(ConfigError, match="prompt 2 is empty"):
        generate(own, task, ["Anna", " "])
    assert "pipeline_tag: text-generation" in (folder / "README.md").read_text()


@pytest.mark.parametrize("tokenizer", [{"kind": "character"}, {"kind": "bpe", "vocab_size": 270}])
def test_other_vocabularies_of_a_language_model(make_task, tokenizer):
    model, task = load_trained(train(make_task("language_modeling", tokenizer=tokenizer)).output_dir)
    prompt = "Anna and the prince"
    assert generate(model, task, [prompt])[0].startswith(prompt)
    ((feature,), _) = separate(task.encode({"source": [prompt], "row": [0]}))
    assert len(feature["input_ids"]) > 5  # the words are not tokens


def test_a_language_model_is_scored_over_the_whole_text(finished):
    """Each token once, with what came before it in its stream; sixteen streams cost it little context."""
    config = finished("language_modeling")
    model, task = load_trained(config.output_dir)
    assert isinstance(task, LanguageModeling)
    text = Path(config.data.path).read_text().split("\n\n")[36:]
    ids = torch.tensor([[*(token_id for row in text for token_id in task.tokenizer(row)["input_ids"]), 2]])
    scores = RunFolder(config.output_dir).read_scores()["test"]
    length = -(-(ids.shape[1] - 1) // 16)
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


@pytest.mark.parametrize("streams", [1, 3, 16])
def test_each_text_has_its_log_probability(monkeypatch, streams):
    """With its end, and after the texts before it in its stream; all together are the loss."""
    monkeypatch.setattr(language_modeling, "HELD_OUT_STREAMS", streams)
    monkeypatch.setattr(language_modeling, "HELD_OUT_CHUNK", 4)
    texts = ["a b c d", "b", "c c a", "d a"]
    task = LanguageModeling(train_tokenizer(texts, "word", 20, eos_position="start"))
    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(vocab_size=20, embedding_size=8, hidden_size=8)).eval()
    features, _ = separate(task.encode({"source": texts, "row": [0, 1, 3, 7]}))
    samples = task.to_evaluation(features)
    result = evaluate_features(model, task, samples, batch_size=2)
    rows = task.score_rows(samples, result.sums)
    assert [(row.row, row.items) for row in rows] == [(0, 5), (1, 2), (3, 4), (7, 3)]
    assert result.scores["loss"] == pytest.approx(-sum(row.log_probability for row in rows) / 14)
    if streams == 1:
        ids = torch.tensor([[*(token_id for feature in features for token_id in feature["input_ids"]), 2]])
        logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        expected = [part.sum().item() for part in logs.split([5, 2, 4, 3])]
        assert [row.log_probability for row in rows] == pytest.approx(expected)


def test_streams_of_text_are_contiguous(finished):
    """Row r of each batch goes on where row r of the batch before it ended, over processes as well."""
    _, task = load_trained(finished("language_modeling").output_dir)
    assert isinstance(task, LanguageModeling)
    features, bad_rows = separate(
        task.encode({"source": ["Anna and the prince went home."] * 40, "row": list(range(40))})
    )
    assert not bad_rows
    for world_size in (1, 2):
        task.bptt = 8
        batches = task.make_batches(3, world_size)(features, np.random.default_rng(0))
        streams: list[list[list[int]]] = [[[] for _ in range(3)] for _ in range(world_size)]
        for number, batch in enumerate(batches):
            assert all(feature["is_first"] == (number < world_size) for feature in batch)
            for row, feature in enumerate(batch):
                rest = streams[number % world_size][row]
                assert not rest or rest[-1] == feature["input_ids"][0]
                rest.extend(feature["labels"])
        flat = [token_id for rank in streams for row in rank for token_id in row if token_id != -100]
        everything = [token_id for feature in features for token_id in feature["input_ids"]][1:]
        assert flat == [*everything, task.tokenizer.eos_token_id]


def test_the_state_of_other_processes_is_refused(rewound):
    config = rewound("language_modeling")
    checkpoint = config.output_dir / "checkpoint-2"
    shutil.copy(checkpoint / "carried_0.safetensors", checkpoint / "carried_1.safetensors")
    with pytest.raises(RunError, match="holds the states of 2 processes"):
        train(config)


@pytest.mark.slow
def test_a_language_model_on_two_processes(make_task, tmp_path):
    """Each carries the state of its own streams; stopped and resumed, they end with the same weights."""
    config = make_task("language_modeling", training={"use_cpu": True})
    (tmp_path / "lstm.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = tmp_path / "run"
    weights = []
    for _ in range(2):
        subprocess.run(
            [*command, str(ROOT / "scripts" / "train.py"), str(tmp_path / "lstm.yaml")], check=True, capture_output=True
        )
        assert {path.name for path in (folder / "checkpoint-2").glob("carried_*")} == {
            "carried_0.safetensors",
            "carried_1.safetensors",
        }
        weights.append(load_file(folder / "model.safetensors"))
        rewind(folder, 2)
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
