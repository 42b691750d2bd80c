"""Averages of weights: over the steps of a training, and over checkpoints."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import ConfigError, RunError, one_line
from pipeline.manifest import damage
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import find_file, load_trained
from pipeline.training.arguments import best_score
from pipeline.training.changes import APPLIED, list_of, score_turns
from pipeline.training.checkpoints import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_best,
    find_config,
    list_checkpoints,
    new_folder,
    read_log,
    read_run_state,
)

CPU = torch.device("cpu")
# Of configs of models: where and by what they were written, and what a run may change as it goes on, which only its
# loss depends on. Rates of dropout are of that kind as well.
NOT_COMPARED = {"_name_or_path", "transformers_version", "label_smoothing", "r_drop", "adversarial_epsilon"}


class MovingAverage:
    """A moving average of a model's weights, which lags behind a training and is steadier than it.

        average <- d average + (1 - d) weights   after each step

    To average the iterates of a stochastic optimizer is due to Polyak and Juditsky 1992
    (https://doi.org/10.1137/0330046). The decay d is `exponential_decay` or `uniform_decay`.

    It depends on what the trainer keeps anyway, the step and the log, so that weights and averages are all there is to
    save. Weights that are not trained are their own average.

    Args:
        model: whose weights the average begins with.
        key: of the config, which asks for the average.

    Raises:
        ConfigError: for weights in 16 bits, where a small share of a difference is rounded to nothing.
    """

    def __init__(self, model: nn.Module, key: str):
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if torch.finfo(weight.dtype).bits < 32:
                raise ConfigError(
                    f"{key}: {name} is in {str(weight.dtype).removeprefix('torch.')}, in which an average stands "
                    "still; begin with a model in float32, or leave it out"
                )
        self.names = [*trained]
        self.weights = [*trained.values()]
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self, decay: float) -> None:
        """Take the weights after a step into the average; the CPU waits for nothing."""
        get_ema_multi_avg_fn(decay)(self.averages, self.weights, None)

    def begin_anew(self) -> None:
        """Begin with the weights that the model has now."""
        _copy(self.averages, self.weights)

    def put_into_model(self) -> None:
        """Give the model the averages for good."""
        _copy(self.weights, self.averages)

    @contextmanager
    def in_model(self) -> Iterator[dict[str, Tensor]]:
        """Give the model the averages for a while; yields the weights by name, which the model then has again.

        Values change places and memory stays where it is, as do the graphs and buckets that point to it.
        """
        kept = [weight.detach().clone() for weight in self.weights]
        self.put_into_model()
        try:
            yield dict(zip(self.names, kept, strict=True))
        finally:
            _copy(self.weights, kept)


def exponential_decay(step: int, decay: float) -> float:
    """Return the decay after a step, counted from 1, of an average that forgets.

    It grows from 0.18 so that the first weights are soon forgotten: the form of TensorFlow's `ExponentialMovingAverage`
    with `num_updates`, and of Marian's `exponential-smoothing` (Junczys-Dowmunt et al. 2018,
    https://arxiv.org/abs/1804.00344).

    Args:
        decay: between 0 and 1; about the last 1 / (1 - decay) steps count.
    """
    return min(decay, (1 + step) / (10 + step))


def uniform_decay(step: int, begin: int | None) -> float:
    """Return the decay after a step, counted from 1, of the plain mean over all steps behind `begin`.

    Up to there, or with None everywhere, the average is the weights.
    """
    steps = 0 if begin is None else step - begin
    return max(steps - 1, 0) / max(steps, 1)


def find_begin(
    log: Sequence[dict[str, Any]], score: str, is_higher_better: bool, patience: int, turns: Collection[int] = ()
) -> int | None:
    """Return the step from which on the weights are averaged; None where it has not come.

    It is the first whose score is worse than the best of those more than `patience` evaluations before it: the
    non-monotonic trigger of Merity et al. 2018, algorithm 1 (https://arxiv.org/abs/1708.02182). A training that still
    goes forward is not held back by its first weights.

    Args:
        log: of the run up to now, from which a run that goes on finds the same.
        score: as the log names it.
        turns: steps from which on the score means something else.
    """
    sign = -1 if is_higher_better else 1
    scores: list[float] = []
    last_step = 0
    for line in log:
        if not math.isfinite(line.get(score, math.nan)):
            continue
        if any(last_step < turn <= line["step"] for turn in turns):
            scores = []
        last_step = line["step"]
        if sign * line[score] > min(scores[: max(len(scores) - patience, 0)], default=math.inf):
            return last_step
        scores.append(sign * line[score])
    return None


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def mean_of_checkpoints(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the weights, as Vaswani et al. 2017, section 6.1, take it of a run's last checkpoints.

    Raises:
        RunError: for a checkpoint that is not whole.
    """
    means: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        if problem := damage(checkpoint):
            raise RunError(f"{checkpoint} is not a whole checkpoint, so cannot be averaged with others: {problem}")
        for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items():
            means[name] = means.get(name, 0) + tensor.double() / len(checkpoints)
    return {name: mean.float() for name, mean in means.items()}


def choose_checkpoints(folder: Path, count: int, is_best: bool) -> list[Path]:
    """List the best checkpoints of a run by its `metric_for_best_model`, the best first, or the newest.

    Raises:
        ConfigError: where there are fewer, or the folder is not that of a run.
    """
    found = list_checkpoints(folder)
    if not found:
        raise ConfigError(f"{folder}: there is no checkpoint; name the folder of a run, its training.output_dir")
    if is_best:
        newest = found[0]
        score = best_score(load_config(find_config(newest)), is_watched=True)
        name, turns = f"eval_{score['metric_for_best_model']}", score_turns(read_run_state(newest).phases)
        found = find_best(folder, read_log(newest), name, score["greater_is_better"], turns)
    if len(found) < count:
        scored = " with a score" if is_best else ""
        raise ConfigError(f"{folder} has {len(found)} of {count} checkpoints{scored}; ask for fewer")
    return found[:count]


def average_models(sources: Sequence[str | Path], output: Path) -> None:
    """Write the model whose weights are the mean of those of several, which are trained alike from the same start.

    All else is that of the first: tokenizer, generation config, and the config of the training.

    Args:
        sources: folders or Hub ids of trained models.
        output: a folder that is not there yet.

    Raises:
        ConfigError: for a source that is no whole model, or not like the first in its config, its tokenizer or the
            names and sizes of its weights; and for an output that is there already.
        RunError: where the disk is full.
    """
    if output.is_symlink() or output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConfigError(f"--output {output} is there already; remove it, or name another folder")
    first, task = load_trained(sources[0], CPU)
    state = first.state_dict()
    sums = {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
    for source in sources[1:]:
        model, other_task = load_trained(source, CPU)
        problem = _find_difference(first, model) or _find_other_token(task.tokenizer, other_task.tokenizer)
        if problem is not None:
            raise ConfigError(f"{source} is not like {sources[0]}, so their mean is no model: {problem}")
        others = model.state_dict()
        for name, total in sums.items():
            total += others[name]
    for name, total in sums.items():
        state[name].copy_(total / len(sources))
    with new_folder(output) as staging:
        first.save_pretrained(staging)
        if task.tokenizer is not None:
            task.tokenizer.save_pretrained(staging)
        _write_config(sources, staging)


def _find_difference(first: PreTrainedModel, other: PreTrainedModel) -> str | None:
    """Say in which setting or weight a model differs from the first; None where they are alike."""
    settings, others = ({**model.config.to_dict(), "model": type(model).__name__} for model in (first, other))
    for name in sorted({*settings, *others} - NOT_COMPARED):
        if settings.get(name) != others.get(name) and list_of(f"model.{name}") is not APPLIED:
            return f"{name} of its config.json is {others.get(name)!r} in place of {settings.get(name)!r}"
    shapes, other_shapes = (
        {name: (*tensor.shape,) for name, tensor in model.state_dict().items()} for model in (first, other)
    )
    for name in sorted({*shapes, *other_shapes}):
        if shapes.get(name) != other_shapes.get(name):
            return f"the weight {name} has the shape {other_shapes.get(name)} in place of {shapes.get(name)}"
    return None


def _find_other_token(first: PreTrainedTokenizerBase | None, other: PreTrainedTokenizerBase | None) -> str | None:
    """Say in what a tokenizer differs from the first; None where they are alike, or there are none."""
    if first is None or other is None:
        return None
    ids, other_ids = first.get_vocab(), other.get_vocab()
    for token in sorted({*ids, *other_ids}):
        if ids.get(token) != other_ids.get(token):
            return f"the token {token!r} of its tokenizer is {other_ids.get(token)} in place of {ids.get(token)}"
    if type(other) is not type(first):
        return f"its tokenizer is a {type(other).__name__} in place of a {type(first).__name__}"
    if first.is_fast and first.backend_tokenizer.to_str() != other.backend_tokenizer.to_str():
        return "its tokenizer.json cuts texts in another way"
    return None


def _write_config(sources: Sequence[str | Path], folder: Path) -> None:
    """Copy the config of the first training, with a line that names what was averaged; none where it has none."""
    source = Path(sources[0])
    try:
        path = find_config(source) if source.is_dir() else find_file(sources[0], CONFIG_FILE)
    except ConfigError:
        return
    if path is not None:
        names = ", ".join("/".join(Path(source).absolute().parts[-2:]) for source in sources)
        text = f"# the weights are the mean of {one_line(names)}\n{path.read_text(encoding='utf-8')}"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
