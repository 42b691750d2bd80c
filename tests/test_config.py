import copy
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.source import Source
from pipeline.tasks.config_loading import load_config, parse_config
from tests.conftest import ROOT


def write(tmp_path, text: str):
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_overrides_and_defaults(tmp_path):
    path = write(tmp_path, "data:\n  path: reversal\ntraining:\n  learning_rate: 1e-4\n")
    config = load_config(path, ["data.streaming=true", "training.lr_scheduler_kwargs.min_lr=1e-6", "model.d_model=64"])
    assert config.training["learning_rate"] == 1e-4  # YAML 1.1 would make this text
    assert config.training["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    assert config.data.streaming is True and config.model == {"d_model": 64}
    assert config.training["output_dir"] == "runs/run"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    assert load_config(path).data.path


def test_there_are_shipped_configs():
    assert len(list((ROOT / "configs").glob("*.yaml"))) >= 2


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "data:\n  path: reversal\n  shufle_window: 3\n",
            r"run.yaml:3: unknown key data.shufle_window; did you mean sh",
        ),
        ("data:\n  path: reversal\nmodle: {}\n", r"run.yaml:3: unknown key modle; did you mean model"),
        ("model: {}\n", r"run.yaml: data is missing"),
        ("data: {}\n", r"run.yaml:1: data.path is missing; give it in the file or as data.path="),
        ("data:\n  path: x\n  streaming: 7\n", r"run.yaml:3: data.streaming: .*bool.* \(given: 7\)"),
        (
            "data:\n  path: x\ntraining:\n  learning_rte: 1\n",
            r"run.yaml:4: training.learning_rte .*did you mean learning_r",
        ),
        ("data:\n  path: x\ntraining:\n  learning_rate: fast\n", r"run.yaml:4: training.learning_rate: .*number"),
        ("data:\n  path: x\ntraining:\n  evaluation_strategy: no\n", r"did you mean eval"),
        ("data:\n  path: x\ntraining:\n  push_to_hub: true\n", r"training.push_to_hub is set by hub.push"),
        ("data:\n  path: x\n  path: y\n", r"not valid YAML"),
        ("data: [\n", r"not valid YAML"),
        ("- data\n", r"must hold sections"),
        ("data: {path: ''}\n", r"data.path is missing; give it in the file or as data.path=..."),
        ("data: {path: x, streaming: 1}\n", r"data.streaming: .*bool"),
        ("data: {path: x, shuffle_window: true}\n", r"data.shuffle_window: .*integer"),
        ("data: {path: x, shuffle_window: '3'}\n", r"data.shuffle_window: .*integer"),
        ("task: [a]\ndata: {path: x}\n", r"task: \['a'\] is unknown"),
        (
            "task: text_classification\ndata: {path: x}\ntext_classification: {labels: [a, a, b]}\n",
            r"run.yaml:3: text_classification.labels: a comes twice",
        ),
        ("data: {path: x}\nevaluation: {metrics: [chrf, chrf]}\n", "evaluation.metrics: chrf comes twice"),
        ("task: forecasting\ndata: {path: x}\nforecasting: {series: [y, y]}\n", "series: y comes twice"),
    ],
)
def test_wrong_configs_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.streeming=true", "override 'data.streeming=true': unknown key data.streeming; did you mean streaming"),
        ("data.streaming", "write section.key=value"),
        ("data.path.x=1", "path holds a value"),
        ("data.max_source_length=1", "override 'data.max_source_length=1': data.max_source_length: .*greater"),
        ("training.max_steps=[", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "data:\n  path: reversal\n"), [override])


def test_a_config_without_a_file_has_an_output_folder():
    assert parse_config({"data": {"path": "reversal"}}).output_dir == Path("runs/sequence_to_sequence")


def test_values_are_not_changed():
    values = {"task": "language_modeling", "data": {"path": "x", "bptt": 8}}
    before = copy.deepcopy(values)
    parse_config(values)
    assert values == before


