"""Maps against masks: the scores are scikit-learn's, and their intervals are over subjects."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scoring.masks import Marked, agreement, counted, curves, levels


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 40, 40)) < 0.1
    scores = levels((rng.normal(size=masks.shape) + masks).ravel()).reshape(masks.shape)
    found = agreement([Marked("a", *counted(scores, masks))])
    assert found["average_precision"] == pytest.approx(average_precision_score(masks.ravel(), scores.ravel()))
    assert found["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()))
    dice = max(
        2 * (masks & (scores >= each)).sum() / ((scores >= each).sum() + masks.sum()) for each in np.unique(scores)
    )
    assert found["dice"] == pytest.approx(dice)
    assert "auroc_low" not in found, "one subject says nothing of others"


def test_levels_keep_the_order_and_are_close():
    scores = np.sort(
        np.random.default_rng(1).normal(size=2000) * 10.0 ** np.random.default_rng(2).integers(-3, 4, 2000)
    )
    rounded = levels(scores)
    assert (np.diff(rounded) >= 0).all() and np.allclose(rounded, scores, rtol=0.016, atol=1e-4)
    assert levels(np.array([np.nan, np.inf]))[0] == 0 and np.isfinite(levels(np.array([np.inf, -np.inf]))).all()


def test_intervals_hold_the_score_and_widen_with_fewer_subjects():
    rng = np.random.default_rng(3)

    def people(count: int) -> list[Marked]:
        masks = rng.random((count, 500)) < 0.2
        return [
            Marked(str(i), *counted(rng.normal(size=500) + rng.normal(1, 0.5) * mask, mask))
            for i, mask in enumerate(masks)
        ]

    few, many = agreement(people(4)), agreement(people(40))
    for found in (few, many):
        assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
    assert many["auroc_high"] - many["auroc_low"] < few["auroc_high"] - few["auroc_low"]


def test_nothing_marked_has_no_score():
    assert all(np.isnan(value) for value in curves(np.zeros(3), np.ones(3)).values())
