"""Philox against the known answers of Random123, and everything above it against a scalar Philox in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool import philox

LOW = 0xFFFFFFFF


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Salmon et al. 2011, section 3, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & LOW, (first >> 32) ^ c3 ^ k1, first & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def scalar_words(seed: int, stream: int, turn: int, item: int, count: int) -> list[int]:
    key = (seed & LOW, seed >> 32 & LOW)
    drawn: list[int] = []
    for block in range((count + 3) // 4):
        drawn += scalar_philox((item, block, turn, stream), key)
    return drawn[:count]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    count, keys, words = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert philox.philox(np.array(count, dtype=np.uint32), (keys[0], keys[1])).tolist() == words
    assert list(scalar_philox(tuple(count), (keys[0], keys[1]))) == words


def test_a_thousand_draws_are_those_of_the_scalar_form() -> None:
    drawn = philox.words(2**40 + 17, philox.AUGMENT, 3, np.arange(100, 200), 10)
    expected = [scalar_words(2**40 + 17, philox.AUGMENT, 3, item, 10) for item in range(100, 200)]
    assert drawn.shape == (100, 10)
    assert drawn.tolist() == expected


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 5),
    turn=st.integers(0, 2**32 - 1),
    item=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
)
def test_words_are_those_of_the_scalar_form(seed: int, stream: int, turn: int, item: int, count: int) -> None:
    assert philox.words(seed, stream, turn, [item], count)[0].tolist() == scalar_words(seed, stream, turn, item, count)


@given(seed=st.integers(0, 2**64 - 1), items=st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_draws_of_an_item_do_not_depend_on_its_neighbours(seed: int, items: list[int]) -> None:
    together = philox.words(seed, philox.VIEWS, 1, items, 6)
    permuted = philox.permutations(seed, philox.VIEWS, 1, items, 7)
    for row, item in enumerate(items):
        assert np.array_equal(together[row], philox.words(seed, philox.VIEWS, 1, [item], 6)[0])
        assert np.array_equal(permuted[row], philox.permutations(seed, philox.VIEWS, 1, [item], 7)[0])


@given(seed=st.integers(0, 2**64 - 1), size=st.integers(1, 50))
def test_permutations_are_permutations_in_the_order_of_the_words(seed: int, size: int) -> None:
    for item, order in enumerate(philox.permutations(seed, philox.AUGMENT, 0, [0, 1, 2], size)):
        drawn = scalar_words(seed, philox.AUGMENT, 0, item, size)
        assert order.tolist() == sorted(range(size), key=lambda index: (drawn[index], index))


@given(seed=st.integers(0, 2**64 - 1), turn=st.integers(0, 1000), size=st.integers(0, 50))
def test_one_permutation_is_in_the_order_of_one_word_an_element(seed: int, turn: int, size: int) -> None:
    drawn = [scalar_words(seed, philox.ORDER, turn, element, 1)[0] for element in range(size)]
    expected = sorted(range(size), key=lambda index: (drawn[index], index))
    assert philox.permutation(seed, philox.ORDER, turn, size).tolist() == expected


def test_seed_stream_and_turn_each_change_the_draws() -> None:
    drawn = {
        philox.words(seed, stream, turn, [0], 4).tobytes()
        for seed in (0, 1, 2**32, 2**63)
        for stream in range(6)
        for turn in range(4)
    }
    assert len(drawn) == 4 * 6 * 4


def test_words_are_spread_evenly() -> None:
    drawn = philox.words(0, philox.ORDER, 0, np.arange(16_000), 4)
    for bits in (drawn >> 28, drawn & 15):
        counts = np.bincount(bits.ravel(), minlength=16)
        assert np.sum((counts - 4000.0) ** 2 / 4000) < 37.7  # chi-square, 15 degrees of freedom, one in a thousand
