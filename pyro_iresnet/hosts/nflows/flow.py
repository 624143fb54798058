"""The density estimator of the builders."""

from typing import cast

import torch
from nflows.flows import Flow
from nflows.utils import merge_leading_dims, repeat_rows, split_leading_dim
from torch import Tensor, nn

from ...errors import check_instance, check_positive_int
from .composite import IResNetComposite
from .noise import Noise


class IResNetFlow(Flow):
    """An nflows ``Flow`` that samples without the log-determinants that samples do not need.

    Samples in parts (``batch_size``) keep the context in front too, where nflows' own change the
    shape.

    Arguments:
        transform: from data to noise.
        features: the number of coordinates.
        embedding_net: makes the context of the transform; None for the context itself.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> from pyro_iresnet import conditional_iresnet_flow
        >>> flow = conditional_iresnet_flow(features=2, context_features=3, num_blocks=2).eval()
        >>> flow.sample(10, torch.randn(5, 3), batch_size=4).shape
        torch.Size([5, 10, 2])
    """

    def __init__(
        self, transform: IResNetComposite, features: int, embedding_net: nn.Module | None = None
    ) -> None:
        example = "IResNetComposite([IResNetTransform(2)])"
        check_instance(transform, IResNetComposite, "transform", example)
        size = check_positive_int(features, "features")
        if embedding_net is not None:
            check_instance(embedding_net, nn.Module, "embedding_net", "torch.nn.Linear(2, 3)")
        super().__init__(transform, Noise(size, transform), embedding_net)

    @property
    def transform(self) -> IResNetComposite:
        """The transform from data to noise."""
        return cast(IResNetComposite, self._transform)

    def sample(
        self, num_samples: int, context: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Draw samples, shape ``(num_samples, features)``, for a context with its rows in front.

        Arguments:
            num_samples: the number of samples, for each row of a context.
            context: shape ``(rows, context_features)``; None for a flow without one.
            batch_size: the number of samples to draw at a time; all by default.
        """
        count = check_positive_int(num_samples, "num_samples")
        size = count if batch_size is None else check_positive_int(batch_size, "batch_size")
        parts = [
            super(IResNetFlow, self).sample(min(size, count - start), context)
            for start in range(0, count, size)
        ]
        return torch.cat(parts, dim=-2)

    def sample_and_log_prob(
        self, num_samples: int, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples as :meth:`sample`, and return them with their log-densities."""
        count = check_positive_int(num_samples, "num_samples")
        return super().sample_and_log_prob(count, context)

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the noise of data, shape ``(batch, features)``."""
        return self.transform.encode(inputs, self._embedding_net(context))

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        context = self._embedding_net(context)
        noise = self._distribution.sample(num_samples, context=context)
        if context is None:
            return self.transform.decode(noise)
        rows = repeat_rows(context, num_reps=num_samples)
        samples = self.transform.decode(merge_leading_dims(noise, num_dims=2), rows)
        return split_leading_dim(samples, shape=[-1, num_samples])
