"""Arguments of the automatic guide."""

from fractions import Fraction

import pytest

from pyro_iresnet import AutoIResNet
from pyro_iresnet.errors import (
    ArgumentError,
    ArgumentTypeError,
)

from .models import banana


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_blocks": 0}, ArgumentError, "num_blocks"),
        ({"num_blocks": 2.5}, ArgumentTypeError, "num_blocks"),
        ({"init": "map"}, ArgumentError, "init to be one of auto, laplace, plain"),
        ({"init_scale": 0.0}, ArgumentError, "init_scale"),
        ({"init_loc_fn": 3}, ArgumentTypeError, "init_loc_fn"),
        ({"path_gradients": "no"}, ArgumentTypeError, "path_gradients"),
        ({"lipschitz": 1.2}, ArgumentError, "lipschitz"),
        ({"hidden_dims": "64"}, ArgumentTypeError, "hidden_dims"),
        ({"hidden_dims": b"64"}, ArgumentTypeError, "hidden_dims"),
        ({"coordinates": 3}, ArgumentTypeError, "coordinates"),
    ],
)
def test_refuses_wrong_options(options, error, words):
    with pytest.raises(error, match=words):
        AutoIResNet(banana, **options)


def test_refuses_missing_model():
    with pytest.raises(ArgumentTypeError, match="model"):
        AutoIResNet(3)
    with pytest.raises(ArgumentError, match="has seen its model"):
        AutoIResNet(banana).get_transform()


def test_takes_any_real_scale():
    guide = AutoIResNet(banana, 1, hidden_dims=[8], init="plain", init_scale=Fraction(1, 10))
    guide()
    scale = guide.transform.parts[-1].start_scale_tril.diagonal().detach()
    assert scale.tolist() == pytest.approx([0.1, 0.1])
