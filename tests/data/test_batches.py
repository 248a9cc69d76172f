"""Epochs: views in permutations, orders that can be resumed, batches without a lonely sample, pixels of any subset."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kdtool import philox
from kdtool.data.augment import Augmentation, normalise
from kdtool.data.batches import batch_slices, order_of_epoch, view_of_epoch
from kdtool.data.images import Resident
from kdtool.errors import UsageError
from kdtool.targets import CLEAN

seeds = st.integers(0, 2**64 - 1)


@given(seed=seeds, views=st.integers(1, 12), turn=st.integers(0, 5))
def test_every_round_visits_every_view_once(seed: int, views: int, turn: int) -> None:
    visited = [view_of_epoch(seed, turn * views + place, views) for place in range(views)]
    assert visited == philox.permutation(seed, philox.VIEWS, turn, views).tolist()
    assert sorted(visited) == list(range(views))


def test_rounds_and_seeds_differ() -> None:
    rounds = [
        [view_of_epoch(seed, epoch, 8) for epoch in range(8 * turn, 8 * turn + 8)] for seed in (0, 1) for turn in (0, 1)
    ]
    assert len({tuple(visited) for visited in rounds}) == 4


@given(seed=seeds, epoch=st.integers(0, 500), samples=st.integers(1, 60), block=st.integers(1, 70) | st.none())
def test_an_order_is_a_permutation_that_keeps_blocks_together(
    seed: int, epoch: int, samples: int, block: int | None
) -> None:
    order = order_of_epoch(seed, epoch, samples, block)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(samples))
    if block is None or block >= samples:
        assert np.array_equal(order, philox.permutation(seed, philox.ORDER, epoch, samples))
    else:
        visited = order // block
        assert np.count_nonzero(np.diff(visited)) == len(np.unique(visited)) - 1


def test_orders_of_blocks_follow_their_own_words() -> None:
    order = order_of_epoch(5, 3, 1000, 64)
    words = philox.words(5, philox.ORDER, 3, np.arange(1000), 2).tolist()
    blocks = sorted(range(16), key=lambda number: words[number][1])
    expected = [
        sample
        for number in blocks
        for sample in sorted(range(64 * number, min(64 * number + 64, 1000)), key=lambda sample: words[sample][0])
    ]
    assert order.tolist() == expected


def test_epochs_and_seeds_give_unlike_orders() -> None:
    for block in (None, 100):
        orders = {order_of_epoch(seed, epoch, 1000, block).tobytes() for seed in (0, 1) for epoch in range(5)}
        assert len(orders) == 10


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="block of 0 samples"):
        order_of_epoch(0, 0, 10, 0)


@given(samples=st.integers(1, 300), batch=st.integers(1, 100), drop_last=st.booleans())
def test_batches_cover_the_epoch_in_order(samples: int, batch: int, drop_last: bool) -> None:
    assume(not drop_last or samples >= batch)
    slices = batch_slices(samples, batch, drop_last)
    covered = [position for part in slices for position in range(samples)[part]]
    sizes = [part.stop - part.start for part in slices]
    assert all(size == batch for size in sizes[:-1])
    if drop_last:
        assert covered == list(range(samples // batch * batch))
        assert sizes[-1] == batch
    else:
        assert covered == list(range(samples))
        assert samples == 1 or batch == 1 or 2 <= sizes[-1] <= batch + 1
        assert (sizes[-1] == batch + 1) == (samples % batch == 1 and samples > 1 and batch > 1)


@pytest.mark.parametrize(
    ("samples", "batch", "drop_last", "expected"),
    [
        (10, 5, False, [(0, 5), (5, 10)]),
        (11, 5, False, [(0, 5), (5, 11)]),
        (12, 5, False, [(0, 5), (5, 10), (10, 12)]),
        (14, 5, True, [(0, 5), (5, 10)]),
        (11, 5, True, [(0, 5), (5, 10)]),
        (3, 5, False, [(0, 3)]),
        (1, 5, False, [(0, 1)]),
        (6, 5, False, [(0, 6)]),
        (2, 1, False, [(0, 1), (1, 2)]),
    ],
)
def test_batches_in_numbers(samples: int, batch: int, drop_last: bool, expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in batch_slices(samples, batch, drop_last)] == expected


@pytest.mark.parametrize(("samples", "batch", "drop_last"), [(0, 4, False), (3, 4, True), (5, 0, False), (5, -1, True)])
def test_no_batch_at_all_is_refused(samples: int, batch: int, drop_last: bool) -> None:
    with pytest.raises(UsageError, match="give no batch"):
        batch_slices(samples, batch, drop_last)


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
PART = np.random.default_rng(4).integers(0, 256, (40, 3, 8, 6), dtype=np.uint8)
RULE = Augmentation(pad=2, seed=6)


def naive(row: int, view: int) -> torch.Tensor:
    """One image of PART in one view, by numpy slices."""
    top, left, mirrored = RULE.parameters([row], view)[0] if view != CLEAN else (2, 2, 0)
    padded = np.pad(PART[row], ((0, 0), (2, 2), (2, 2)))
    crop = padded[:, top : top + 8, left : left + 6]
    pixels = crop[:, :, ::-1] if mirrored else crop
    return normalise(torch.from_numpy(pixels.copy())[None], MEAN, STD)[0]


@given(
    rows=st.lists(st.integers(0, 39), min_size=1, max_size=15, unique=True),
    views=st.lists(st.integers(-1, RULE.placements - 1), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_batch_holds_the_pixels_of_its_rows_in_any_subset(
    rows: list[int], views: list[int], data: st.DataObject
) -> None:
    images = Resident(PART, np.array(rows), RULE, MEAN, STD, CPU)
    for view in views:
        positions = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
        found = images.view(np.array(positions), view)
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.stack([naive(rows[position], view) for position in positions]))
        assert torch.equal(images.view(torch.tensor(positions), view), found)


def test_all_rows_share_the_memory_and_leave_it_alone() -> None:
    before = PART.copy()
    images = Resident(PART, np.arange(40), RULE, MEAN, STD, CPU)
    assert images.pixels.data_ptr() == PART.ctypes.data
    images.view(np.arange(40), 3)
    images.view(np.arange(40), CLEAN)
    assert np.array_equal(PART, before)
    assert torch.equal(images.view(np.arange(40), 7), torch.stack([naive(row, 7) for row in range(40)]))


def test_clean_images_draw_no_placements(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("placements were drawn")

    monkeypatch.setattr(Augmentation, "table", refuse)
    found = Resident(PART, np.arange(10), RULE, MEAN, STD, CPU).view(np.arange(4), CLEAN)
    assert torch.equal(found, torch.stack([naive(row, CLEAN) for row in range(4)]))


def test_positions_may_lie_in_memory_that_cannot_be_written() -> None:
    positions = np.arange(4)
    positions.flags.writeable = False
    assert len(Resident(PART, np.arange(10), RULE, MEAN, STD, CPU).view(positions, 0)) == 4


def test_a_view_beyond_the_placements_is_refused() -> None:
    images = Resident(PART, np.arange(40), RULE, MEAN, STD, CPU)
    with pytest.raises(UsageError, match="50 placements"):
        images.view(np.arange(4), 50)
    with pytest.raises(UsageError, match="no view -2"):
        images.view(np.arange(4), -2)
