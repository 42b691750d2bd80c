"""What a command says, as JSON."""

import json
import math

import pytest

from pipeline.commands.report import Report


@pytest.mark.parametrize("value, expected", [(math.nan, None), (-math.inf, None), (1.5, 1.5), (2, 2), (True, True)])
def test_json_has_no_numbers_that_other_readers_refuse(value, expected):
    def refuse(name: str) -> None:
        raise AssertionError(name)

    document = {"scores": {"x": value}, "all": [value, (value,)], "text": "\udcff é"}
    read = json.loads(Report(document, "").as_json(), parse_constant=refuse)
    assert read == {"scores": {"x": expected}, "all": [expected, [expected]], "text": "\udcff é"}
