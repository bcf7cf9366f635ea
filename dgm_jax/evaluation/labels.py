"""What labels that a model was not told say of it: do its codes tell classes apart, do its samples show what was asked?

Codes are probed by a linear classifier and by neighbours, and so are as many principal components of the data beside
them. Samples are named by a classifier of the data, whose own accuracy stands beside theirs.
"""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dgm_jax.evaluation.neighbours import nearest
from dgm_jax.evaluation.nll import Metric, metric

NEIGHBOURS = 5
PASSES = 20  # over the data, of the classifier that names samples


def probes(
    codes: np.ndarray, labels: np.ndarray, train_codes: np.ndarray, train_labels: np.ndarray, name: str = "codes"
) -> dict[str, Metric]:
    """Accuracies of classifiers that read codes alone, fitted to the training split.

    Args:
        codes: [n, D], of the split that is reported.
        labels: [n].
        train_codes: [m, D].
        train_labels: [m].
        name: of the codes.

    Returns:
        "linear_<name>_accuracy" of logistic regression on standardized codes, and "knn_5_<name>_accuracy" of the vote
        of the 5 nearest codes, a tie going to the class of the smallest number.
    """
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_codes, train_labels)
    index, _ = nearest(jnp.asarray(codes, jnp.float32), jnp.asarray(train_codes, jnp.float32), NEIGHBOURS)
    votes = np.eye(train_labels.max() + 1)[train_labels[np.asarray(index)]].sum(1)
    return {
        f"linear_{name}_accuracy": _accuracy(linear.predict(codes), labels),
        f"knn_{NEIGHBOURS}_{name}_accuracy": _accuracy(votes.argmax(1), labels),
    }


def principal_components(x: np.ndarray, train_x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` principal components of the training split, [n, count] of x and [m, count] of train_x."""
    flat, train_flat = (a.reshape(len(a), -1).astype(np.float32) for a in (x, train_x))
    pca = PCA(min(count, *train_flat.shape), random_state=0).fit(train_flat)
    return pca.transform(flat), pca.transform(train_flat)


def conditional_accuracy(
    samples: np.ndarray,
    asked: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    train_x: np.ndarray,
    train_labels: np.ndarray,
) -> dict[str, Metric]:
    """How often a classifier of the data assigns a conditional sample to the class it was conditioned on.

    Args:
        samples: [m, *event], in the data's units.
        asked: [m], their labels.
        x, labels: of the split that is reported.
        train_x, train_labels: what the classifier, a small neural net, is fitted to.

    Returns:
        "conditional_accuracy", and "classifier_accuracy", the classifier's accuracy on the split.
    """
    scale = np.abs(train_x).max()
    net = MLPClassifier((200,), batch_size=100, max_iter=PASSES, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes are enough
        net.fit(train_x.reshape(len(train_x), -1) / scale, train_labels)

    def accuracy(x: np.ndarray, labels: np.ndarray) -> Metric:
        return _accuracy(net.predict(x.reshape(len(x), -1) / scale), labels)

    return {"conditional_accuracy": accuracy(samples, asked), "classifier_accuracy": accuracy(x, labels)}


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> Metric:
    return metric((predicted == labels).astype(np.float64), "estimate", "1")
