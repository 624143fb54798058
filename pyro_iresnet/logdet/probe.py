"""Random probes ``u`` with ``E[u u^T] = I``, for traces (seed report Eq. 22-24)."""

import torch
from torch import Tensor


def rademacher(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    r"""Independent signs, +1 or -1 with equal chance.

    Of all probes with independent entries they give :math:`u^\top A u` the least variance: the
    diagonal of A enters without noise (Hutchinson, 1990).

    Arguments:
        shape: the shape to draw.
        like: the tensor whose dtype and device to take.
        generator: torch's own when None.
    """
    draw = torch.randint(0, 2, shape, dtype=torch.int8, device=like.device, generator=generator)
    return draw.to(like.dtype).mul_(2).sub_(1)
