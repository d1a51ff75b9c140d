"""The Fréchet distance against SciPy's matrix root, and refusals."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from peftjax.evaluation.frechet import frechet_distance


def test_against_the_matrix_root():
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal((50, 4)),
        1 + rng.standard_normal((40, 4)) @ np.diag([1, 2, 3, 4]),
    )
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(c @ d)).real
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = means + np.trace(c) + np.trace(d) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (4,)])
def test_sets_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(np.zeros((3, 4)), np.zeros(shape))
