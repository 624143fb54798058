"""Checks of the contract that a new contraction, estimator, solver or block must meet.

Each check raises ``AssertionError`` that names a broken promise with its numbers, and returns
nothing. Use the checks in your own test suite:

    from pyro_iresnet import testing

    def test_my_contraction():
        testing.check_contraction(MyContraction(3).double(), torch.randn(50, 3).double())
"""

from .block import check_block
from .contraction import (
    check_contraction,
    check_linearization,
    check_lipschitz_bound,
    check_purity,
)
from .logdet import check_logdet
from .solver import check_solver

__all__ = [
    "check_block",
    "check_contraction",
    "check_linearization",
    "check_lipschitz_bound",
    "check_logdet",
    "check_purity",
    "check_solver",
]
