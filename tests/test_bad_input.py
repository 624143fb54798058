"""Wrong input of every public callable has a right answer, or an error in words of the package."""

import bad_input
import pytest
import torch
from bad_input_settings import WITHOUT, builders, public_names

from pyro_iresnet.errors import ArgumentError


@pytest.fixture(scope="module")
def cells():
    return bad_input.table()


def test_every_answer(cells):
    assert len(cells) > 6000
    assert [cell.fault for cell in cells if cell.fault] == []


def test_page_is_up_to_date(cells):
    # Else run tools/bad_input.py.
    assert bad_input.PAGE.read_text() == bad_input.page(cells)


def test_names_have_recipes():
    made, public = set(builders()), set(public_names())
    assert public - made - set(WITHOUT) == set()
    assert set(WITHOUT) - public == set()
    assert set(WITHOUT) & made == set()


def fault(error=None, allowed=False):
    return bad_input.Cell("call", "x", "NaN", error, "finite", allowed).fault


def test_rule():
    assert fault(allowed=True) is None
    assert fault(ArgumentError("Expected x to be finite.")) is None
    assert fault(TypeError("f() got an unexpected keyword argument 'y'")) is None
    assert fault() == "call, x = NaN: answered finite"
    assert "size mismatch" in fault(RuntimeError("size mismatch"))
    assert "sequence" in fault(TypeError("can't multiply sequence by non-int"))


def test_judges_numbers():
    x = torch.randn(4, 3, dtype=torch.float32)

    def told(words, wrong, function):
        call = bad_input.Call(function, {"x": x})
        return bad_input.judge(call, "x", words, wrong, function(wrong))[1]

    bad = bad_input.tensors(x)
    assert told("NaN", bad["NaN"], lambda x: 2 * x)
    assert not told("NaN", bad["NaN"], torch.nan_to_num)
    assert not told("NaN", bad["NaN"], lambda x: x - x.mean())
    assert told("denormals", bad["denormals"], lambda x: 2 * x)
    assert not told("denormals", bad["denormals"], lambda x: 1 / x)
    assert not told(
        "expanded", bad["expanded"], lambda x: x.as_strided((4,), (1,), 0) * x.stride(0)
    )
