"""Canvas: there and back, exact to rounding, for every map; what a resized picture shows is where the points say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from sam_bridge import Canvas

SIDES = st.integers(8, 300)
SIZES = st.tuples(SIDES, SIDES)
SHARE = st.floats(0, 1)


@st.composite
def canvases(draw) -> Canvas:
    size = draw(SIZES)
    kind = draw(st.sampled_from(["longest_side", "resize", "pad_square"]))
    if kind == "resize":
        return Canvas.resize(size, (draw(SIDES), draw(SIDES)))
    return getattr(Canvas, kind)(size, draw(SIDES))


def box_of(mask: torch.Tensor) -> np.ndarray:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


@given(canvases(), st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=5))
def test_points_there_and_back(canvas, shares):
    height, width = canvas.image
    points = np.array(shares) * (width, height)
    inside = canvas.points(points)
    assert (inside >= -1e-6).all() and (inside <= np.array(canvas.inner[::-1]) + 1e-6).all()
    assert np.abs(canvas.points_back(inside) - points).max() < 1e-6
    as_float32 = torch.tensor(points, dtype=torch.float32)
    assert (canvas.points_back(canvas.points(as_float32)) - as_float32).abs().max() < 0.01


@given(canvases(), SHARE, SHARE, SHARE, SHARE)
def test_boxes_are_their_corners_and_come_back(canvas, a, b, c, d):
    height, width = canvas.image
    box = np.array([[min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]])
    mapped = canvas.boxes(box)
    assert np.allclose(mapped.reshape(2, 2), canvas.points(box.reshape(2, 2)))
    assert np.abs(canvas.boxes_back(mapped) - box).max() < 1e-6


@given(canvases(), SHARE, SHARE, st.integers(2, 40), st.integers(2, 40))
def test_a_mask_and_its_box_go_the_same_way(canvas, x, y, width, height):
    mask = torch.zeros(1, *canvas.image, dtype=torch.bool)
    top, left = int(y * (canvas.image[0] - 2)), int(x * (canvas.image[1] - 2))
    mask[0, top : top + height, left : left + width] = True
    covered = canvas.masks(mask)[0]
    box = canvas.boxes(box_of(mask[0]))
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert covered.min() >= 0 and covered.max() <= 1 + 1e-5
    assert abs(covered.sum().item() - area) <= 1e-3 * area + 1e-2
    outer = box_of(covered > 1e-4)
    assert (outer[:2] >= np.floor(box[:2] + 1e-3)).all() and (outer[2:] <= np.ceil(box[2:] - 1e-3)).all()


@given(canvases())
def test_masks_come_back_within_half_a_pixel(canvas):
    height, width = canvas.image
    box = np.array([width // 4, height // 4, width - width // 4, height - height // 4], float)
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    back = canvas.logits_back(canvas.masks(mask) * 2 - 1)[0] > 0
    assume(min(canvas.scale) * min(height, width) >= 8)  # below, the mask has too few model pixels to have an outline
    # half a pixel of the coarser of the two frames, plus the rounding to whole image pixels
    allowed = 0.5 * np.maximum(1, 1 / np.array(canvas.scale * 2)) + 0.5
    assert (np.abs(box_of(back) - box) <= allowed + 1e-6).all()


@given(SIZES, st.integers(16, 200))
def test_masks_at_the_same_scale_come_back_equal(size, seed):
    mask = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) > 0.5
    for canvas in (Canvas.longest_side(size, max(size)), Canvas.pad_square(size, max(size)), Canvas.resize(size, size)):
        assert torch.equal(canvas.logits_back(canvas.masks(mask) * 2 - 1) > 0, mask)


@given(canvases(), st.integers(1, 24))
def test_grid_conserves_area(canvas, cells):
    mask = np.ones(canvas.image, bool)
    grid = canvas.grid(mask, cells)
    share = np.prod(canvas.scale) * mask.sum() / np.prod(canvas.frame)
    assert grid.shape == (cells, cells) and grid.max() <= 1 + 1e-5
    assert grid.mean().item() == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("kind", ["longest_side", "resize", "pad_square"])
@pytest.mark.parametrize("size", [(90, 160), (161, 90), (64, 64)], ids=["wide", "tall", "square"])
def test_the_picture_shows_a_blob_where_the_points_say(kind, size):
    canvas = Canvas.resize(size, (80, 120)) if kind == "resize" else getattr(Canvas, kind)(size, 128)
    image = np.zeros((*size, 3), np.uint8)
    image[20:40, 30:60] = 255
    frame = canvas.apply_image(image)
    assert frame.shape == (*canvas.frame, 3) and frame.dtype == np.uint8
    light = frame[..., 0].astype(float) / 255
    rows, columns = np.mgrid[: canvas.frame[0], : canvas.frame[1]] + 0.5
    centre = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    assert np.abs(centre - canvas.points(np.array([45.0, 30.0]))).max() < 0.5
    exact = canvas.masks(image[None, ..., 0] > 0)[0].numpy()
    assert np.minimum(exact, light).sum() / np.maximum(exact, light).sum() > 0.8


def test_padding_takes_the_fill_and_nothing_else():
    image = Image.new("RGB", (40, 20), (200, 10, 10))
    square = Canvas.pad_square((20, 40), 40).apply_image(image, fill=(1, 2, 3))
    assert (
        (square[:10] == (1, 2, 3)).all() and (square[10:30] == (200, 10, 10)).all() and (square[30:] == (1, 2, 3)).all()
    )
    longest = Canvas.longest_side((20, 40), 80).apply_image(image, fill=(1, 2, 3))
    assert (longest[:40] == (200, 10, 10)).all() and (longest[40:] == (1, 2, 3)).all()


@pytest.mark.parametrize("kind", ["longest_side", "resize", "pad_square"])
@pytest.mark.parametrize("side", [37, 64, 300])
def test_pictures_are_resized_as_pillow_does_to_a_grey_level(kind, side):
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8)
    canvas = Canvas.resize((90, 60), (side, 80)) if kind == "resize" else getattr(Canvas, kind)((90, 60), side)
    (height, width), (rows, columns) = canvas.padded, canvas.inner
    square = Image.new("RGB", (width, height), (9, 9, 9))
    square.paste(Image.fromarray(image), canvas.origin)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    wanted = np.asarray(square.resize((columns, rows), filters[canvas.resample])).astype(int)
    found = canvas.apply_image(image, fill=(9, 9, 9))[:rows, :columns]
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.05


def test_pictures_that_may_not_be_written_to_or_run_backwards_are_drawn(recwarn):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for canvas in (Canvas.longest_side((20, 30), 12), Canvas.longest_side((20, 30), 30)):
        wanted = canvas.apply_image(image)
        locked = image.copy()
        locked.setflags(write=False)
        assert (canvas.apply_image(locked) == wanted).all()
        assert (canvas.apply_image(image[:, ::-1].copy()[:, ::-1]) == wanted).all()
        assert (canvas.apply_image(Image.fromarray(image)) == wanted).all()
    whole = Canvas.resize((20, 30), (20, 30)).apply_image(image)
    whole[:] = 0
    assert image.any() and not recwarn.list


def test_sizes_round_as_upstream():
    assert Canvas.longest_side((333, 150), 256).inner == (256, 115)
    assert Canvas.longest_side((120, 230), 256).inner == (134, 256)
    assert Canvas.longest_side((1, 4000), 256).inner == (1, 256)


def test_padding_never_reaches_the_image():
    canvas = Canvas.longest_side((60, 120), 256)
    logits = torch.full((1, 64, 64), -9.0)
    logits[:, :32] = 9.0  # the mask covers exactly the image
    assert (canvas.logits_back(logits) > 0).float().mean() > 0.95
    assert canvas.logits_back(logits.bfloat16()).dtype == torch.float32


def test_no_mask_is_fine():
    canvas = Canvas.longest_side((60, 120), 64)
    assert canvas.masks(np.zeros((0, 60, 120), bool)).shape == (0, 64, 64)
    assert canvas.logits_back(torch.zeros(0, 16, 16)).shape == (0, 60, 120)


def test_errors_name_the_value_and_the_way_out():
    canvas = Canvas.longest_side((60, 120), 64)
    with pytest.raises(ValueError, match=r"\(0, 5\).*at least 1 px"):
        Canvas.resize((0, 5), (8, 8))
    with pytest.raises(ValueError, match=r"size is \(0, 8\)"):
        Canvas.resize((5, 5), (0, 8))
    with pytest.raises(ValueError, match=r"image is \(120, 60\).*built for \(60, 120\)"):
        canvas.apply_image(np.zeros((120, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"float64\[60, 120, 3\].*8-bit RGB"):
        canvas.apply_image(np.zeros((60, 120, 3)))
    with pytest.raises(ValueError, match=r"\(1, 120, 60\).*\(N, 60, 120\)"):
        canvas.masks(np.zeros((1, 120, 60), bool))
    with pytest.raises(ValueError, match=r"inner size \(9, 8\) exceeds the frame \(8, 8\).*longest_side"):
        Canvas(image=(9, 8), padded=(9, 8), origin=(0, 0), inner=(9, 8), frame=(8, 8))
