"""Images: density estimators and classifiers of convolutional blocks."""

from .classifier import IResNetClassifier, Reconstruction
from .flow import ImageFlow, iresnet_image_flow
from .pixels import PixelLogit, dequantize, quantize
from .stack import ImageStack, iresnet_image_stack
from .transform import ImageTransform, iresnet_image_transform

__all__ = [
    "IResNetClassifier",
    "ImageFlow",
    "ImageStack",
    "ImageTransform",
    "PixelLogit",
    "Reconstruction",
    "dequantize",
    "iresnet_image_flow",
    "iresnet_image_stack",
    "iresnet_image_transform",
    "quantize",
]
