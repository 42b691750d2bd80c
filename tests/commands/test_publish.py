"""`teacher-forcing publish`."""


def test_publish(command, finished_folder, hub):
    """A finished model and a checkpoint; again costs no commit; what is not a model is refused."""
    done = command("publish", finished_folder, "team/published")
    assert done.returncode == 0 and "is published as team/published" in done.stdout, done.stderr
    assert command("publish", finished_folder / "checkpoint-2", "me/half-way").returncode == 0
    assert len(hub.commits("me/half-way")) == len(hub.commits("team/published")) == 2
    assert command("publish", finished_folder, "team/published").returncode == 0
    assert len(hub.commits("team/published")) == 2
    for folder, name, message in (
        (finished_folder / "nothing", "me/x", "no such folder"),
        (finished_folder / "runs", "me/x", "there are no weights to publish"),
        (finished_folder, "x", "name the repository to push to as owner/name"),
        (finished_folder, "you/x", "me cannot write to you/"),
    ):
        done = command("publish", folder, name)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
