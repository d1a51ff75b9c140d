"""How far generated images are from real ones, by a classifier's features.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", arXiv 1706.08500, equation 6.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Return `|m - m'|² + tr(C + C' - 2 (C C')^½)` of two sets of features.

    m are means and C covariances: the squared Fréchet distance of two normal
    distributions, which is FID where the features are Inception's. The root's trace is
    taken from the eigenvalues of `C^½ C' C^½`, so that it is real.

    Args:
        real: `[N, features]`.
        generated: `[M, features]`.

    Raises:
        ValueError: a set has fewer than two rows, or the features differ.

    >>> points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> round(frechet_distance(points, points + [3.0, 4.0]), 6)
    25.0
    """
    shapes = real.shape, generated.shape
    if (
        real.ndim != 2
        or real.shape[1:] != generated.shape[1:]
        or min(map(len, (real, generated))) < 2
    ):
        raise ValueError(
            "frechet_distance: expected [N, features] twice, of the same features and "
            f"at least 2 rows each, found {shapes[0]} and {shapes[1]}"
        )
    means, covariances = [], []
    for features in (real, generated):
        features = np.asarray(features, np.float64)
        means.append(features.mean(0))
        covariances.append(np.atleast_2d(np.cov(features, rowvar=False)))
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    both = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    spread = sum(map(np.trace, covariances)) - 2 * np.sqrt(both).sum()
    return float(((means[0] - means[1]) ** 2).sum() + spread)
