"""One, two and four workers take the same steps, and a difference would be seen."""

import dataclasses

import numpy as np
import pytest

from skinray.errors import ConfigError
from skinray.training_config import VerifySettings
from skinray.verification import Agreement, _compare, _order, _Outcome, agreement_table, verify_distributed


@pytest.mark.ray
@pytest.mark.slow
def test_one_two_and_four_workers_agree_after_fifty_steps(ray_cluster: None) -> None:
    agreements = verify_distributed(VerifySettings(num_workers=(1, 2, 4), steps=50, precisions=("float64",)))
    assert [each.num_workers for each in agreements] == [1, 2, 4]
    for each in agreements:
        assert each.ranks == 0, "all ranks hold the same weights and BatchNorm statistics"
        assert each.step_s > 0
        assert each.weights <= 1e-5
        assert each.statistics <= 1e-5
    assert "all numbers of workers agree" in agreement_table(agreements, 1e-5)


@pytest.mark.ray
def test_more_workers_than_the_cluster_can_start_are_refused_before_the_first(ray_cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"64 workers .* has room for 4"):
        verify_distributed(VerifySettings(num_workers=(1, 64), global_batch_size=64))


def test_a_difference_is_seen_wherever_it_is() -> None:
    weights = {"conv/kernel": np.ones(3), "norm/moving_mean": np.zeros(2)}
    outcome = _Outcome(0, weights, 1.0, 0.1)

    def changed(name: str) -> _Outcome:
        return dataclasses.replace(outcome, weights={**weights, name: weights[name] + 0.5})

    assert _compare(outcome, [outcome, outcome], "float64").passes(0)
    assert _compare(outcome, [changed("conv/kernel")] * 2, "float64").weights == 0.5
    assert _compare(outcome, [changed("norm/moving_mean")] * 2, "float64").statistics == 0.5
    assert _compare(outcome, [outcome, changed("norm/moving_mean")], "float64").ranks == 0.5


@pytest.mark.parametrize("rows", [50 * 32, 50 * 512, 3])
def test_there_are_photos_for_every_step(rows: int) -> None:
    order = _order(rows, seed=0)
    assert len(order) == rows
    assert len(set(order[:256])) == min(rows, 256), "each once before any comes again"


def test_the_table_says_when_they_do_not_agree() -> None:
    apart = Agreement(2, "float64", weights=2e-5, statistics=0, ranks=0, step_s=0.1, all_reduce_s=0.01)
    assert "DO NOT agree" in agreement_table([apart], 1e-5)
    assert "DO NOT" not in agreement_table([dataclasses.replace(apart, precision="float32")], 1e-5), "float32 is for information"


def test_workers_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="32 is not a multiple of 3"):
        VerifySettings(num_workers=(1, 3))
    with pytest.raises(ValueError, match="two different numbers"):
        VerifySettings(num_workers=(2, 2))
