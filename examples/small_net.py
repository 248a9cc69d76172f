"""A network of one's own: a function that is called with the number of classes and gives an nn.Module."""

from torch import nn


def _layer(inputs, outputs, stride):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def small(classes):
    """Three strided layers and a linear classifier."""
    body = nn.Sequential(_layer(3, 16, 2), _layer(16, 32, 2), _layer(32, 64, 2))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
