"""What the tests of training share."""

import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

import pyro.distributions as dist
from lightning import Trainer
from pyro.distributions import ConditionalTransformedDistribution, TransformedDistribution

from pyro_iresnet import (
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet_flow,
    iresnet_stack,
)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": tmp_path}
    return Trainer(**{**quiet, **defaults, **options})


def points(count=64):
    return torch.randn(count, 2) * 3 + 5


def densities():
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    stack = iresnet_stack(2, 1, [8])
    conditional = conditional_iresnet_stack(2, 1, 1, [8])
    return {
        "nflows": (iresnet_flow(2, 1, hidden_features=8), False),
        "nflows, conditional": (conditional_iresnet_flow(2, 1, 1, hidden_features=8), True),
        "Pyro": (TransformedDistribution(base, [stack.inv]), False),
        "Pyro, conditional": (ConditionalTransformedDistribution(base, [conditional]), True),
    }
