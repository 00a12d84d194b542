"""Digits for a diffusion model: nothing of the grey levels is lost."""

import numpy as np
import pytest

from estimax.models import score_digits

datasets = pytest.importorskip("sklearn.datasets")


def test_grey_levels_are_those_of_the_digits():
    pixels = datasets.load_digits().images
    order = np.random.RandomState(0).permutation(len(pixels))
    images = np.concatenate([score_digits.data()["x"], score_digits.held_out()["x"]])
    assert images.dtype == np.float32
    # of 115,008 pixels a few lie so near to the next level that single precision rounds them up
    assert (score_digits.grey_levels(images) != pixels[order]).mean() < 1e-4
    assert abs(images.mean()) < 0.02
    assert images.std() == pytest.approx(1, abs=0.02)


def test_uniform_grey_levels_need_their_logarithm():
    density = np.full(5, 64 * np.log(score_digits.SCALE / 17))
    assert score_digits.bits_per_pixel(density) == pytest.approx(np.log2(17))