def test_the_config_that_is_written_is_the_config_that_is_read(tmp_path):
    config = load_config(write(tmp_path, "data:\n  path: reversal\n  options: {rows: 5}\n"), ["training.max_steps=3"])
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    "key", ["training.hub_token", "training.push_to_hub_token", "data.options.token", "hub.api_key"]
)
def test_a_config_holds_no_secrets(tmp_path, key):
    """A token is refused under any name, and no message repeats it."""
    names = key.split(".")
    nested = "".join(
        f"{'  ' * depth}{name}:{'' if name != names[-1] else ' '}" + "\n" * (name != names[-1])
        for depth, name in enumerate(names)
    )
    text = write(tmp_path, f"{nested}hidden\n" + ("" if names[0] == "data" else "data: {path: reversal}\n"))
    plain = "data:\n  path: reversal\n"
    for path, overrides in (
        (text, []),
        (write(tmp_path / "plain", plain), [f"{key}=hidden"]),
        (write(tmp_path / "plain", plain), [f"{names[0]}={{x: {{{names[-1]}: hidden}}}}"]),
    ):
        with pytest.raises(
            ConfigError, match=r"holds no tokens or passwords; set HF_TOKEN .* or log in with `hf"
        ) as caught:
            load_config(path, overrides)
        assert "hidden" not in str(caught.value) and names[-1] in str(caught.value)


MIX_OF_TWO = {
    "mix": {"clean": {"path": "x"}, "mined": {"path": "y"}},
    "weights": {"clean": 1, "mined": 1},
    "validation": None,
}


@pytest.mark.parametrize(
    "data, augmentation, message",
    [
        (MIX_OF_TWO, {"upper_case": {"claen": 0.1}}, "upper_case: there is no corpus 'claen'; did you mean clean?"),
        ({"path": "x"}, {"swap_letters": {"clean": 0.1}}, "swap_letters: there is no data.mix .* give one number"),
        ({"path": "x"}, {"title_case": 1.5}, r"title_case: Input should be less than or equal to 1 \(given: 1.5\)"),
        (MIX_OF_TWO, {"title_case": {"mined": -1}}, r"title_case.mined: Input should be greater .* \(given: -1\)"),
        ({"path": "x"}, {"drop_end_punctuation": True}, r"drop_end_punctuation: .*number \(given: True\)"),
        ({"path": "x"}, {"upper_case": 0.6, "title_case": 0.6}, "title_case: a row is in .* both rates are 1 together"),
        (MIX_OF_TWO, {"upper_case": 0.6, "title_case": {"mined": 0.6}}, "title_case: .* both rates of mined are 1"),
    ],
)
def test_rates_of_noise_that_cannot_be(data, augmentation, message):
    with pytest.raises(ConfigError, match=rf"augmentation\.{message}"):
        parse_config({"data": data, "augmentation": augmentation})


def test_rates_of_a_corpus():
    rates = {"upper_case": {"mined": 0.5}, "swap_letters": 0.1}
    augmentation = parse_config({"data": MIX_OF_TWO, "augmentation": rates}).augmentation
    none = {"title_case": 0.0, "drop_end_punctuation": 0.0}
    assert augmentation.text_rates("clean") == {"upper_case": 0.0, "swap_letters": 0.1, **none}
    assert augmentation.text_rates("mined") == {"upper_case": 0.5, "swap_letters": 0.1, **none}


def test_the_text_of_a_config_is_read_again_only_for_an_error(tmp_path, monkeypatch):
    """To find a line takes as long as all the rest."""
    places = []

    def place(self, location):
        places.append(location)
        return ""

    monkeypatch.setattr(Source, "place", place)
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: reversal}\ntraining: {max_steps: 2, seed: 3}\ngeneration: {num_beams: 2}\n")
    load_config(path)
    assert not places
    with pytest.raises(ConfigError, match=r"generation\.num_beam is not one of"):
        load_config(path, ["generation.num_beam=2"])
    assert places == [("generation", "num_beam")]
