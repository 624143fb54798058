"""Counters of costly work, for tests that state how much work a call does."""

from pyro_iresnet.norms import Gram


class CountingNorm(Gram):
    """Gram norm with one counter of calls for all instances."""

    calls = 0

    def __call__(self, weight):
        CountingNorm.calls += 1
        return super().__call__(weight)


def norms_in(function):
    """Count the norms that a function takes by ``CountingNorm``."""
    CountingNorm.calls = 0
    function()
    return CountingNorm.calls


def evaluations_of(block):
    """Count the evaluations and the inversions of a block from now on."""
    counts = {"evaluate": 0, "evaluate_inverse": 0}

    def counting(name, method):
        def wrapper(*args, **kwargs):
            counts[name] += 1
            return method(*args, **kwargs)

        return wrapper

    for name in counts:
        setattr(block, name, counting(name, getattr(block, name)))
    return counts
