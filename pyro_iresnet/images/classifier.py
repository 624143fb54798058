"""A residual network for classification whose inverse is guaranteed."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from nflows.transforms import SqueezeTransform, Transform
from torch import Tensor, nn
from torch.nn import functional

from .._modules import contractions_of
from .._settings import SavedSettings
from ..activations import Activation, Sine
from ..blocks import ResidualBlock
from ..cached import together
from ..contractions import ConvContraction
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractionError,
    InversionError,
    check_lipschitz,
    check_not_negative,
    check_positive_int,
)
from ..hosts.nflows import IResNetTransform, PatientActNorm
from ..hosts.nflows.composite import encoded
from ..hosts.nflows.transform import widths
from ..norms import Cholesky, Norm
from .pixels import INTEGERS
from .transform import (
    LOGDET,
    check_batch,
    check_image_shape,
    counts_of,
    hidden_of,
    squeezed,
    squeezes,
)

# Relative tolerance of each inversion of a reconstruction; in float32 the arithmetic sets more.
RTOL = 1e-13


class Reconstruction(NamedTuple):
    """Images from features, with a proof.

    Arguments:
        images: shape ``(batch, *shape)``.
        error_bound: certified bound of the Euclidean distance to the exact preimage of the
            features, padded channels counted as zeros, shape ``(batch,)``.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import IResNetClassifier
        >>> net = IResNetClassifier((1, 8, 8), 10, lipschitz=0.5).double().eval()
        >>> features = net.features(torch.zeros(2, 1, 8, 8, dtype=torch.float64))
        >>> bool((net.reconstruct(features).error_bound < 1e-8).all())
        True
    """

    images: Tensor
    error_bound: Tensor


class IResNetClassifier(SavedSettings, nn.Module):
    r"""The i-ResNet as a classifier: a residual network with a guaranteed inverse.

    At each scale come a squeeze, and ActNorms and blocks :math:`y = x + g(x)` in turn. A head takes
    the features: batch norm, activation, a linear layer. All information of the image is in the
    features, so :meth:`reconstruct` gives the image back, to a certified error.

    Arguments:
        shape: channels, height and width of the images.
        num_classes: the number of classes.
        lipschitz: the bound of ``Lip(g)`` of each block, in (0, 1).
        blocks_per_scale: the number of blocks of each scale, or one number for all scales that the
            sides allow.
        channels: pad images with channels of zeros up to this number, an injective map; None for no
            padding, which :meth:`hybrid_loss` needs.
        hidden_channels: the channels of two hidden layers of ``g``, or of each layer; by default as
            in :func:`iresnet_image_transform`.
        activation: a callable that makes an :class:`Activation`.
        norm: the :class:`Norm` of the weights.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Section 5.1.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import IResNetClassifier
        >>> net = IResNetClassifier((1, 8, 8), 10, blocks_per_scale=2).double()
        >>> images = torch.randn(20, 1, 8, 8, dtype=torch.float64)
        >>> loss = torch.nn.functional.cross_entropy(net(images), torch.randint(10, (20,)))
        >>> features = net.eval().features(images)
        >>> found = net.reconstruct(features)
        >>> error = (found.images - images).flatten(1).norm(dim=1)
        >>> bool((error <= found.error_bound).all()), bool((found.error_bound < 1e-4).all())
        (True, True)
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        *,
        lipschitz: float = 0.9,
        blocks_per_scale: int | Sequence[int] = 3,
        channels: int | None = None,
        hidden_channels: int | Sequence[int] | None = None,
        activation: Callable[[], Activation] = Sine,
        norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    ) -> None:
        super().__init__()
        self.shape = image = check_image_shape(shape)
        self.lipschitz = check_lipschitz(lipschitz)
        self.num_classes = classes = check_positive_int(num_classes, "num_classes")
        hidden = widths(hidden_channels, "hidden_channels")
        if channels is not None:
            wide = check_positive_int(channels, "channels")
            if wide < image[0]:
                raise ArgumentError(
                    f"Expected channels of at least {image[0]}, those of the images; got {wide}."
                )
            image = (wide, *image[1:])
        self.channels = image[0]
        scales: list[nn.Module] = []
        for count in counts_of(blocks_per_scale, image):
            parts: list[Transform] = []
            if squeezes(image):
                parts.append(SqueezeTransform())
                image = squeezed(image)
            for _ in range(count):
                dims = hidden_of(image) if hidden is None else hidden
                g = ConvContraction(
                    image, dims, lipschitz=lipschitz, activation=activation, norm=norm
                )
                parts += [PatientActNorm(image[0]), self.make_block(g)]
            scales.append(nn.ModuleList(parts))
        self.scales = nn.ModuleList(scales)
        self.feature_shape = image
        self.head = nn.Sequential(
            nn.BatchNorm2d(image[0]),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(math.prod(image), classes),
        )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "shape": self.shape, "channels": self.channels}

    def make_block(self, contraction: ConvContraction) -> Transform:
        """Make a block of a contraction.

        :meth:`reconstruct` proves its bound for residual blocks without coordinates only.
        """
        return IResNetTransform.from_block(ResidualBlock(contraction, logdet=LOGDET))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images, shapes ``(batch, *shape)`` to ``(batch, num_classes)``."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images, shape ``(batch, *feature_shape)``.

        Raises:
            ArgumentError, ArgumentTypeError: images of another shape, dtype or device.
        """
        x = self._widened(images)
        with together(contractions_of(self)):
            for part in self._parts():
                x = encoded(part, x)
        return x

    def features_and_log_det(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and ``log|det|`` of the map from images to features, ``(batch,)``.

        Raises:
            ArgumentError: the images are widened, so the map has no determinant.
        """
        if self.channels != self.shape[0]:
            raise ArgumentError(
                f"Expected a classifier without padding for a density; got one that widens "
                f"{self.shape[0]} channels to {self.channels}. Make it by channels=None."
            )
        x = self._widened(images)
        total = x.new_zeros(len(x))
        with together(contractions_of(self)):
            for part in self._parts():
                x, log_det = part(x)
                total = total + log_det
        return x, total

    def hybrid_loss(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
        r"""Return the mean loss of classes and of a density of the images, from one network.

        .. math:: -\log p(c \mid x) - \frac{\lambda}{D}\, \log p(x)

        in nats, with the density of :math:`x` that makes the features standard normal.

        Arguments:
            images: shape ``(batch, *shape)``; dequantise pixels by :func:`dequantize`, and scale.
            labels: the classes, integers, shape ``(batch,)``.
            weight: :math:`\lambda`, at least 0.

        Raises:
            ArgumentError, ArgumentTypeError: ``weight`` out of range, or a classifier with padding.
        """
        share = check_not_negative(weight, "weight")
        check_batch(images, self.shape, self, "images")
        labels = self._checked_labels(labels, len(images))
        z, log_det = self.features_and_log_det(images)
        size = math.prod(self.shape)
        energy = 0.5 * (z.square().flatten(1).sum(1) + size * math.log(2 * math.pi))
        density = (log_det - energy).mean()
        return functional.cross_entropy(self.head(z), labels) - share / size * density

    def _checked_labels(self, labels: Tensor, count: int) -> Tensor:
        classes = self.num_classes
        wanted = f"Expected labels to be {count} integers from 0 to {classes - 1}, shape ({count},)"
        if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ArgumentTypeError(
                f"{wanted}; got {kind}. Make one: torch.as_tensor(labels).long()."
            )
        # A narrow dtype may not hold the number of classes.
        labels = labels.long()
        if labels.shape != (count,) or count == 0:
            raise ArgumentError(f"{wanted}, at least one; got shape {tuple(labels.shape)}.")
        if ((labels < 0) | (labels >= classes)).any():
            raise ArgumentError(f"{wanted}; got {labels.min().item()} to {labels.max().item()}.")
        return labels

    @torch.no_grad()
    def reconstruct(self, features: Tensor) -> Reconstruction:
        r"""Return the images of features, with a certified bound of their error.

        Each block is inverted to a certified error. On the way to the image a block stretches an
        error by at most :math:`1 / (1 - L)`, and an ActNorm by the largest :math:`e^{-s}`. In
        float64 the bound stays small over many blocks. With ``channels`` the bound contains the
        size of the channels that pad an image: features that belong to no image have a large bound.
        The images have no gradient.

        Arguments:
            features: shape ``(batch, *feature_shape)``.

        Raises:
            ArgumentError, ArgumentTypeError: features of another shape, dtype or device.
            InversionError: NaN or infinity among the features or the parameters.
            ContractionError: a block has no proven bound below 1, or is no residual block.
        """
        check_batch(features, self.feature_shape, self, "features")
        x = features
        error = x.new_zeros(len(x))
        eps = torch.finfo(x.dtype).eps
        for part in reversed(self._parts()):
            if isinstance(part, IResNetTransform):
                block = part.block
                if not isinstance(block, ResidualBlock) or block.coordinates is not None:
                    raise _unproven(block)
                solution = block.solve(x, atol=0.0, rtol=RTOL)
                stretch = 1 / (1 - float(solution.lipschitz))
                x, error = solution.value, stretch * error + solution.stats.error_bound
            elif isinstance(part, PatientActNorm):
                size = x.flatten(1).norm(dim=1) + torch.linalg.vector_norm(part.shift) * math.sqrt(
                    math.prod(x.shape[2:])
                )
                scale = (-part.log_scale).exp().max()
                # A difference, a product and an exponential round.
                error = scale * (error + 4 * eps * size)
                x = part.inverse(x)[0]
            elif isinstance(part, SqueezeTransform):
                x = part.inverse(x)[0]
            else:
                raise _unproven(part)
        if not (x.isfinite().all() and error.isfinite().all()):
            raise InversionError(
                "The images or the bounds of their errors are NaN or infinite. A parameter of an "
                "ActNorm is, or its scale overflows. Check the parameters."
            )
        images, padding = x.tensor_split([self.shape[0]], 1)
        return Reconstruction(images, error + padding.flatten(1).norm(dim=1))

    def _parts(self) -> list[Any]:
        return [part for scale in self.scales.children() for part in scale.children()]

    def _widened(self, images: Tensor) -> Tensor:
        check_batch(images, self.shape, self, "images")
        return functional.pad(images, (0, 0, 0, 0, 0, self.channels - self.shape[0]))


def _unproven(part: object) -> ContractionError:
    return ContractionError(
        "Expected residual blocks without coordinates, for which the bound of a reconstruction is "
        f"proven; got a {type(part).__name__}. Override reconstruct beside make_block."
    )
