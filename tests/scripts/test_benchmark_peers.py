import pytest

from scripts.benchmark_peers import EOLE_LINE, JOEYNMT_LINE, reader

EOLE = (
    "[2026-11-26 19:26:08,448 INFO] Step 10/1000000; acc: 4.4; ppl: 5438.89; xent: 8.60; aux: 0.000; mtp: 0.000; "
    "attn_ent: 2.344; lr: 1.50e-03; sents:     635; bsz: 1331/1792/127; 989/1332 tok/s;     36 sec;\n"
)
JOEYNMT = (
    "2026-11-26 19:50:10,001 - INFO - joeynmt.training - Epoch   1, Step:       10, Batch Loss:     6.400000, "
    "Batch Acc: 0.060000, Tokens per Sec:     1012, Lr: 0.000300\n"
)


@pytest.mark.parametrize(("pattern", "line", "rate"), [(EOLE_LINE, EOLE, 1332.0), (JOEYNMT_LINE, JOEYNMT, 1012.0)])
def test_target_tokens_a_second_are_read_from_a_log(pattern, line, rate):
    read = reader(pattern)
    assert read(line) == {"items_per_second": rate}
    assert read("[2026-11-26 19:25:39,946 INFO] Weighted corpora loaded so far:\n") is None
