"""Publish on the Hub: check before training that it can be done, then upload checkpoints and the finished model.

Only files that `forms.py` lists, or a task draws, are ever uploaded.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers import TrainerCallback

from pipeline.config import Form, HubConfig, make_section
from pipeline.data.hub_reading import API_TIMEOUT, RetryBudget, explain_refusal, in_short, is_transient, with_retries
from pipeline.errors import ConfigError, NotPublished, one_line
from pipeline.publishing.forms import is_published, is_replaced, make_form
from pipeline.publishing.secrets import refuse_secrets
from pipeline.tasks.trained_model import check_files
from pipeline.training.checkpoints import checkpoint_path, list_checkpoints

OUTBOX = ".outbox"  # folder below the output folder for what waits to be uploaded
CHECK_PATIENCE = 60.0  # seconds to wait out faults before training, while somebody still watches the screen
FAILURES = (ConfigError, HfHubHTTPError, httpx.TransportError, ConnectionError, TimeoutError, OSError, ValueError)

logger = logging.getLogger(__name__)


def prepare(settings: HubConfig) -> None:
    """Check before the first step that the model can be pushed, and create its repository.

    Raises:
        ConfigError: when no repository is named, the token is missing or may not write there, or the Hub is down.
    """
    prepare_repository(settings.model_id, settings.private, ("hub.push", "hub.model_id"))


def prepare_repository(name: str | None, private: bool, keys: tuple[str, str], kind: str = "model") -> None:
    """Check that a repository can be written to, and create it where there is none.

    Args:
        keys: what a message calls the wish to publish, and the name.
        kind: "model" or "dataset".

    Raises:
        ConfigError: as `prepare`.
    """
    push, key = keys
    if name is None or name.count("/") != 1:
        raise ConfigError(f"{key}: name the repository to push to as owner/name (given: {name!r})")
    api = HfApi()
    try:
        user = with_retries(api.whoami, CHECK_PATIENCE, push)
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise ConfigError(
                f"{push}: this token may only read; make one that may write, and log in with it by `hf auth login`"
            )
        owner = name.split("/")[0]
        owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
        if owner not in owners:
            raise ConfigError(f"{key}: {user['name']} cannot write to {owner}/; there are: {', '.join(owners)}")
        with_retries(
            lambda: api.create_repo(name, private=private, exist_ok=True, repo_type=kind), CHECK_PATIENCE, name
        )
    except FAILURES as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{push}: {explain(error, name)}") from error


def publish(
    folder: str | Path, name: str, *, private: bool = True, form: Form = "own", with_pipeline: bool = False
) -> None:
    """Publish the finished model, or the checkpoint, in a folder.

    Args:
        name: owner/name of the repository, which is created if it does not exist.
        private: whether only its owner sees it, where it is created.
        form: "own" for this project's class with its code, "transformers" for the same model as a stock class.
        with_pipeline: add the code of `pipeline("translation")` for transformers 5 to a stock class.

    Raises:
        ConfigError: when the folder holds no model, a damaged one, an unfinished run or a model that cannot have this
            form; when the Hub refuses it or cannot be reached.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if list_checkpoints(folder) and not (folder / "metrics.json").is_file():
        raise ConfigError(f"{folder}: the run in it is not finished; go on with it, or publish one of its checkpoints")
    check_files(folder)
    settings = make_section(
        "hub", HubConfig, push=True, model_id=name, private=private, form=form, with_pipeline=with_pipeline
    )
    try:
        with TemporaryDirectory(prefix="publish-") as workspace:
            files = make_form(folder, Path(workspace), settings)
            prepare(settings)
            upload(files, name, f"Upload of {folder.name}", settings.patience)
    except FAILURES as error:
        raise ConfigError(explain(error, name)) from error


def upload(
    files: Sequence[Path], name: str, message: str, patience: float, is_outdated: Callable[[], bool] = lambda: False
) -> None:
    """Upload a model in one commit, as `commit` does, once no file holds a secret.

    Args:
        files: all of the model, as `make_form` returns them.
        patience, is_outdated: as for `commit`.

    Raises:
        ConfigError: when a file holds what looks like an access token.
        HfHubHTTPError, and others: the last fault, when patience runs out.
    """
    refuse_secrets(files)
    commit(files, name, message, patience, is_replaced, is_outdated=is_outdated)


