"""What all pages have in common."""

import pytest
from jinja2 import UndefinedError

from pipeline.pages.base import read, render, two_digits


def test_a_page_has_both_styles_and_nothing_is_left_open():
    with pytest.raises(UndefinedError, match="comparison"):
        render("comparison")
    assert "--paper" in read("base.css") and "mark {" in read("comparison.css")


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert [two_digits(number) for number in (-0.001, 0.005, -1.239)] == ["0.00", "0.01", "−1.24"]
