"""What is told of every method is true: bytes are values times item size, the page is of this code, rows fit."""

from pathlib import Path

import numpy as np
import pytest

from kdtool.methods import METHODS, method
from kdtool.workflows.catalogue import STUDENT, TEACHER, catalogue, page, text

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"

# Bytes of an image in a view for resnet32x4 to resnet8x4: floating numbers of 2 bytes, and other arrays.
BYTES = {
    "kd": 2 * 100,
    "logits": 2 * 100,
    "kda": 2 * 256,
    "icd": 2 * 256,
    "cc": 2 * 256,
    "crd": 2 * 256,
    "rkd": 2 * 256,
    "pkt": 2 * 256,
    "sp": 2 * 16384,
    "at": 2 * 1344,
    "ft": 2 * 64,
    # maps of 64x32x32 and 128x16x16; of the last one the triangle of 64 positions
    "nst": 2 * (65536 + 32768 + 64 * 65 // 2),
    "fsp": 2 * 43008,
    "ab": 114688 // 8,
    "fitnet": 2 * 32768,
    "vid": 2 * 114688,
    # an index of 2 bytes for every pixel of three stages, 2 C numbers for each, and the logits
    "srm": 2 * (1024 + 256 + 64) + 2 * 2 * (64 + 128 + 256) + 2 * 100,
}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    return {row["method"]: row for row in catalogue((kind() for kind in METHODS.values()), STUDENT, TEACHER, 100)}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_values_times_item_size(name: str, rows) -> None:
    assert rows[name]["bytes_per_view"] == BYTES[name]
    arrays = [array for target in rows[name]["targets"].values() for array in target.values()]
    assert rows[name]["bytes_per_view"] == sum(
        int(np.prod(array["shape"])) * {"float16": 2, "uint16": 2, "uint8": 1}[array["dtype"]] for array in arrays
    )


@pytest.mark.parametrize(("width", "side"), [(None, 28), (64, 8)])
def test_bytes_are_those_of_images_as_wide_as_the_teacher_is_made_for(width: int | None, side: int) -> None:
    (row,) = catalogue([method("fitnet")], "tv:resnet18", "tv:resnet50", 10, width)
    assert row["bytes_per_view"] == 2 * 512 * side * side


def test_the_page_is_that_of_this_code() -> None:
    assert PAGE.read_text() == page(), "make it again: kdtool methods --markdown > docs/methods.md"
    assert all(f"| `{name}` |" in PAGE.read_text() for name in METHODS)


def test_a_row_tells_what_the_method_says_itself(rows) -> None:
    srm = rows["srm"]
    assert srm["options"] == vars(method("srm"))
    assert srm["paper"] == method("srm").paper
    assert [stage["name"] for stage in srm["stages"]] == ["pretrain", "kd"]
    assert [stage["epochs"] for stage in srm["stages"]] == [192, 240]
    assert srm["fits"] == [f"srm.stage{number}.sigmoid.mu2.lambda0.02.passes10" for number in (1, 2, 3)]
    assert srm["targets"]["stage3.srm.sigmoid.mu2.lambda0.02.passes10"] == {
        "pixel": {"dtype": "uint16", "shape": (8, 8), "bytes": 128},
        "image": {"dtype": "float16", "shape": (512,), "bytes": 1024},
    }


def test_a_pair_that_does_not_suit_is_told_as_one() -> None:
    (row,) = catalogue([method("fsp")], "resnet8", "wrn_16_2", 10)
    assert "channels" in row["refuses"]
    assert "targets" not in row
    assert "refuses" in text(row)


def test_paragraphs_fit_80_columns(rows) -> None:
    for row in rows.values():
        assert max(map(len, text(row).splitlines())) <= 80
