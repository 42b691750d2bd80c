from collections import Counter

import pytest
import torch

from pipeline.decoding.sampling import SeededDraws

PROBABILITIES = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.15, 0.1])
ROWS = 4000


@pytest.fixture(scope="module")
def pairs() -> torch.Tensor:
    """Two draws without replacement for each of many rows."""
    with SeededDraws(0, range(ROWS)):
        return torch.multinomial(PROBABILITIES.expand(ROWS, -1), 2)


def statistic(seen: list, shares: dict) -> float:
    """Pearson's chi-squared, which is about the degrees of freedom, a possibility less one, where the shares hold."""
    counts = Counter(seen)
    assert not counts.keys() - shares.keys()
    return sum((counts[key] - share * len(seen)) ** 2 / (share * len(seen)) for key, share in shares.items())


def test_a_draw_has_the_probabilities(pairs):
    shares = {number: share for number, share in enumerate(PROBABILITIES.tolist()) if share}
    assert statistic(pairs[:, 0].tolist(), shares) < 11.3  # 1 % of all seeds exceed it, with 3 degrees of freedom


def test_draws_without_replacement_are_made_from_what_is_left(pairs):
    shares = {
        (first, second): share * other / (1 - share)
        for first, share in enumerate(PROBABILITIES.tolist())
        for second, other in enumerate(PROBABILITIES.tolist())
        if first != second and share and other
    }
    assert statistic([tuple(pair) for pair in pairs.tolist()], shares) < 24.7  # 11 degrees of freedom


def test_a_rows_draws_are_its_own():
    def draw(rows: list[int], seed: int = 0, answers: int = 1) -> list[list[int]]:
        torch.manual_seed(0)
        uniform = torch.full((len(rows) * answers, 1000), 1e-3)
        with SeededDraws(seed, rows):
            draws = torch.cat([torch.multinomial(uniform, 1), uniform.multinomial(1)], 1)
        assert torch.rand(()) == torch.manual_seed(0).initial_seed() + torch.rand(()), "torch's own numbers were taken"
        return draws.tolist()

    together = draw([3, 1, 2])
    assert together == draw([3]) + draw([1, 2])
    assert len({number for row in together for number in row}) == 6
    assert draw([3], seed=1) != draw([3])
    several = draw([3, 1], answers=2)
    assert [several[0], several[2]] == together[:2] and several[1] != several[0]


def test_more_draws_than_there_are_possibilities_give_each_once():
    with SeededDraws(0, [0]):
        drawn = torch.multinomial(PROBABILITIES[None], 6)[0].tolist()
    assert sorted(drawn) == list(range(6)) and {*drawn[4:]} == {0, 3}


def test_what_is_not_a_probability_is_an_error_as_in_torch():
    with SeededDraws(0, [0]), pytest.raises(RuntimeError, match="probability tensor contains either `inf`, `nan`"):
        torch.multinomial(torch.tensor([[1.0, torch.nan]]), 1)
