"""Targets and fits that methods share: pooled vectors, class centres, k-means within classes."""

import itertools
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load, save

from kdtool.errors import UsageError
from kdtool.methods import vectors
from kdtool.methods.vectors import ClassCentres, ClassClusters, Pooled, k_means, known_layer, pooled, vector
from kdtool.targets import CLEAN, Fit, FitBatch

State = dict[str, torch.Tensor]
WIDTH = 3


# Vectors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_stored_vector_is_the_mean_over_space_of_the_whole_map(dtype: torch.dtype) -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 5))).to(dtype)
    wanted = np.zeros((2, 3))
    for sample, channel in itertools.product(range(2), range(3)):
        wanted[sample, channel] = sum(float(maps[sample, channel, i, j]) for i in range(4) for j in range(5)) / 20
    stored = Pooled("stage1")({"stage1": maps}, {})
    assert set(stored) == {"values"}
    assert stored["values"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(stored["values"], wanted, rtol=bound, atol=bound)


def test_a_vector_is_stored_as_it_is() -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooled(rows), rows)
    assert torch.equal(pooled(rows[:, :, None, None]), rows)


@pytest.mark.parametrize(
    ("layer", "key", "tap"),
    [
        ("after_fc", "logits", "after_fc"),
        ("before_fc", "before_fc", "before_fc"),
        ("stage2", "stage2.pooled", "stage2"),
        ("conv2_x", "stage1.pooled", "stage1"),
        ("conv5_x", "stage4.pooled", "stage4"),
        ("stage3.preact", "stage3.preact.pooled", "stage3.preact"),
    ],
)
def test_the_target_of_a_layer(layer: str, key: str, tap: str) -> None:
    target = vector(layer)
    assert (target.key, target.taps, target.encode, target.fit, target.dtype) == (
        key,
        (tap,),
        Pooled(tap),
        None,
        "float16",
    )
    assert vector(tap) == target


def test_a_layer_that_one_network_lacks_is_refused_with_what_there_is() -> None:
    ours, theirs = {"stage1": (2, 4, 4), "before_fc": (2,)}, {"stage1": (2, 4, 4), "stage2": (4, 2, 2)}
    assert known_layer("conv2_x", ours, theirs) == "stage1"
    with pytest.raises(UsageError, match="'conv3_x'") as error:
        known_layer("conv3_x", ours, theirs)
    assert "layer of the student" in str(error.value)
    assert "before_fc, stage1" in str(error.value)
    assert "; `--tap conv3_x=PATH` names a module of the student so" in str(error.value)
    with pytest.raises(UsageError, match=r"layer of the teacher.*'before_fc'.*`kdtool teach --tap before_fc=PATH`"):
        known_layer("before_fc", ours, theirs)
    with pytest.raises(UsageError, match=r"did you mean 'before_fc'\? known: before_fc, stage1$"):
        known_layer("before_fd", ours, theirs)


# Fits


def unchanged(state: State) -> State:
    return state


def from_disk(state: State) -> State:
    return load(save({name: value.contiguous() for name, value in state.items()}))


def learned(
    fit: Fit, facts, told: dict[int, np.ndarray], batch: int, kept: Callable[[int], Callable[[State], State]]
) -> dict[str, np.ndarray]:
    """The result of a fit over told: view -> (n, d); kept(number of the step) is applied to the state after it."""
    (target,) = fit.reads
    views = len(told) - 1
    state = fit.begin(facts, {target.key: {"values": (WIDTH,)}}, views)
    number = itertools.count()
    for turn, view in enumerate(fit.passes(views)):
        for start in range(0, facts.samples, batch):
            places = torch.arange(start, min(start + batch, facts.samples))
            rows = {target.key: {"values": torch.from_numpy(told[view])[places]}}
            labels = torch.from_numpy(facts.labels)[places]
            state = kept(next(number))(fit.step(state, FitBatch(rows, labels, places, turn, view)))
    return fit.result(state, facts)


def told_by_a_teacher(samples: int, views: int, seed: int) -> dict[int, np.ndarray]:
    random = np.random.default_rng(seed)
    return {view: random.normal(size=(samples, WIDTH)).astype(np.float32) for view in (CLEAN, *range(views))}


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=15),
    views=st.integers(1, 3),
    batch=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)
