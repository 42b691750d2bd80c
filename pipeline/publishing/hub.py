"""Publishing on the Hub: what is uploaded and what never, before the training, while it goes on, and at its end."""

import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers import TrainerCallback

from pipeline.config import HubConfig
from pipeline.data.hub_reading import API_TIMEOUT, RetryBudget, explain_refusal, in_short, is_transient, with_retries
from pipeline.errors import ConfigError, NotPublished

# What a checkpoint needs to load elsewhere, and what tells how it came to be; nothing else is ever uploaded.
WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
PUBLISHED = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.spm",
    "*.model",
    "*.py",
    "README.md",
    "run.yaml",
    "metrics.json",
    "training_curves.png",
    "forecasts.png",
)
OUTBOX = ".outbox"  # below the output folder: what waits for its upload
CHECK_PATIENCE = 60.0  # seconds for passing faults before the training, when somebody still waits at the screen
FAILURES = (ConfigError, HfHubHTTPError, httpx.TransportError, ConnectionError, TimeoutError, OSError, ValueError)

# Access tokens of Hugging Face, GitHub, OpenAI and others, AWS, Slack, and keys in PEM.
SECRET = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{30,}|AKIA[A-Z0-9]{16}"
    rb"|xox[baprs]-[A-Za-z0-9-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)

logger = logging.getLogger(__name__)


def prepare(settings: HubConfig) -> None:
    """Checks once, before the first step, that the model can be pushed, and makes its repository.

    Raises:
        ConfigError: when no repository is named, the token is missing or may not write there, or the Hub is away.
    """
    if settings.model_id is None or settings.model_id.count("/") != 1:
        raise ConfigError(f"hub.model_id: name the repository to push to as owner/name (given: {settings.model_id!r})")
    api = HfApi()
    try:
        user = with_retries(api.whoami, CHECK_PATIENCE, "hub.push")
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise ConfigError("hub.push: this token may only read; make one that may write, and `hf auth login`")
        owner = settings.model_id.split("/")[0]
        mine = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
        if owner not in mine:
            raise ConfigError(f"hub.model_id: {user['name']} cannot write to {owner}/; there are: {', '.join(mine)}")
        with_retries(
            lambda: api.create_repo(settings.model_id, private=settings.private, exist_ok=True),
            CHECK_PATIENCE,
            settings.model_id,
        )
    except FAILURES as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"hub.push: {explain(error, settings.model_id)}") from error


def publish(folder: Path, name: str, message: str, patience: float, is_outdated: Callable[[], bool] = bool) -> None:
    """Uploads a model in one commit, again and again while the faults are passing ones.

    Args:
        is_outdated: asked before each try; True gives up without an error.

    Raises:
        ConfigError: when a file holds what looks like an access token.
        HfHubHTTPError, and others: the last fault, when patience is at its end.
    """
    files = list(_published(folder))
    if not any(fnmatch(path.name, pattern) for path in files for pattern in WEIGHTS):
        raise ConfigError(f"{folder}: there are no weights to publish")
    refuse_secrets(files)
    api, waiting = HfApi(), RetryBudget(patience, f"publishing to {name}")
    first_head = None
    while not is_outdated():
        try:
            head = api.model_info(name, timeout=API_TIMEOUT).sha
            first_head = first_head or head
            if head != first_head and api.list_repo_commits(name)[0].title == message:
                return  # the answer was lost, not the commit
            api.create_commit(
                name,
                [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in files],
                commit_message=message,
                parent_commit=head,
            )
            return
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:  # somebody else was quicker
                first_head = None
            waiting.wait(error, is_transient(error) or first_head is None)
        except Exception as error:
            waiting.wait(error)


def refuse_secrets(files: list[Path]) -> None:
    """Raises ConfigError for a file that holds an access token, or what looks like one, naming file and line."""
    secrets = [value.encode() for value in _own_secrets()]
    for path in files:
        content = path.read_bytes()
        is_text = b"\0" not in content[:4096]
        found = SECRET.search(content) if is_text else None
        place = found.start() if found else next((at for each in secrets if (at := content.find(each)) >= 0), None)
        if place is not None:
            line = content.count(b"\n", 0, place) + 1
            raise ConfigError(f"{path}:{line} holds what looks like an access token; nothing was uploaded")


def _own_secrets() -> Iterator[str]:
    if token := get_token():
        yield token
    for name, value in os.environ.items():
        if re.search(r"(TOKEN|SECRET|PASSWORD|API_KEY)$", name) and len(value) >= 16:
            yield value


def _published(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in PUBLISHED):
            yield path


def explain(error: BaseException, name: str | None) -> str:
    """What went wrong with a repository, in one line."""
    return str(error) if isinstance(error, ConfigError) else explain_refusal(error, str(name)) or in_short(error)


class Publisher(TrainerCallback):
    """Uploads every checkpoint while the training goes on, the newest first, and never stops it.

    The files are linked into an outbox, so that a checkpoint may be removed while it is on its way. One that is
    overtaken by a newer one before its turn is left out; the last is always sent, by `finish`.

    Args:
        describe: writes card and curves of the model so far into a folder.
    """

    def __init__(self, settings: HubConfig, output_dir: Path, describe: Callable[[Path], None]):
        self.settings, self.describe = settings, describe
        self.outbox = output_dir / OUTBOX
        shutil.rmtree(self.outbox, ignore_errors=True)
        self.changed = threading.Condition()
        self.waiting: Path | None = None
        self.is_finished = False
        self.thread = threading.Thread(target=self._send, name="publisher", daemon=True)
        self.thread.start()

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if not checkpoint.is_dir():
            return
        try:
            parcel = self.outbox / f"step-{state.global_step}"
            shutil.rmtree(parcel, ignore_errors=True)
            shutil.copytree(checkpoint, parcel, copy_function=_link, ignore=lambda _, names: _unpublished(names))
            self.describe(parcel)
        except OSError as error:
            logger.warning("hub: step %d is not pushed: %s", state.global_step, error)
            return
        with self.changed:
            if self.waiting is not None:
                shutil.rmtree(self.waiting, ignore_errors=True)
            self.waiting = parcel
            self.changed.notify()

    def finish(self) -> None:
        """Waits for the upload that is on its way, if any; what still waits is overtaken by the finished model."""
        with self.changed:
            self.is_finished = True
            self.changed.notify()
        self.thread.join()
        shutil.rmtree(self.outbox, ignore_errors=True)

    def _send(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting is not None or self.is_finished)
                parcel, self.waiting = self.waiting, None
            if parcel is None or self.is_finished:
                return
            step = parcel.name.removeprefix("step-")
            name = str(self.settings.model_id)
            try:
                publish(parcel, name, f"Step {step}", self.settings.patience, self._is_outdated)
            except FAILURES as error:
                logger.warning("hub: step %s is not on the Hub: %s", step, explain(error, name))
            shutil.rmtree(parcel, ignore_errors=True)

    def _is_outdated(self) -> bool:
        return self.waiting is not None or self.is_finished


def publish_result(folder: Path, settings: HubConfig) -> None:
    """Uploads the finished model.

    Raises:
        NotPublished: when that fails; the local copy stays.
    """
    name = str(settings.model_id)
    try:
        publish(folder, name, "Finished model", settings.patience)
    except FAILURES as error:
        raise NotPublished(
            f"{folder} is trained, scored and saved, but not on the Hub: {explain(error, name)}; "
            f"when that is mended, run the same command again, or python scripts/publish.py {folder} {name}"
        ) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _unpublished(names: list[str]) -> set[str]:
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in PUBLISHED)}
