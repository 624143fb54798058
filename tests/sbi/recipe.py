"""Examples of ``docs/how-to/sbi.md``, and a training with sbi."""

import re
from pathlib import Path

import pytest

pytest.importorskip("sbi")
NPE = pytest.importorskip("sbi.inference").NPE


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sbi.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def fitted(prior, theta, x, build_fn, *, epochs, rate, batch):
    """Train with a falling learning rate, and return the posterior."""
    inference = NPE(prior, density_estimator=build_fn, show_progress_bars=False)
    inference.append_simulations(theta, x)
    done = 0
    for i, count in enumerate(epochs):
        done += count
        if i > 0:
            for group in inference.optimizer.param_groups:
                group["lr"] = rate / 5**i
        inference.train(
            training_batch_size=batch,
            learning_rate=rate,
            max_num_epochs=done,
            stop_after_epochs=done,
            resume_training=i > 0,
        )
    return inference.build_posterior()


def draw(posterior, count, x):
    return posterior.sample((count,), x=x, show_progress_bars=False)
