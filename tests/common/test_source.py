import pytest

from tests.common.source import transformers_tests


def test_without_a_source_tree_the_common_tests_are_skipped(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_SRC", raising=False)
    with pytest.raises(pytest.skip.Exception, match="TRANSFORMERS_SRC names no source tree"):
        transformers_tests("test_modeling_common")


def test_a_folder_that_is_no_source_tree_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFORMERS_SRC", str(tmp_path))
    monkeypatch.setattr("tests.common.source.PACKAGE", "not_loaded_yet")
    with pytest.raises(FileNotFoundError, match="is not the folder of transformers' tests"):
        transformers_tests("test_modeling_common")
