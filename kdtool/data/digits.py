"""scikit-learn's 1,797 handwritten digits as a small data set that needs no files: 10 classes, 32x32.

The 8x8 images come with scikit-learn (the test part of the UCI set "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998). They are enlarged in whole numbers, so that every machine gets the same bytes.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtool.data import splits
from kdtool.data.dataset import Dataset, Part, Pixels, content_digest
from kdtool.errors import DamageError, UsageError

TEST = 360  # of 1,797 images, a fifth
MEAN, STD = 0.3050, 0.3233  # of the enlarged train part


def digits(folder: Path | None = None) -> Dataset:
    """The digits, 1,437 to train and 360 to test, stratified with seed 0; `folder` is not used.

    Raises UsageError where scikit-learn is missing, DamageError where it gives other data.
    """
    images, labels = _small_images()
    split = splits.make_split(labels, 10, validation=TEST, seed=0)
    large = enlarge(images)
    train, test = (Part(large[rows], labels[rows]) for rows in (split.train, split.validation))
    names = tuple(str(digit) for digit in range(10))
    mean, std = (MEAN, MEAN, MEAN), (STD, STD, STD)
    return Dataset("digits", train, test, 10, names, mean, std, flip=False, digest=content_digest(train, test))


def _small_images() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            'the data set "digits" comes with scikit-learn, which is not installed: pip install "kdtool[digits]"'
        ) from error
    bunch = load_digits()
    images, labels = bunch.images.astype(np.int64), bunch.target.astype(np.int64)
    if images.shape != (1797, 8, 8) or not np.array_equal(images, np.clip(bunch.images, 0, 16)):
        raise DamageError(
            "scikit-learn gives other digits than the 1,797 images of 8x8 values 0 to 16 that it is known for; "
            'install it again: pip install --force-reinstall "kdtool[digits]"'
        )
    return images, labels


def enlarge(images: npt.NDArray[np.int64]) -> Pixels:
    """Images (n, 8, 8) of values 0..16 as (n, 3, 32, 32) of 0..255: bilinear, half-pixel centres, three equal channels.

    An output pixel lies an odd number of eighths from the input pixels beside it, so the sum over weights is a whole
    number of 64ths; it is scaled and rounded (halves up) once.
    """
    weights = _weights()
    sums = np.einsum("yi,nij,xj->nyx", weights, images, weights, optimize=True)
    grey = ((sums * 255 + 512) // 1024).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(grey[:, None], 3, axis=1))


def _weights() -> npt.NDArray[np.int64]:
    """(32, 8): the weights, in eighths, of the 8 input pixels for the 32 output pixels of a line."""
    position = np.clip(2 * np.arange(32) - 3, 0, 56)  # in eighths of an input pixel, from the centre of the first
    weights: npt.NDArray[np.int64] = np.maximum(0, 8 - np.abs(position[:, None] - 8 * np.arange(8)))
    return weights
