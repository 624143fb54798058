"""The names on top, and the packages that an import of them brings."""

import importlib
import json
import subprocess
import sys

import pyro_iresnet

MOST_NAMES = 32
LATE = ("nflows", "matplotlib", "torch._dynamo", "arviz", "pandas", "sklearn")
WORK = """
import json, sys, torch
import pyro_iresnet
loaded = [n for n in {late} if n in sys.modules]
stack = pyro_iresnet.iresnet_stack(2, 2, [4])
x = torch.randn(20, 2)
loss = -stack.log_abs_det_jacobian(x, stack(x)).mean() + stack.inv(x).sum()
loss.backward()
pyro_iresnet.certificate(stack, x)
working = [n for n in {late} if n in sys.modules]
names = dir(pyro_iresnet)
listed = [n for n in {late} if n in sys.modules]
transform = pyro_iresnet.IResNetTransform
print(json.dumps([loaded, working, listed, names, "nflows" in sys.modules]))
"""


def test_late_imports():
    work = WORK.replace("{late}", repr(LATE))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", work], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded, working, listed, names, nflows = json.loads(done.stdout)
    assert loaded == working == listed == []
    assert nflows
    assert set(pyro_iresnet.__all__) <= set(names)


def test_few_names():
    names = pyro_iresnet.__all__
    assert len(names) == len(set(names)) <= MOST_NAMES
    assert all(getattr(pyro_iresnet, name) is not None for name in names)
    assert set(names) <= set(dir(pyro_iresnet))


def test_namespaces():
    for name in (
        "activations",
        "blocks",
        "contractions",
        "coordinates",
        "diagnostics",
        "hosts.nflows",
        "hosts.pyro",
        "logdet",
        "norms",
        "operators",
        "solvers",
    ):
        module = importlib.import_module(f"pyro_iresnet.{name}")
        assert len(module.__all__) == len(set(module.__all__))
        assert all(hasattr(module, each) for each in module.__all__)


def test_unknown_name():
    assert not hasattr(pyro_iresnet, "IResNetTransforms")