def test_class_centres_are_the_means_of_each_fit_view_and_of_the_clean_images(
    make_facts, labels: list[int], views: int, batch: int, seed: int
) -> None:
    told = told_by_a_teacher(len(labels), views, seed)
    found = learned(ClassCentres("before_fc"), make_facts(labels, 4), told, batch, lambda _: unchanged)
    assert set(found) == {"views", "clean"}
    assert found["views"].shape == (views, 4, WIDTH)
    assert found["views"].dtype == found["clean"].dtype == np.float32
    for view, centres in [*enumerate(found["views"]), (CLEAN, found["clean"])]:
        for label in range(4):
            members = [told[view][i].astype(float) for i in range(len(labels)) if labels[i] == label]
            wanted = sum(members) / len(members) if members else np.zeros(WIDTH)
            np.testing.assert_allclose(centres[label], wanted, rtol=1e-6, atol=1e-7)


def test_class_centres_sum_in_float64(make_facts) -> None:
    rows = np.array([[2.0**24], [1], [1], [-(2.0**24)]], dtype=np.float32).repeat(WIDTH, 1)
    found = learned(ClassCentres("before_fc"), make_facts([0] * 4, 1), {0: rows, CLEAN: rows}, 1, lambda _: unchanged)
    np.testing.assert_array_equal(found["clean"], np.full((1, WIDTH), 0.5))
    np.testing.assert_array_equal(found["views"], np.full((1, 1, WIDTH), 0.5))


FITS = [ClassCentres("before_fc"), ClassClusters("before_fc", 2)]


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.key)
def test_a_fit_that_is_stopped_after_any_batch_gives_the_same_bits(fit: Fit, make_facts) -> None:
    facts, told = make_facts(np.arange(13) % 3, 3), told_by_a_teacher(13, 2, 0)
    wanted = learned(fit, facts, told, 4, lambda _: unchanged)
    steps = 4 * len(fit.passes(2))
    for stop in [*range(steps), None]:  # after one batch; after each
        found = learned(fit, facts, told, 4, lambda step, stop=stop: from_disk if stop in (step, None) else unchanged)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert value.tobytes() == found[name].tobytes()


def test_keys_carry_every_parameter() -> None:
    fits = [ClassCentres("before_fc"), ClassCentres("after_fc"), ClassCentres("conv3_x"), ClassCentres("conv4_x")]
    clusters = [ClassClusters(layer, k) for layer in ("before_fc", "after_fc") for k in (2, 3)]
    assert [fit.key for fit in fits] == [
        "centres.before_fc",
        "centres.logits",
        "centres.stage2.pooled",
        "centres.stage3.pooled",
    ]
    assert [fit.key for fit in clusters] == [
        "kmeans2.before_fc",
        "kmeans3.before_fc",
        "kmeans2.logits",
        "kmeans3.logits",
    ]


# k-means


def test_each_class_is_clustered_from_seeds_of_its_own(make_facts) -> None:
    """Keyed by the seed of the fits and by the class, so that a class does not depend on the others."""
    labels, rows = np.arange(40) % 2, told_by_a_teacher(40, 1, 0)
    found = learned(ClassClusters("before_fc", 4), make_facts(labels, 2, seed=5), rows, 7, lambda _: unchanged)
    for label in range(2):
        members = labels == label
        assignment, centres = k_means(rows[CLEAN][members].astype(np.float64), 4, 5, label)
        np.testing.assert_array_equal(found["assignment"][members], 4 * label + assignment)
        np.testing.assert_allclose(found["centres"][4 * label : 4 * label + 4], centres, rtol=1e-6)


