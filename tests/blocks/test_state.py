"""Keys of the state of each block and each stack: a saved file must load into the next version."""

from itertools import pairwise

import pytest
import torch

from pyro_iresnet import (
    AutoIResNet,
    CayleyBlock,
    ConvContraction,
    DenseContraction,
    IResNetTransform,
    ResidualBlock,
    actnorm,
    conditional_iresnet,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
    wrap,
)
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.hosts.nflows import PatientActNorm
from pyro_iresnet.hosts.pyro import LinearAutoregressive

from ..guides.models import banana


def guide():
    made = AutoIResNet(banana, 1, hidden_dims=[3], init="plain")
    made()
    return made


MAKERS = {
    "dense": lambda: ResidualBlock(DenseContraction(2, [3])),
    "cayley": lambda: CayleyBlock(DenseContraction(2, [3])),
    "conv": lambda: ResidualBlock(ConvContraction((2, 3, 4), [3])),
    "wrapped": lambda: ResidualBlock(wrap(torch.nn.Linear(2, 2), lipschitz=0.9)),
    "context": lambda: CayleyBlock(DenseContraction(2, [3], context_dim=3)),
    "diagonal": lambda: ResidualBlock(DenseContraction(2, []), coordinates=DiagonalScale()),
    "triangular": lambda: CayleyBlock(DenseContraction(2, []), coordinates=TriangularScale()),
    "asinh": lambda: ResidualBlock(DenseContraction(2, []), coordinates=Asinh()),
    "in_turn": lambda: ResidualBlock(
        DenseContraction(2, []), coordinates=(Asinh(), TriangularScale())
    ),
    "actnorm": lambda: actnorm(2),
    "patient_actnorm": lambda: PatientActNorm(2),
    "affine": lambda: LinearAutoregressive(2),
    "iresnet": lambda: iresnet(2, [3]),
    "conditional_iresnet": lambda: conditional_iresnet(2, 3, [3], coordinates=None),
    "iresnet_stack": lambda: iresnet_stack(2, 1, [3], block="cayley"),
    "conditional_iresnet_stack": lambda: conditional_iresnet_stack(2, 3, 1, []),
    "IResNetTransform": lambda: IResNetTransform(2, [3]),
    "iresnet_flow": lambda: iresnet_flow(2, 1, hidden_features=[3]),
    "conditional_iresnet_flow": lambda: conditional_iresnet_flow(
        2, 3, 1, hidden_features=[], embedding_net=torch.nn.Linear(2, 3), between=None
    ),
    "AutoIResNet": guide,
}
KEYS = {
    "dense": """
        _extra_state
        contraction._extra_state
        contraction.activations.0.raw_frequency
        contraction.layers.0.weight
        contraction.layers.0.bias
        contraction.layers.1.weight
        contraction.layers.1.bias
    """,
    "cayley": """
        _extra_state
        contraction._extra_state
        contraction.activations.0.raw_frequency
        contraction.layers.0.weight
        contraction.layers.0.bias
        contraction.layers.1.weight
        contraction.layers.1.bias
    """,
    "conv": """
        _extra_state
        contraction._extra_state
        contraction.activations.0.raw_beta
        contraction.layers.0.weight
        contraction.layers.0.bias
        contraction.layers.1.weight
        contraction.layers.1.bias
    """,
    "wrapped": """
        _extra_state
        contraction._extra_state
        contraction.module.weight
        contraction.module.bias
    """,
    "context": """
        _extra_state
        contraction._extra_state
        contraction.activations.0.raw_frequency
        contraction.layers.0.weight
        contraction.layers.0.bias
        contraction.layers.1.weight
        contraction.layers.1.bias
        contraction.conditioner.embedding.0.weight
        contraction.conditioner.embedding.0.bias
        contraction.conditioner.shifts.0.weight
        contraction.conditioner.gates.0.weight
        contraction.conditioner.gates.0.bias
    """,
    "diagonal": """
        _extra_state
        contraction._extra_state
        contraction.layers.0.weight
        contraction.layers.0.bias
        coordinates.log_scale
    """,
    "triangular": """
        _extra_state
        contraction._extra_state
        contraction.layers.0.weight
        contraction.layers.0.bias
        coordinates.log_scale
        coordinates.below
    """,
    "asinh": """
        _extra_state
        contraction._extra_state
        contraction.layers.0.weight
        contraction.layers.0.bias
        coordinates.log_scale
    """,
    "in_turn": """
        _extra_state
        contraction._extra_state
        contraction.layers.0.weight
        contraction.layers.0.bias
        coordinates.maps.0.log_scale
        coordinates.maps.1.log_scale
        coordinates.maps.1.below
    """,
    "actnorm": """
        log_scale
        shift
    """,
    "patient_actnorm": """
        log_scale
        shift
    """,
    "affine": """
        start_loc
        start_scale_tril
        shift
        log_scale
        weight
    """,
    "iresnet": """
        _extra_state
        block._extra_state
        block.contraction._extra_state
        block.contraction.activations.0.raw_frequency
        block.contraction.layers.0.weight
        block.contraction.layers.0.bias
        block.contraction.layers.1.weight
        block.contraction.layers.1.bias
        block.coordinates.log_scale
    """,
    "conditional_iresnet": """
        _extra_state
        block._extra_state
        block.contraction._extra_state
        block.contraction.activations.0.raw_frequency
        block.contraction.layers.0.weight
        block.contraction.layers.0.bias
        block.contraction.layers.1.weight
        block.contraction.layers.1.bias
        block.contraction.conditioner.embedding.0.weight
        block.contraction.conditioner.embedding.0.bias
        block.contraction.conditioner.shifts.0.weight
        block.contraction.conditioner.gates.0.weight
        block.contraction.conditioner.gates.0.bias
    """,
    "iresnet_stack": """
        _extra_state
        0.log_scale
        0.shift
        1._extra_state
        1.block._extra_state
        1.block.contraction._extra_state
        1.block.contraction.activations.0.raw_frequency
        1.block.contraction.layers.0.weight
        1.block.contraction.layers.0.bias
        1.block.contraction.layers.1.weight
        1.block.contraction.layers.1.bias
        1.block.coordinates.log_scale
        2.log_scale
        2.shift
    """,
    "conditional_iresnet_stack": """
        0.log_scale
        0.shift
        1._extra_state
        1.block._extra_state
        1.block.contraction._extra_state
        1.block.contraction.layers.0.weight
        1.block.contraction.layers.0.bias
        1.block.contraction.conditioner.embedding.0.weight
        1.block.contraction.conditioner.embedding.0.bias
        1.block.contraction.conditioner.shifts.0.weight
        1.block.contraction.conditioner.gates.0.weight
        1.block.contraction.conditioner.gates.0.bias
        1.block.coordinates.log_scale
        2.log_scale
        2.shift
    """,
    "IResNetTransform": """
        _extra_state
        block._extra_state
        block.contraction._extra_state
        block.contraction.activations.0.raw_frequency
        block.contraction.layers.0.weight
        block.contraction.layers.0.bias
        block.contraction.layers.1.weight
        block.contraction.layers.1.bias
        block.coordinates.log_scale
    """,
    "iresnet_flow": """
        _transform._transforms.0.log_scale
        _transform._transforms.0.shift
        _transform._transforms.1._extra_state
        _transform._transforms.1.block._extra_state
        _transform._transforms.1.block.contraction._extra_state
        _transform._transforms.1.block.contraction.activations.0.raw_frequency
        _transform._transforms.1.block.contraction.layers.0.weight
        _transform._transforms.1.block.contraction.layers.0.bias
        _transform._transforms.1.block.contraction.layers.1.weight
        _transform._transforms.1.block.contraction.layers.1.bias
        _transform._transforms.1.block.coordinates.log_scale
        _transform._transforms.2.log_scale
        _transform._transforms.2.shift
    """,
    "conditional_iresnet_flow": """
        _transform._transforms.0._extra_state
        _transform._transforms.0.block._extra_state
        _transform._transforms.0.block.contraction._extra_state
        _transform._transforms.0.block.contraction.layers.0.weight
        _transform._transforms.0.block.contraction.layers.0.bias
        _transform._transforms.0.block.contraction.conditioner.embedding.0.weight
        _transform._transforms.0.block.contraction.conditioner.embedding.0.bias
        _transform._transforms.0.block.contraction.conditioner.shifts.0.weight
        _transform._transforms.0.block.contraction.conditioner.gates.0.weight
        _transform._transforms.0.block.contraction.conditioner.gates.0.bias
        _transform._transforms.0.block.coordinates.log_scale
        _embedding_net.0.weight
        _embedding_net.0.bias
    """,
    "AutoIResNet": """
        transform._extra_state
        transform.0._extra_state
        transform.0.block._extra_state
        transform.0.block.contraction._extra_state
        transform.0.block.contraction.activations.0.raw_beta
        transform.0.block.contraction.layers.0.weight
        transform.0.block.contraction.layers.0.bias
        transform.0.block.contraction.layers.1.weight
        transform.0.block.contraction.layers.1.bias
        transform.0.block.coordinates.log_scale
        transform.1.start_loc
        transform.1.start_scale_tril
        transform.1.shift
        transform.1.log_scale
        transform.1.weight
    """,
}


@pytest.mark.parametrize("name", MAKERS)
def test_keys(name):
    state = MAKERS[name]().state_dict()
    assert list(state) == KEYS[name].split()


@pytest.mark.parametrize("name", MAKERS)
def test_saves_tensors_once(name):
    module, fresh = MAKERS[name](), MAKERS[name]()
    state = module.state_dict()
    # Rows of a stacked tensor lie side by side.
    begins = sorted((v.data_ptr(), v.nbytes) for v in state.values())
    assert all(begin + size <= after for (begin, size), (after, _) in pairwise(begins))
    # Each parameter is in the state.
    stored = [v for key, v in state.items() if not key.endswith("_extra_state")]
    assert sum(p.numel() for p in module.parameters()) <= sum(v.numel() for v in stored)
    fresh.load_state_dict(state)
    again = fresh.state_dict()
    assert all(torch.equal(v, again[key]) for key, v in state.items())
