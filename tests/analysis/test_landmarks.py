"""Estimates of the transfer loss from landmarks, against dense linear algebra (KDA, figures 4 to 6)."""

from dataclasses import replace

import numpy as np
import pytest

from kdtool.analysis.landmarks import Estimate, Plan, Snapshot, agreements, estimate, landmark_sets


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of a student and a teacher for 60 samples, and their labels."""
    draw = np.random.default_rng(3)
    labels = np.arange(60) % 4
    teacher = draw.normal(size=(60, 7)) + draw.normal(size=(4, 7))[labels]
    return draw.normal(size=(60, 5)) + draw.normal(size=(4, 5))[labels], teacher, labels


def dense(rows: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """C, C W^(-1/2) and the smallest eigenvalue of W."""
    values, vectors = np.linalg.eigh(landmarks @ landmarks.T)
    columns = rows @ landmarks.T
    return columns, columns @ vectors @ np.diag(values**-0.5) @ vectors.T, float(values[0])


@pytest.mark.parametrize("name", ["class", "random", "kmeans"])
def test_estimates_are_those_of_dense_matrices(sides: tuple[np.ndarray, np.ndarray, np.ndarray], name: str) -> None:
    student, teacher, labels = sides
    found = landmark_sets(student, teacher, labels, Plan((name,), count=4 if name != "class" else None))[name]
    ours, theirs = dense(student, np.asarray(found.student)), dense(teacher, np.asarray(found.teacher))
    said = estimate(student, teacher, found)
    norm = np.linalg.norm
    assert (said.landmarks, len(found)) == (name, 4)
    assert said.plain == pytest.approx(norm(ours[0] - theirs[0]) / norm(theirs[0]), rel=1e-9)
    assert said.whitened == pytest.approx(norm(ours[1] - theirs[1]) / norm(theirs[1]), rel=1e-7)
    assert said.student_smallest == pytest.approx(ours[2], rel=1e-7)
    assert said.teacher_smallest == pytest.approx(theirs[2], rel=1e-7)


def test_how_estimates_follow_the_loss() -> None:
    found = [
        Snapshot("train", epoch, loss, (Estimate("class", 2, 2 * loss, 5 - loss, 1.0, 1.0),))
        for epoch, loss in enumerate((1.0, 2.0, 4.0))
    ]
    plain, whitened = agreements(found)
    assert (plain.landmarks, plain.whitened, plain.mean_ratio) == ("class", False, pytest.approx(2.0))
    assert plain.correlation == pytest.approx(1.0)
    assert (whitened.whitened, whitened.correlation) == (True, pytest.approx(-1.0))
    assert whitened.mean_ratio == pytest.approx((4 / 1 + 3 / 2 + 1 / 4) / 3)
    assert [one.correlation for one in agreements(found[:2])] == [None, None]
    rounded = [replace(one, loss=0.1 + 1e-17 * number) for number, one in enumerate(found)]
    rounded = [replace(one, estimates=(replace(one.estimates[0], plain=0.3),)) for one in rounded]
    assert agreements(rounded)[0].correlation is None


def test_a_kind_that_is_named_twice_is_taken_once() -> None:
    assert Plan(("class", "random", "class")).strategies == ("class", "random")
