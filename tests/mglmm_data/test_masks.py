"""Masks as runs: made, drawn, checked and measured as pycocotools does it."""

import numpy as np
import pytest

from mglmm_data import masks
from mglmm_data.sample import Region


def test_label_maps_to_rle_in_one_pass():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 7), (9, 1), (30, 41)):
        for dtype in (np.uint8, np.uint16, np.int32, np.uint32):
            labels = rng.integers(0, 5, shape).astype(dtype)
            found = masks.rles_of_labels(labels)
            assert found.keys() == set(labels.ravel().tolist())
            assert all((masks.decode(rle) == (labels == value)).all() for value, rle in found.items())
            assert all(rle == masks.encode(labels == value) for value, rle in found.items())


def test_masks_are_drawn_as_pycocotools_draws_them():
    """Only the columns that a mask covers are decoded: at every border, and where its last run is of ones or zeros."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 50, 2))
        mask = np.zeros((height, width), bool)
        top, left, rows, columns = rng.integers(0, 50, 4)
        mask[top : top + rows, left : left + columns] = rng.random() < 0.9
        mask &= rng.random(mask.shape) < rng.choice([0.2, 0.9, 1.0])
        mask[-1, -1] |= rng.random() < 0.2
        rle = masks.encode(mask)
        assert (masks.coco.decode(rle) == mask).all()
        for told in (rle, masks.Rle(size=rle["size"], counts=rle["counts"])):  # as we made it, and out of a file
            assert (masks.decode(told) == mask).all()
            assert Region(mask.shape, rle=told).bounds == masks.box_of(mask)


def test_what_is_checked_is_not_taken_for_another_size():
    with pytest.raises(ValueError, match=r"of size \(4, 6\), the image of \(6, 4\)"):
        masks.decode(masks.encode(np.ones((4, 6), bool)), (6, 4))


@pytest.mark.parametrize("counts", [[2, 0, 3, 4, 11], [0, 0, 9, 3, 8, 0], [20, 0], [3, 2, 0, 2, 0, 3, 10], [0, 20]])
def test_runs_without_pixels_do_not_stretch_a_mask(counts):
    size = (4, 5)
    flat = np.concatenate([np.full(run, place % 2) for place, run in enumerate(counts)])
    told = masks.packed({"size": [*size], "counts": counts}, size)
    again = masks.packed({"size": [*size], "counts": raw_counts(counts)}, size)
    assert told == again == masks.encode(flat.reshape(5, 4).T.astype(bool))
    assert masks.bounds_of(told) == masks.box_of(masks.decode(told))


def raw_counts(counts):
    """Runs as compressed text, as they are: COCO's `rleToString`."""
    out = ""
    for place, run in enumerate(counts):
        value = run - counts[place - 2] if place > 2 else run
        more = True
        while more:
            code, value = value & 0x1F, value >> 5
            more = value != (-1 if code & 0x10 else 0)
            out += chr((code | 0x20 if more else code) + 48)
    return out