def commit(
    files: Sequence[Path],
    name: str,
    message: str,
    patience: float,
    is_replaced: Callable[[str], bool],
    kind: str = "model",
    is_outdated: Callable[[], bool] = lambda: False,
) -> None:
    """Send files in one commit, and try again after faults that may pass.

    The commit also removes what is left of what was there before, such as the code of another form of a model.

    Args:
        files: in which no secret is.
        patience: in seconds, for faults in a row.
        is_replaced: whether a file of the repository goes where none of this name is sent.
        kind: "model" or "dataset".
        is_outdated: asked before each try; True gives up without an error.

    Raises:
        HfHubHTTPError, and others: the last fault, when patience runs out.
    """
    api, budget = HfApi(), RetryBudget(patience, f"publishing to {name}")
    added = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in files]
    sent = {path.name for path in files}
    first_head = None
    while not is_outdated():
        try:
            info: Any = api.repo_info(name, repo_type=kind, timeout=API_TIMEOUT)
            head, there = info.sha, [sibling.rfilename for sibling in info.siblings or []]
            first_head = first_head or head
            if head != first_head and api.list_repo_commits(name, repo_type=kind)[0].title == message:
                return  # the answer to an earlier try was lost, not its commit
            left = [
                CommitOperationDelete(path_in_repo=path) for path in there if is_replaced(path) and path not in sent
            ]
            api.create_commit(name, [*added, *left], commit_message=message, parent_commit=head, repo_type=kind)
            return
        except HfHubHTTPError as error:
            is_overtaken = error.response is not None and error.response.status_code == 412
            if is_overtaken:  # somebody else committed first
                first_head = None
            budget.wait(error, is_transient(error) or is_overtaken)
        except Exception as error:
            budget.wait(error)


def explain(error: BaseException, name: str | None) -> str:
    """Say in one line what went wrong with a repository."""
    return str(error) if isinstance(error, ConfigError) else explain_refusal(error, str(name)) or in_short(error)


class Parcel(NamedTuple):
    """A checkpoint that waits to be uploaded, in a folder of the outbox."""

    step: int
    folder: Path
    files: list[Path]


class Publisher(TrainerCallback):
    """Upload checkpoints while training goes on, always the newest one, and never stop the training.

    The files are linked into an outbox, so that a checkpoint may be removed while it is being uploaded. A checkpoint
    that still waits when a newer one is saved is left out.

    Args:
        describe: writes card and curves of the model so far into a folder.

    Raises:
        ConfigError: when the outbox is a link, through which files would land elsewhere.
    """

    def __init__(self, settings: HubConfig, output_dir: Path, describe: Callable[[Path], None]):
        self.settings, self.describe = settings, describe
        self.outbox = output_dir / OUTBOX
        if self.outbox.is_symlink():
            raise ConfigError(f"{self.outbox} is a link; remove it")
        shutil.rmtree(self.outbox, ignore_errors=True)
        self.changed = threading.Condition()
        self.waiting: Parcel | None = None
        self.is_finished = False
        self.thread = threading.Thread(target=self._send, name="publisher", daemon=True)
        self.thread.start()

    def on_save(self, args, state, control, **kwargs):
        checkpoint = checkpoint_path(Path(args.output_dir), state.global_step)
        if not checkpoint.is_dir():
            return
        folder = self.outbox / f"step-{state.global_step}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(checkpoint, folder, symlinks=True, copy_function=_link, ignore=_unpublished)
            self.describe(folder)
            workspace = folder / "form"
            workspace.mkdir()
            parcel = Parcel(state.global_step, folder, make_form(folder, workspace, self.settings))
        except FAILURES as error:
            logger.warning("hub: step %d is not pushed: %s", state.global_step, one_line(error))
            shutil.rmtree(folder, ignore_errors=True)
            return
        with self.changed:
            if self.waiting is not None:
                shutil.rmtree(self.waiting.folder, ignore_errors=True)
            self.waiting = parcel
            self.changed.notify()

    def finish(self) -> None:
        """Wait for the upload in progress, if any; a checkpoint that still waits is left out for the finished model."""
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
            name = str(self.settings.model_id)
            try:
                upload(parcel.files, name, f"Step {parcel.step}", self.settings.patience, self._is_outdated)
            except FAILURES as error:
                logger.warning("hub: step %d is not on the Hub: %s", parcel.step, explain(error, name))
            shutil.rmtree(parcel.folder, ignore_errors=True)

    def _is_outdated(self) -> bool:
        return self.waiting is not None or self.is_finished


def publish_result(folder: Path, settings: HubConfig) -> None:
    """Upload the finished model.

    Raises:
        NotPublished: when that fails; the local copy stays.
    """
    name = str(settings.model_id)
    try:
        check_files(folder)
        with TemporaryDirectory(prefix="publish-") as workspace:
            upload(make_form(folder, Path(workspace), settings), name, "Finished model", settings.patience)
    except FAILURES as error:
        options = "" if settings.form == "own" else f" --as {settings.form}"
        options += " --with-pipeline" if settings.with_pipeline else ""
        raise NotPublished(
            f"{folder} is trained, scored and saved, but not on the Hub: {explain(error, name)}; "
            f"fix that and run the same command again, or teacher-forcing publish {folder} {name}{options}"
        ) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _unpublished(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not is_published(name)}
