"""`teacher-forcing trace`, before a model is loaded; tests/inference/test_attention.py has the rest."""

import pytest


@pytest.mark.parametrize(
    "words, said",
    [
        (["a", "b", "--output", "."], "--output . is a folder; name a page"),
        (["a", "b", "--output", "x.png"], "--output x.png: the picture takes this name"),
        (["a \udcff", "b"], "source: invalid UTF-8"),
        (["a", "\udcff"], "target: invalid UTF-8"),
    ],
    ids=["folder", "picture", "source", "target"],
)
def test_what_cannot_be_is_said_at_once(command, words, said):
    done = command("trace", "none", *words)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}")
