"""A folder with a manifest: which damage is found."""

import pytest

from pipeline.manifest import MANIFEST_FILE, damage, damage_if_described, describe, to_json


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / "notes").write_text("not described")
    (tmp_path / MANIFEST_FILE).write_text(to_json(describe(tmp_path, [tmp_path / "weights"])))
    return tmp_path


def test_only_what_is_described_is_compared(folder):
    (folder / "notes").write_text("changed")
    assert damage(folder) is None
    (folder / "weights").write_bytes(b"abd")
    assert damage(folder) == damage_if_described(folder) == "weights was changed: its SHA-256 is another"


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"files": {"weights": 3}}', '{"files": {}}', "\0"])
def test_a_manifest_that_cannot_be_read_is_damage(folder, text):
    (folder / MANIFEST_FILE).write_text(text)
    problem = damage_if_described(folder)
    assert problem is not None and problem.startswith(MANIFEST_FILE)


def test_without_a_manifest_there_is_nothing_to_compare_with(folder):
    (folder / MANIFEST_FILE).unlink()
    assert damage_if_described(folder) is None and damage(folder) == "it has no manifest.json"
