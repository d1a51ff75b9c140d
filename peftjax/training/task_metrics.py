"""The metrics of GLUE, VTAB-1k and ELEVATER, as scikit-learn and scipy compute them.

All are fractions, not percentages. Where a metric is not defined it is what those
libraries return, and no warning is printed: Matthews and F1 are 0 where predictions or
labels hold one class only (F1: no example of class 1), Pearson and Spearman are NaN for
constant scores or labels, ROC-AUC is NaN where the labels hold one class only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from peftjax.errors import unknown

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of equal entries of two `[N]`."""
    return _quiet(lambda x, y: np.mean(x == y), labels, predictions)


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the F1 of class 1, of two `[N]` of 0 and 1."""
    from sklearn.metrics import f1_score

    return _quiet(f1_score, labels, predictions, zero_division=0.0)


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Matthews' correlation coefficient of two `[N]` of classes."""
    from sklearn.metrics import matthews_corrcoef

    return _quiet(matthews_corrcoef, labels, predictions)


def pearson(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return Pearson's correlation of two `[N]`."""
    from scipy.stats import pearsonr

    return _quiet(lambda x, y: pearsonr(x, y)[0], labels, scores)


def spearman(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return Spearman's rank correlation of two `[N]`."""
    from scipy.stats import spearmanr

    return _quiet(lambda x, y: spearmanr(x, y)[0], labels, scores)


def mean_per_class(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the accuracy within each class of the labels `[N]`, averaged over them."""
    from sklearn.metrics import balanced_accuracy_score

    return _quiet(balanced_accuracy_score, labels, predictions)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve; labels `[N]` of 0 and 1, scores `[N]`."""
    from sklearn.metrics import roc_auc_score

    return _quiet(roc_auc_score, labels, scores)


def eleven_point_map(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return VOC2007's mean average precision over classes.

    Per class: the largest precision among the thresholds whose recall reaches r,
    averaged over r = 0, 0.1, ..., 1, on scikit-learn's precision-recall curve. A class
    without positive examples is left out of the mean; without any class it is NaN.

    Args:
        labels: `[N, C]`, 0 or 1.
        scores: `[N, C]`.
    """
    from sklearn.metrics import precision_recall_curve

    _check(labels, scores)
    values = []
    for column in np.flatnonzero(labels.any(axis=0)):
        precision, recall, _ = precision_recall_curve(
            labels[:, column], scores[:, column]
        )
        # The last point of the curve, precision 1 at recall 0, is of no threshold.
        precision, recall = precision[:-1], recall[:-1]
        # A recall of 3/10 reaches the level 0.3 whatever their last bits are.
        levels = np.linspace(0, 1, 11) - 1e-9
        values.append(np.mean([precision[recall >= level].max() for level in levels]))
    return float(np.mean(values)) if values else float("nan")


GLUE: dict[str, dict[str, Metric]] = {
    "cola": {"matthews": matthews, "accuracy": accuracy},
    "sst2": {"accuracy": accuracy},
    "mrpc": {"accuracy": accuracy, "f1": f1},
    "qqp": {"accuracy": accuracy, "f1": f1},
    "stsb": {"pearson": pearson, "spearman": spearman},
    "mnli": {"accuracy": accuracy},
    "qnli": {"accuracy": accuracy},
    "rte": {"accuracy": accuracy},
    "wnli": {"accuracy": accuracy},
}
AVERAGED = ("mrpc", "qqp", "stsb")


def glue_names(task: str, split: str) -> tuple[str, ...]:
    """Return the names of what `glue` returns, the one most often reported first.

    Raises:
        ValueError: unknown task.

    >>> glue_names("mnli", "validation_mismatched"), glue_names("mrpc", "validation")
    (('accuracy_mismatched',), ('accuracy', 'f1', 'mean'))
    """
    if task not in GLUE:
        raise unknown("GLUE task", task, GLUE)
    names = [*GLUE[task], "mean"] if task in AVERAGED else GLUE[task]
    _, _, part = split.partition("_")
    return tuple(f"{name}_{part}" if part else name for name in names)


def glue(
    task: str, split: str, labels: np.ndarray, outputs: np.ndarray
) -> dict[str, float]:
    """Return all metrics that papers report of a task.

    MRPC, QQP and STS-B also have the `mean` of their two. MNLI's names end in
    `_matched` or `_mismatched` after the split, so that the two results join into one.

    Args:
        task: `"cola"`, `"mrpc"`, ....
        split: what was evaluated, `"validation"` or `"validation_matched"`.
        labels: `[N]`.
        outputs: the model's logits `[N, C]`; of STS-B its scores, `[N]` or `[N, 1]`.

    Raises:
        ValueError: unknown task, withheld labels, wrong shapes, or outputs that are not
            finite.

    >>> logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.5, 0.6]])
    >>> glue("mnli", "validation_matched", np.array([0, 1, 0]), logits)
    {'accuracy_matched': 0.6666666666666666}
    """
    names = glue_names(task, split)
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    scores = task == "stsb"
    expected = [1, 2] if scores else [2]
    if outputs.ndim not in expected or (scores and outputs[:1].size > 1):
        raise ValueError(
            f"glue/{task}: expected {'scores [N]' if scores else 'logits [N, C]'}, "
            f"found {list(outputs.shape)}"
        )
    if not np.all(np.isfinite(outputs)):
        raise ValueError(f"glue/{task}, {split}: the model's outputs are not finite")
    if len(labels) and np.all(labels == -1):
        raise ValueError(f"glue/{task}: the labels of {split} are withheld")
    predicted = outputs.reshape(-1) if scores else outputs.argmax(axis=-1)
    values = [metric(labels, predicted) for metric in GLUE[task].values()]
    return dict(zip(names, [*values, sum(values) / len(values)]))


def _quiet(
    metric: Callable[..., Any], labels: np.ndarray, outputs: np.ndarray, **settings: Any
) -> float:
    """Return a metric as a float, without its warnings on degenerate input."""
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    _check(labels, outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric(labels, outputs, **settings))


def _check(labels: np.ndarray, outputs: np.ndarray) -> None:
    if labels.shape != outputs.shape or not len(labels):
        raise ValueError(
            "expected labels and outputs of one shape, at least one example, found "
            f"{list(labels.shape)} and {list(outputs.shape)}"
        )