def blobs(counts: list[int], seed: int) -> np.ndarray:
    """Groups of points around far corners."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [random.normal(size=(count, WIDTH)) + 50 * np.eye(WIDTH)[i % WIDTH] for i, count in enumerate(counts)]
    )


def spread(rows: np.ndarray, assignment: np.ndarray) -> float:
    """The sum of squared distances to the means of the groups."""
    groups = [rows[assignment == number] for number in set(assignment.tolist())]
    return sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)


def test_clusters_are_found_within_each_class(make_facts) -> None:
    """Three far groups; each class has points in two of them, so clusters across classes would differ."""
    corners = 50 * np.eye(WIDTH)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    places = np.array([0, 1, 0, 1, 1, 2, 1, 2, 0, 2])
    rows = (corners[places] + np.random.default_rng(0).normal(size=(10, WIDTH))).astype(np.float32)
    told = {CLEAN: rows, 0: rows + 1}
    found = learned(ClassClusters("before_fc", 2), make_facts(labels, 3), told, 4, lambda _: unchanged)
    assignment = found["assignment"]
    assert assignment.dtype == np.int64
    np.testing.assert_array_equal(assignment // 2, labels)
    for label in range(2):
        groups = {frozenset(np.flatnonzero(assignment == 2 * label + k).tolist()) for k in range(2)}
        both = set(places[labels == label].tolist())
        assert groups == {frozenset(np.flatnonzero((labels == label) & (places == p)).tolist()) for p in both}
    for number in range(4):
        np.testing.assert_allclose(found["centres"][number], rows[assignment == number].mean(0), rtol=1e-5, atol=1e-5)
    assert not found["centres"][4:].any()  # the class without images
    assert found["centres"].dtype == np.float32


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("clusters", [1, 2, 3])
def test_tiny_inputs_reach_the_optimum_of_all_assignments(seed: int, clusters: int) -> None:
    rows = blobs([3, 2, 2][:clusters], seed)
    assignment, centres = k_means(rows, clusters, seed, 0)
    best = min(spread(rows, np.array(way)) for way in itertools.product(range(clusters), repeat=len(rows)))
    assert spread(rows, assignment) == pytest.approx(best, rel=1e-9)
    for number in range(clusters):
        np.testing.assert_allclose(centres[number], rows[assignment == number].mean(0))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("clusters", [2, 5])
def test_scikit_learn_finds_the_same_from_the_same_seeds(seed: int, clusters: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn comes with kdtool[digits]")
    rows = np.random.default_rng(seed).normal(size=(60, WIDTH))
    assignment, centres = k_means(rows, clusters, seed, 7)
    begun = vectors._seeds(rows, clusters, seed, 7)
    found = cluster.KMeans(clusters, init=begun, n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(rows)
    np.testing.assert_array_equal(assignment, found.labels_)
    np.testing.assert_allclose(centres, found.cluster_centers_, rtol=1e-9, atol=1e-9)


@given(
    count=st.integers(1, 12),
    clusters=st.integers(1, 5),
    turn=st.integers(0, 5),
    distinct=st.integers(1, 12),
)
def test_every_point_belongs_to_its_nearest_centre(count: int, clusters: int, turn: int, distinct: int) -> None:
    """Repeated points, and more clusters than points, included."""
    rows = np.random.default_rng(count).normal(size=(count, 2))[np.arange(count) % min(count, distinct)]
    assignment, centres = k_means(rows, clusters, 1, turn)
    assert len(centres) == min(clusters, count)
    assert np.isfinite(centres).all()
    distances = ((rows[:, None] - centres[None]) ** 2).sum(2)
    np.testing.assert_array_equal(assignment, distances.argmin(1))
    for number in set(assignment.tolist()):
        np.testing.assert_allclose(centres[number], rows[assignment == number].mean(0), atol=1e-12)


def test_seeds_depend_on_seed_and_class_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    first = vectors._seeds(rows, 4, 1, 0)
    assert np.array_equal(first, vectors._seeds(rows, 4, 1, 0))
    assert not np.array_equal(first, vectors._seeds(rows, 4, 1, 1))
    assert not np.array_equal(first, vectors._seeds(rows, 4, 2, 0))


def test_seeds_are_drawn_in_proportion_to_the_squared_distance() -> None:
    """Three points: after the first seed the farther one is drawn 4 times in 5 on average, the first never again."""
    rows = np.array([[0.0], [1.0], [-2.0]])
    drawn = [vectors._seeds(rows, 2, seed, 0)[:, 0].tolist() for seed in range(3000)]
    after_zero = [second for first, second in drawn if first == 0]
    assert len(after_zero) == pytest.approx(1000, abs=100)
    assert after_zero.count(-2.0) / len(after_zero) == pytest.approx(0.8, abs=0.05)
    assert 0.0 not in after_zero
