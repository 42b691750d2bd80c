import pytest

from scripts.benchmark_decoding import RATE, contenders
from scripts.benchmark_setting import Setting


@pytest.mark.parametrize(
    ("rates", "numbers"),
    [
        ((0.0, 0.0), {"not measured": "CTranslate2 has no bfloat16 for this processor"}),
        ((0.0, 2.0), {"best": "2 x 1 threads, 16 sentences a batch, CT2_USE_MKL=1"}),
        ((3.0, 2.0), {"best": "2 x 1 threads, 16 sentences a batch, CT2_USE_MKL=0"}),
    ],
)
def test_ctranslate2_takes_the_fastest_settings_that_the_processor_has(rates, numbers, tmp_path, monkeypatch):
    tried = [{RATE: rate, "best": [2, 1, 16] if rate else None} for rate in rates]
    monkeypatch.setattr(Setting, "measure", lambda *_, **__: tried.pop(0) if tried else {})
    turn = contenders(Setting("a.yaml", (), "cpu", tmp_path))["CTranslate2 bf16, beam 5"]()
    assert turn == {**numbers, "reference": "generate, one at a time, beam 5"}
