"""The names on top, and the packages that an import of them brings."""

import importlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pyro_iresnet

MOST_NAMES, MOST_MODULES = 32, 117
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

MODULES = """
import json, sys, torch
import pyro, pyro.distributions, pyro.infer.autoguide, pyro.optim
before = set(sys.modules)
import pyro_iresnet
stack = pyro_iresnet.iresnet_stack(2, 2, [4])
x = torch.randn(20, 2)
loss = -stack.log_abs_det_jacobian(x, stack(x)).mean() + stack.inv(x).sum()
loss.backward()
pyro_iresnet.certificate(stack, x)
guide = pyro_iresnet.AutoIResNet(lambda: pyro.sample("x", pyro.distributions.Normal(0.0, 1.0)))
guide()
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
"""


def needed_by(name, found=None):
    """Return the packages that a package needs, with those that they need, and itself."""
    found = set() if found is None else found
    if name in found:
        return found
    found.add(name)
    try:
        needs = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return found
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            needed_by(canonicalize_name(need.name), found)
    return found


def test_nflows_stays_out():
    """Work with Pyro alone, and load no package that only nflows needs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MODULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    new, all_loaded = json.loads(done.stdout.splitlines()[-1])
    own = [name for name in new if name.split(".")[0] == "pyro_iresnet"]
    assert 0 < len(own) <= MOST_MODULES
    only = needed_by("nflows") - needed_by("torch") - needed_by("pyro-ppl")
    assert {"nflows", "matplotlib", "tensorboard"} <= only
    modules = {
        module
        for module, owners in packages_distributions().items()
        if {canonicalize_name(owner) for owner in owners} <= only
    }
    assert modules & {name.split(".")[0] for name in all_loaded} == set()


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
        "images",
        "logdet",
        "norms",
        "operators",
        "solvers",
        "tables",
        "training",
    ):
        module = importlib.import_module(f"pyro_iresnet.{name}")
        assert len(module.__all__) == len(set(module.__all__))
        assert all(hasattr(module, each) for each in module.__all__)


def test_late_namespaces():
    # The extra sbi may be missing, so a listing of names must not import the namespaces.
    names = [name for name in pyro_iresnet.NAMESPACES if name != "sbi"]
    code = (
        "import inspect, pyro_iresnet as p; inspect.getmembers(p); "
        f"print(*(set({names}) & set(vars(p)))); "
        f"print(*(getattr(p, name).__name__ for name in {names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late = done.stdout.split("\n")[:2]
    assert early == ""
    assert late.split() == [f"pyro_iresnet.{name}" for name in names]


def test_unknown_name():
    assert not hasattr(pyro_iresnet, "IResNetTransforms")
