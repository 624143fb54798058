"""Pixels as real numbers: dequantisation, levels and the logit."""

import math

import pytest
import torch

from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.images import PixelLogit, dequantize, quantize

LEVELS = [
    (torch.uint8, 256),
    (torch.uint16, 65536),
    (torch.int64, 17),
    (torch.float32, 256),
    (torch.float64, 2),
]


@pytest.mark.parametrize(("dtype", "levels"), LEVELS)
def test_keeps_levels(dtype, levels):
    pixels = torch.randint(levels, (4, 3, 5, 6)).to(dtype)
    x = dequantize(pixels, levels)
    assert x.is_floating_point()
    assert (quantize(x, levels) == pixels).all()
    assert (x < levels).all()
    assert (x != pixels).double().mean() > 0.9


def test_highest_level():
    # The sum of 4095 and a number near 1 rounds to 4096 in float32.
    x = dequantize(torch.full((100_000,), 4095.0, dtype=torch.float32), 4096)
    assert (quantize(x, 4096) == 4095).all()
    assert len(x.unique()) > 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_dtypes_without_room_for_noise(dtype):
    with pytest.raises(ArgumentTypeError, match="numbers between 256 levels"):
        dequantize(torch.full((4,), 200.0, dtype=dtype))
    assert dequantize(torch.ones(4, dtype=dtype), 2).dtype is dtype


def test_noise_follows_the_seed():
    pixels = torch.randint(256, (3, 1, 4, 4))
    torch.manual_seed(3)
    first = dequantize(pixels)
    torch.manual_seed(3)
    assert (dequantize(pixels) == first).all()
    assert (dequantize(pixels) != first).any()


@pytest.mark.parametrize("margin", [0.2, 0.05, 1e-6])
def test_logit_against_autograd(margin):
    logit = PixelLogit(17, margin)
    x = 17 * torch.rand(6, 2, 3, 2)
    y, log_det = logit(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: logit(v)[0], x)
    slopes = jacobian.reshape(x.numel(), x.numel()).diagonal().reshape(6, -1)
    torch.testing.assert_close(log_det, slopes.log().sum(1))
    back, log_det_back = logit.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_logit_by_its_formula():
    y, _ = PixelLogit(256, 0.05)(torch.tensor([[[[0.0, 256.0, 128.0]]]]))
    ends = math.log(0.05 / 0.95)
    torch.testing.assert_close(y.flatten(), torch.tensor([ends, -ends, 0.0]))


def test_ends_are_finite():
    x = torch.tensor([[[[0.0, 256.0]]]], dtype=torch.float32)
    assert all(t.isfinite().all() for t in PixelLogit(256, 1e-6)(x))


WRONG = [
    (torch.rand(2, 1, 4, 4), "integers from 0 to 255"),
    (torch.full((2, 1, 4, 4), 256), "integers from 0 to 255; got 256"),
    (torch.full((2, 1, 4, 4), -1), "got -1"),
    (torch.full((2, 1, 4, 4), torch.nan), "got nan"),
    (torch.full((2, 1, 4, 4), torch.inf), "got inf"),
]


@pytest.mark.parametrize(("pixels", "message"), WRONG)
def test_refuses_other_pixels(pixels, message):
    with pytest.raises(ArgumentError, match=message):
        dequantize(pixels)


@pytest.mark.parametrize("pixels", [[1, 2], torch.zeros(2, dtype=torch.bool), None])
def test_refuses_other_types(pixels):
    with pytest.raises(ArgumentTypeError, match="pixels"):
        dequantize(pixels)


@pytest.mark.parametrize("value", [-0.1, 256.5])
def test_refuses_numbers_outside_of_the_levels(value):
    with pytest.raises(ArgumentError, match="between 0 and levels=256"):
        PixelLogit()(torch.full((1, 1, 2, 2), value))


def test_whole_range():
    logit = PixelLogit(10, 0.1)
    assert (logit.low, logit.high) == (-1.25, 11.25)
    logits = torch.tensor([[-20.0, -3.0, 0.0, 5.0, 20.0]])
    x, _ = logit.inverse(logits)
    assert ((x > logit.low) & (x < logit.high)).all()
    torch.testing.assert_close(logit(x)[0], logits, atol=1e-6, rtol=0)
    ends, _ = logit(torch.tensor([[-1.25, 11.25]]))
    assert ends.isfinite().all()
    assert ends[0, 0] < -30
    assert ends[0, 1] > 30
    for outside in (-1.26, 11.26):
        with pytest.raises(ArgumentError, match="between 0 and levels=10"):
            logit(torch.tensor([[outside]]))


def test_refusals_of_the_logit():
    with pytest.raises(ArgumentError, match=r"\(batch, channels, height, width\); got \(2,\)"):
        PixelLogit()(torch.zeros(2))
    with pytest.raises(ArgumentTypeError, match="resolves margin=1e-09"):
        PixelLogit(256, 1e-9)(torch.zeros(2, 1, 2, 2, dtype=torch.float32))


def test_settings_are_saved():
    saved = PixelLogit(17, 0.1).state_dict()
    PixelLogit(17, 0.1).load_state_dict(saved)
    for other in (PixelLogit(32, 0.1), PixelLogit(17, 0.2)):
        with pytest.raises(RuntimeError, match=r"levels|margin"):
            other.load_state_dict(saved)


@pytest.mark.parametrize("margin", [0.0, 0.5, 0.7, -1.0])
def test_refuses_margins(margin):
    with pytest.raises(ArgumentError, match="margin"):
        PixelLogit(256, margin)


def test_refuses_one_level():
    with pytest.raises(ArgumentError, match="levels"):
        PixelLogit(1)
