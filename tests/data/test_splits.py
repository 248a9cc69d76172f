"""Splits: stratified, disjoint, seeded, narrowed and never widened."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdtool.data.splits import Split, from_plain, make_split, narrow, shares, to_plain
from kdtool.errors import DamageError, UsageError

Rows = npt.NDArray[np.int64]

many_labels = st.lists(st.integers(0, 4), min_size=5, max_size=80).map(lambda drawn: np.array([0, 1, 2, 3, 4, *drawn]))
seeds = st.integers(0, 2**64 - 1)


def rows_of(split: Split) -> tuple[list[int], list[int]]:
    return split.train.tolist(), split.validation.tolist()


@given(labels=many_labels, fraction=st.floats(0, 0.5), seed=seeds)
def test_a_split_is_stratified_disjoint_and_complete(labels: Rows, fraction: float, seed: int) -> None:
    validation = int(fraction * len(labels))
    try:
        split = make_split(labels, 5, validation, seed=seed)
    except UsageError:
        assume(False)
    assert split.train.dtype == split.validation.dtype == np.int64
    assert len(split.validation) == validation
    assert sorted([*split.train, *split.validation]) == list(range(len(labels)))
    for rows in rows_of(split):
        assert rows == sorted(rows)
    for label in range(5):
        share = np.sum(labels == label) * validation / len(labels)
        assert abs(np.sum(labels[split.validation] == label) - share) < 1
        assert np.any(labels[split.train] == label)


@given(labels=many_labels, few_shot=st.integers(1, 4), more=st.integers(0, 3), seed=seeds)
def test_few_shot_takes_so_many_of_each_class_and_grows_inwards(
    labels: Rows, few_shot: int, more: int, seed: int
) -> None:
    if np.bincount(labels).min() < few_shot + more:
        with pytest.raises(UsageError, match=r"class \d has \d+ images"):
            make_split(labels, 5, few_shot=few_shot + more, seed=seed)
        return
    small = make_split(labels, 5, few_shot=few_shot, seed=seed)
    large = make_split(labels, 5, few_shot=few_shot + more, seed=seed)
    assert np.bincount(labels[small.train]).tolist() == [few_shot] * 5
    assert set(small.train) <= set(large.train)
    assert len(small.validation) == 0


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=8), part=st.integers(0, 100))
def test_shares_follow_the_largest_remainder(counts: list[int], part: int) -> None:
    size = sum(counts)
    assume(size > 0)
    total = size * part // 100
    exact = [count * total / size for count in counts]
    expected = [count * total // size for count in counts]
    order = sorted(range(len(counts)), key=lambda c: (-(counts[c] * total % size), c))
    for label in order[: total - sum(expected)]:
        expected[label] += 1
    found = shares(np.array(counts), total).tolist()
    assert found == expected
    assert all(abs(share - wanted) < 1 for share, wanted in zip(found, exact, strict=True))


LABELS = np.random.default_rng(3).integers(0, 10, 2000)


def test_the_seed_alone_decides_and_the_choice_never_changes() -> None:
    split = make_split(LABELS, 10, validation=300, few_shot=20, seed=5)
    assert rows_of(split) == rows_of(make_split(LABELS.copy(), 10, validation=300, few_shot=20, seed=5))
    assert split.digest != make_split(LABELS, 10, validation=300, few_shot=20, seed=6).digest
    assert split.rule == {"validation": 300, "few_shot": 20, "seed": 5}
    fixed = make_split(np.arange(2000) * 7 % 10, 10, validation=300, few_shot=20, seed=5)
    assert fixed.train[:6].tolist() == [19, 38, 40, 46, 49, 52]
    assert fixed.digest == "989a462543bcf091b54296c9d41c07263c23f19bbe397d60b0f45777ba7987fe"


def test_the_digest_tells_the_two_lists_apart() -> None:
    one, two = np.array([1, 2]), np.array([3])
    digests = {
        Split(train, validation, {}).digest
        for train, validation in [(one, two), (two, one), (np.array([1, 2, 3]), two[:0]), (one[:1], np.array([2, 3]))]
    }
    assert len(digests) == 4
    assert Split(one, two, {"seed": 1}).digest == Split(one, two, {"seed": 2}).digest


def test_a_long_tail_keeps_its_rare_classes() -> None:
    labels = np.repeat(np.arange(4), [1000, 100, 10, 1])
    assert np.bincount(labels[make_split(labels, 4, 111).validation], minlength=4).tolist() == [100, 10, 1, 0]
    with pytest.raises(UsageError, match="class 3 has 1 images; 1 of them for validation and 1 for training"):
        make_split(labels, 4, 700)


@pytest.mark.parametrize(
    "asked", [{"validation": -1}, {"few_shot": 0}, {"few_shot": -3}, {"validation": 2000}, {"validation": 2001}]
)
def test_impossible_splits_are_refused(asked: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        make_split(LABELS, 10, **asked)


def test_a_class_without_images_has_no_few_shots() -> None:
    assert len(make_split(LABELS, 11, validation=10).train) == 1990
    with pytest.raises(UsageError, match="class 10 has 0 images"):
        make_split(LABELS, 11, few_shot=1)


@given(
    first=st.integers(0, 300),
    second=st.integers(0, 300) | st.none(),
    kept=st.integers(1, 60) | st.none(),
    few_shot=st.integers(1, 60) | st.none(),
    seed=seeds,
)
def test_narrowing_never_widens(
    first: int, second: int | None, kept: int | None, few_shot: int | None, seed: int
) -> None:
    split = make_split(LABELS, 10, first, kept, seed)
    try:
        narrowed = narrow(split, LABELS, 10, validation=second, few_shot=few_shot)
    except UsageError:
        fewer_held = second is not None and second < first
        wider = kept is not None and few_shot is not None and few_shot > kept
        taken = kept is not None and second is not None and second > first
        assert fewer_held or wider or taken
        return
    assert set(narrowed.train) <= set(split.train)
    assert set(split.validation) <= set(narrowed.validation)
    assert not set(narrowed.train) & set(narrowed.validation)
    assert len(narrowed.validation) == (first if second is None else second)
    wanted = kept if few_shot is None else few_shot
    assert narrowed.rule == {"validation": len(narrowed.validation), "few_shot": wanted, "seed": seed}
    if wanted is not None:
        assert np.bincount(LABELS[narrowed.train]).tolist() == [wanted] * 10
    assert rows_of(narrow(narrowed, LABELS, 10)) == rows_of(narrowed)


def test_narrowing_gives_what_one_split_gives() -> None:
    whole = make_split(LABELS, 10, seed=9)
    assert rows_of(narrow(whole, LABELS, 10, 200, 5)) == rows_of(make_split(LABELS, 10, 200, 5, seed=9))
    held = make_split(LABELS, 10, 200, seed=9)
    assert rows_of(narrow(held, LABELS, 10, few_shot=5)) == rows_of(make_split(LABELS, 10, 200, 5, seed=9))


def test_widening_says_what_to_ask_for() -> None:
    split = make_split(LABELS, 10, validation=100, few_shot=10)
    with pytest.raises(UsageError, match=r"holds out 100 validation images and 50 were asked for.*ask for 100 or more"):
        narrow(split, LABELS, 10, validation=50)
    with pytest.raises(UsageError, match=r"10 images of each class and 11 were asked for.*ask for 1 to 10"):
        narrow(split, LABELS, 10, few_shot=11)
    with pytest.raises(UsageError, match="0 were asked for"):
        narrow(split, LABELS, 10, few_shot=0)


def test_a_split_survives_json() -> None:
    split = make_split(LABELS, 10, validation=100, few_shot=10, seed=4)
    found = from_plain(json.loads(json.dumps(to_plain(split))))
    assert rows_of(found) == rows_of(split)
    assert (found.rule, found.digest) == (split.rule, split.digest)


@pytest.mark.parametrize(
    "change", [{"train": [1]}, {"validation": None}, {"digest": "0"}, {"rule": 3}, {"train": ["a"]}, {"train": [2**70]}]
)
def test_a_stored_split_that_was_changed_is_damage(change: dict[str, Any]) -> None:
    value = to_plain(make_split(LABELS, 10, validation=100))
    with pytest.raises(DamageError, match="stored split is damaged"):
        from_plain({**value, **change})
    value.pop(next(iter(change)))
    with pytest.raises(DamageError):
        from_plain(value)


def test_what_the_publication_holds_out_validates_unless_a_number_is_asked_for() -> None:
    published = np.arange(1900, 2000)
    split = make_split(LABELS, 10, None, seed=2, published=published)
    assert split.validation.tolist() == published.tolist()
    assert split.train.tolist() == list(range(1900))
    assert split.rule == {"validation": 100, "few_shot": None, "seed": 2, "held": "published"}
    few = make_split(LABELS, 10, None, few_shot=3, seed=2, published=published)
    assert np.bincount(LABELS[few.train]).tolist() == [3] * 10
    assert few.validation.tolist() == published.tolist()
    assert set(few.train) <= set(range(1900))
    for number in (0, 50):
        other = make_split(LABELS, 10, number, seed=2, published=published)
        assert rows_of(other) == rows_of(make_split(LABELS, 10, number, seed=2))
        assert "held" not in other.rule
    assert rows_of(make_split(LABELS, 10, None, seed=2)) == rows_of(make_split(LABELS, 10, 0, seed=2))
    narrowed = narrow(split, LABELS, 10, few_shot=3)
    assert rows_of(narrowed) == rows_of(few)
    assert narrowed.rule == few.rule
