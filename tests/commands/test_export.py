"""`teacher-forcing export`; tests/exporting/test_export.py has the exports."""

import pytest

from pipeline import cli


def test_a_number_that_is_none_is_refused_in_words(capsys):
    for value, message in (("many", "'many' is neither a whole number nor all"), ("0", "0 is not a number from 1 to")):
        with pytest.raises(SystemExit):
            cli.main(["export", "folder", "--to", "onnx", "--num-rows", value])
        assert f"--num-rows: {message}" in capsys.readouterr().err
