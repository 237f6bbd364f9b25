import math

import pytest
import torch
from torch.testing import assert_close

from instantgi.fit import LocalAdam
from instantgi.fit.network import LONG, expected_steps, is_ahead, network_fit, network_start
from instantgi.models import InstantGI


@pytest.fixture
def network() -> InstantGI:
    torch.manual_seed(0)
    return InstantGI(
        width=8, dims=(8, 16), depths=(1, 1), norm="group", fields="local", hidden=16, looks=2
    ).eval()


@pytest.mark.parametrize(
    "steps, size, seen", [(0, 1, 2), (20, 0.92, 2), (74, 0.8, 2), (75, 0.8, 0)]
)
def test_only_a_short_fit_starts_from_what_the_looks_made(network, steps, size, seen):
    image = torch.rand(3, 24, 30)
    with torch.no_grad():
        made = network(image, num_gaussians=100, looks=seen)
    start = network_start(network, image, 100, steps=steps)
    assert_close(start.means, made.means)
    assert_close(start.cholesky, size * made.cholesky)
    assert_close(start.colors * size**2, made.colors)


def test_the_longer_the_larger_the_steps():
    short, middle, long = (network_fit(steps) for steps in (20, 60, 300))
    assert all(isinstance(fit, LocalAdam) for fit in (short, middle, long))
    assert vars(long) == vars(LocalAdam())
    assert vars(short) != vars(middle) != vars(long)


def test_expected_steps_are_the_fewer():
    assert expected_steps(10, 10) == math.inf
    assert expected_steps(10, 10, iterations=5) == 5
    assert expected_steps(1000, 1000, seconds=2.0) == 80
    assert expected_steps(1000, 1000, iterations=5, seconds=2.0) == 5
    assert expected_steps(1000, 1000, iterations=500, seconds=2.0) == 80


def test_a_network_is_ahead_in_short_fits_that_leave_it_time():
    assert is_ahead(512, 768, iterations=LONG)
    assert not is_ahead(512, 768, iterations=LONG + 1)
    assert not is_ahead(512, 768)
    assert is_ahead(512, 768, seconds=1.0)
    assert not is_ahead(512, 768, seconds=0.5)
    assert not is_ahead(512, 768, iterations=100, seconds=0.5)
    assert not is_ahead(10_000, 10_000, seconds=10.0)
    assert is_ahead(8, 768, iterations=100)
    assert not is_ahead(7, 768, iterations=100)
    assert not is_ahead(1, 1, iterations=0)
