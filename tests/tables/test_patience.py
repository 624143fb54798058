"""The early end of a training on tables."""

from types import SimpleNamespace

import pytest

from pyro_iresnet.tables.fit import LEAST_PATIENCE, Patience


def end(patience, scores, *, first=100):
    """Return the step of the check that stops a training, or None; checks lie 100 steps apart."""
    for i, score in enumerate(scores):
        trainer = SimpleNamespace(
            callback_metrics={"val_loss": score}, global_step=first + 100 * i, should_stop=False
        )
        patience.on_validation_end(trainer, None)
        if trainer.should_stop:
            return trainer.global_step
    return None


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("best", [100, 1000])
def test_waits_in_proportion_to_the_best_step(share, best):
    scores = [-step for step in range(100, best + 1, 100)] + 100 * [0.0]
    last_allowed = best + LEAST_PATIENCE + share * best
    assert last_allowed < end(Patience(share), scores) <= last_allowed + 100


def test_better_scores_never_end():
    assert end(Patience(0.5), [-float(i) for i in range(200)]) is None


def test_late_better_score_starts_the_wait_again():
    worse = 2 * [0.0]
    assert end(Patience(0.5), [-1.0, *worse, -2.0, *worse, -3.0, *worse]) is None


def test_keeps_a_stop_of_others():
    trainer = SimpleNamespace(callback_metrics={"val_loss": -1.0}, global_step=1, should_stop=True)
    Patience(0.5).on_validation_end(trainer, None)
    assert trainer.should_stop
