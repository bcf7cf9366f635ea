"""What the tests of exact likelihoods share: all binary vectors, and samples against their probabilities."""

import itertools

import numpy as np
import scipy.stats


def states(bits=8):
    """All binary vectors, in the order of the numbers that they write."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=bits)))


def assert_drawn_from(samples, probabilities, base=2):
    """Chi-square of samples [n, ...] of digits below `base` against the probabilities of all their combinations."""
    samples = np.asarray(samples).reshape(len(samples), -1)
    codes = samples @ base ** np.arange(samples.shape[1])[::-1]
    counts = np.bincount(codes.astype(int), minlength=len(probabilities))
    expected = len(samples) * probabilities
    rare = expected < 5  # pooled, as the chi-square wants them
    assert counts[expected == 0].sum() == 0
    counts, expected = (np.append(a[~rare], a[rare].sum() + 1e-9) for a in (counts, expected))
    assert scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
