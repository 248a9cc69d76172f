"""The digits: enlarged exactly, split once for ever, the same bytes on every machine."""

import sys
from fractions import Fraction

import numpy as np
import pytest

from kdtool import data
from kdtool.data.digits import enlarge
from kdtool.errors import DamageError, UsageError


def bilinear(image: list[list[int]], y: int, x: int) -> int:
    """The output pixel (y, x) of a 4 times larger image in exact fractions, scaled from 0..16 to 0..255."""

    def neighbours(place: int) -> list[tuple[int, Fraction]]:
        position = min(max(Fraction(2 * place + 1, 8) - Fraction(1, 2), Fraction(0)), Fraction(7))
        lower = int(position)
        return [(lower, 1 - (position - lower)), (min(lower + 1, 7), position - lower)]

    value = sum(image[i][j] * above * left for i, above in neighbours(y) for j, left in neighbours(x))
    return int(value * Fraction(255, 16) + Fraction(1, 2))


def test_enlarging_is_exact_bilinear_interpolation() -> None:
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8))
    images[2] = 16
    large = enlarge(images)
    assert large.shape == (3, 3, 32, 32)
    assert large.flags.c_contiguous
    for image, found in zip(images.tolist(), large, strict=True):
        expected = [[bilinear(image, y, x) for x in range(32)] for y in range(32)]
        assert all(channel.tolist() == expected for channel in found)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: it holds the digits")
    return data.load("digits", None)


def test_the_digits_are_split_by_class_into_1437_and_360(digits: data.Dataset) -> None:
    train, test = (np.bincount(part.labels, minlength=10) for part in (digits.train, digits.test))
    assert (train.sum(), test.sum()) == (1437, 360)
    assert np.all(np.abs(test - (train + test) * 360 / 1797) < 1)
    assert (digits.classes, digits.class_names, digits.flip) == (10, tuple("0123456789"), False)


def test_every_digit_of_scikit_learn_is_in_one_part(digits: data.Dataset) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    large = enlarge(source.images.astype(np.int64))
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(large, source.target, strict=True))
    parts = (digits.train, digits.test)
    found = sorted(
        (i.tobytes(), int(label)) for part in parts for i, label in zip(part.images, part.labels, strict=True)
    )
    assert found == expected


def test_the_constants_are_those_of_the_train_part(digits: data.Dataset) -> None:
    pixels = digits.train.images.astype(np.float64) / 255
    assert digits.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=5e-5)
    assert digits.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=5e-5)


def test_the_content_never_changes(digits: data.Dataset) -> None:
    assert digits.digest == "e618081695f96f26f213f062b39ceb67b5e2d6c36eb971ad288c91a6176823f7"


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r'pip install "kdtool\[digits\]"'):
        data.load("digits")


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed: it holds the digits")
    other = datasets.load_digits()
    other.images[5, 3, 3] = 0.5
    monkeypatch.setattr(datasets, "load_digits", lambda: other)
    with pytest.raises(DamageError, match="other digits"):
        data.load("digits")
