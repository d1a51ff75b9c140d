"""Task metrics against scikit-learn, scipy and their definitions; degenerate input."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from peftjax.training import task_metrics as metrics

CLASSES = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "mean_per_class": sklearn.metrics.balanced_accuracy_score,
}
SCORES = {
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    "roc_auc": sklearn.metrics.roc_auc_score,
}


@pytest.mark.parametrize("name", [*CLASSES, *SCORES])
def test_random_predictions(name):
    draw = np.random.default_rng(0)
    for size in (2, 3, 50, 1000):
        labels = draw.integers(0, 2, size)
        labels[:2] = 0, 1
        other = draw.integers(0, 2, size) if name in CLASSES else draw.normal(size=size)
        wanted = (CLASSES | SCORES)[name](labels, other)
        found = getattr(metrics, name)(labels, other)
        assert isinstance(found, float) and found == wanted


def test_definitions_by_hand():
    labels, predicted = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    assert metrics.accuracy(labels, predicted) == pytest.approx(4 / 6)
    assert metrics.f1(labels, predicted) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.matthews(labels, predicted) == pytest.approx((2 * 2 - 1) / 9)
    uneven = np.array([0, 0, 0, 0, 1, 2])
    assert metrics.mean_per_class(uneven, np.zeros(6, int)) == pytest.approx(1 / 3)
    scores = np.array([0.9, 0.8, 0.3, 0.4, 0.1, 0.2])
    assert metrics.roc_auc(labels, scores) == pytest.approx(8 / 9)


def test_degenerate_input_is_as_documented():
    one, zero, mixed = np.ones(4, int), np.zeros(4, int), np.array([0, 1, 0, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels, predicted in [(one, mixed), (mixed, one), (one, one), (zero, zero)]:
            assert metrics.matthews(labels, predicted) == 0.0
        assert metrics.f1(zero, zero) == metrics.f1(mixed, zero) == 0.0
        assert metrics.f1(one, one) == 1.0
        assert metrics.mean_per_class(one, mixed) == 0.5
        for correlation in (metrics.pearson, metrics.spearman):
            assert np.isnan(correlation(mixed, one * 0.5))
            assert np.isnan(correlation(one, scores))
        assert np.isnan(metrics.roc_auc(one, scores))
        assert metrics.roc_auc(mixed, one * 0.5) == 0.5
        assert np.isnan(metrics.eleven_point_map(zero[:, None], scores[:, None]))


def eleven_points(labels, scores):
    """Average precision at recall 0, 0.1, ..., 1, one threshold at a time."""
    points = []
    for threshold in np.unique(scores):
        chosen = scores >= threshold
        hits = (labels[chosen] == 1).sum()
        points.append((hits * 10, labels.sum(), hits / chosen.sum()))
    # Recall >= level / 10 in integers, free of rounding.
    return np.mean(
        [
            max(precision for hits, total, precision in points if hits >= level * total)
            for level in range(11)
        ]
    )


def test_eleven_point_map():
    draw = np.random.default_rng(1)
    for size in (10, 30, 200):
        labels = (draw.uniform(size=(size, 4)) < 0.3).astype(int)
        labels[0], labels[:, 3] = 1, 0
        scores = draw.integers(0, 20, (size, 4)) / 10  # with ties
        wanted = np.mean([eleven_points(labels[:, c], scores[:, c]) for c in range(3)])
        # Sums of at most 33 quotients below 1.
        bound = 33 * np.finfo(float).eps
        assert abs(metrics.eleven_point_map(labels, scores) - wanted) <= bound
    # Ten positives: each recall k/10 lies on a level of the metric.
    labels = np.tile([1, 0], 10)[:, None]
    scores = -np.arange(20.0)[:, None]
    assert metrics.eleven_point_map(labels, scores) == pytest.approx(
        eleven_points(labels[:, 0], scores[:, 0]), abs=33 * np.finfo(float).eps
    )


@pytest.mark.parametrize("task", metrics.GLUE)
def test_glue(task):
    draw = np.random.default_rng(2)
    classes = 3 if task == "mnli" else 2
    if task == "stsb":
        labels = draw.uniform(0, 5, 60).astype(np.float32)
        outputs = labels + draw.normal(size=60)
        found = metrics.glue(task, "validation", labels, outputs)
        assert found == metrics.glue(task, "validation", labels, outputs[:, None])
        pearson = scipy.stats.pearsonr(labels, outputs).statistic
        spearman = scipy.stats.spearmanr(labels, outputs).statistic
        wanted = {"pearson": pearson, "spearman": spearman}
        assert found == wanted | {"mean": (pearson + spearman) / 2}
        return
    labels, outputs = draw.integers(0, classes, 60), draw.normal(size=(60, classes))
    found = metrics.glue(task, "validation", labels, outputs)
    predicted = outputs.argmax(axis=1)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, predicted)
    if task in ("mrpc", "qqp"):
        f1 = sklearn.metrics.f1_score(labels, predicted)
        assert found["f1"] == f1 and found["mean"] == (found["accuracy"] + f1) / 2
    if task == "cola":
        assert found["matthews"] == sklearn.metrics.matthews_corrcoef(labels, predicted)


def test_matched_and_mismatched_join():
    labels, outputs = np.array([0, 2]), np.eye(3)[[0, 1]]
    found = metrics.glue("mnli", "validation_matched", labels, outputs)
    found |= metrics.glue("mnli", "validation_mismatched", labels[:1], outputs[:1])
    assert found == {"accuracy_matched": 0.5, "accuracy_mismatched": 1.0}


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "message"),
    [
        ("colla", [0], [[0.0, 1.0]], "unknown GLUE task 'colla': did you mean cola"),
        ("cola", [0, 1], [0.1, 0.2], r"expected logits \[N, C\], found \[2\]"),
        ("stsb", [0.0], [[0.1, 0.2]], r"expected scores \[N\], found \[1, 2\]"),
        ("cola", [0], [[np.nan, 1.0]], "outputs are not finite"),
        ("cola", [-1, -1], np.eye(2), "labels of validation are withheld"),
        ("cola", [0, 1, 1], np.eye(2), r"one shape.*\[3\] and \[2\]"),
        ("cola", [], np.zeros((0, 2)), "at least one example"),
    ],
)
def test_bad_input(task, labels, outputs, message):
    with pytest.raises(ValueError, match=message):
        metrics.glue(task, "validation", np.array(labels), np.array(outputs))
