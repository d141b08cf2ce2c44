"""The eyes: every size and number of phrases draws; colours and numbers match; pages escape what they show."""

import re

import numpy as np
import pytest
from PIL import Image

from mglmm.answer import Answer, Instance, Phrase
from mglmm.badges import Board, letter, widest
from mglmm.caption import Paragraph, Piece
from mglmm.draw import contact_sheet, draw_answer, draw_picture, prompt_pieces
from mglmm.outline import Frame, Shape, layers_of, shapes_of
from mglmm.page import answer_page
from mglmm.palette import ink_on, luminance, palette
from mglmm_data.sample import Region


def square(size: tuple[int, int], x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def answer_of(size: tuple[int, int], masks: list[np.ndarray], prompt: str = "What is there?") -> Answer:
    text, phrases = "", []
    for index, mask in enumerate(masks):
        name = f"thing {index}"
        phrases.append(Phrase(name, (len(text), len(text) + len(name)), (Instance(mask, None, 0.5),)))
        text += name + ", "
    return Answer(text + "that is all.", tuple(phrases), np.full((*size, 3), 128, np.uint8), prompt=prompt)


def test_palette_is_distinct_stable_and_readable():
    colors = palette(40)
    assert len(set(colors)) == 40 and palette(7) == colors[:7]
    assert len(palette(2000)) == 2000
    for color in colors:
        low, high = sorted((luminance(color), luminance(ink_on(color))))
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(
    "size", [(1, 1), (40, 200), (200, 40), (192, 192), (480, 640), (900, 300)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@pytest.mark.parametrize("num_phrases", [0, 1, 12])
def test_every_size_draws(size, num_phrases):
    side = max(1, min(size) // 4)
    masks = [square(size, (7 * k) % size[1], (5 * k) % size[0], side) for k in range(num_phrases)]
    picture = draw_answer(answer_of(size, masks))
    assert picture.mode == "RGB" and picture.width >= 480
    assert picture.height > Frame(size).shape[0] or size[0] > size[1]


def test_small_images_are_enlarged_by_a_whole_number_and_huge_ones_shrunk():
    assert Frame((192, 192)).shape == (576, 576)
    assert Frame((3000, 4000)).shape == (3000, 4000)
    assert max(Frame((100, 9000)).shape) == 4096
    assert Frame((4000, 4)).shape == (4000, 4)


def test_a_mask_is_tinted_in_its_colour_inside_and_not_outside():
    size = (480, 640)
    mask = square(size, 200, 100, 240)
    picture = draw_picture(answer_of(size, [mask]))
    inside, outside = picture[130:150, 220:240].reshape(-1, 3).mean(0), picture[400:, :150]
    assert (outside == 128).all()
    red, green, blue = inside
    assert red > 150 and green < 110 and blue < 128  # towards the palette's first, a red


def test_the_smallest_mask_is_on_top_whatever_the_order():
    size = (480, 640)
    big, small = square(size, 100, 50, 380), square(size, 120, 70, 120)
    for masks in ([big, small], [small, big]):
        answer = answer_of(size, masks)
        frame = Frame(size)
        layers = layers_of(frame, shapes_of(answer, frame))
        assert [layer.shape.area for layer in layers] == [380**2, 120**2]
    assert not layers[0].whole
    nested = answer_of(size, [big, square(size, 100, 50, 360)])
    assert [layer.whole for layer in layers_of(frame, shapes_of(nested, frame))] == [True, False]


def test_outlines_keep_holes_and_stay_on_the_mask():
    size = (300, 600)
    ring = square(size, 200, 50, 200) & ~square(size, 260, 110, 60)
    outer, inner = sorted(Shape(Frame(size), ring, None).outlines, key=lambda line: -np.ptp(line[:, 0]))
    assert np.allclose([outer.min(0), outer.max(0)], [[200.5, 50.5], [399.5, 249.5]], atol=1)
    assert np.allclose([inner.min(0), inner.max(0)], [[259.5, 109.5], [320.5, 170.5]], atol=1)


def test_even_one_pixel_is_drawn():
    size = (64, 64)
    picture = draw_picture(answer_of(size, [square(size, 30, 30, 1)]))
    assert (picture != 128).any()


def test_boxes_empty_masks_and_missing_instances_draw():
    image = np.full((200, 300, 3), 128, np.uint8)
    phrases = (
        Phrase("a", (0, 1), (Instance(None, (10.0, 20.0, 100.0, 90.0), 0.5),)),
        Phrase("b", (2, 3), (Instance(np.zeros((200, 300), bool), None, 0.5),)),
        Phrase("c", (4, 5), ()),
        Phrase("", (5, 5), (Instance(np.ones((200, 300), bool), None, 0.5),)),
    )
    answer = Answer("a b c", phrases, image)
    draw_answer(answer)
    page = answer_page([("", answer)], "x")
    assert page.count('class="p hollow"') == 2 and page.count('class="mask') == 2 and page.count("mask box") == 1


@pytest.mark.parametrize(
    "region",
    [
        Region((60, 80), box=(10.0, 5.0, 40.0, 30.0)),
        Region((60, 80), point=(0.0, 60.0)),
        Region((60, 80), scribble=((5.0, 5.0), (40.0, 20.0), (79.0, 59.0))),
        Region.of_mask(square((60, 80), 20, 20, 15)),
        Region.of_mask(np.zeros((60, 80), bool)),
    ],
    ids=["box", "point", "scribble", "mask", "empty"],
)
def test_given_regions_are_drawn_and_named(region):
    answer = answer_of((60, 80), [square((60, 80), 50, 10, 20)], prompt="What is [region 0], and [region 1]?")
    assert (draw_picture(answer, [region]) != draw_picture(answer)).any()
    page = answer_page([("", answer)], "x", [[region]])
    assert '<b class="chip given">A</b>, and [region 1]?' in page


def test_a_region_of_another_image_is_refused():
    answer = answer_of((60, 80), [])
    with pytest.raises(ValueError, match=r"region 0 is for an image of \(8, 8\), this one is \(60, 80\)"):
        draw_answer(answer, [Region((8, 8), point=(1.0, 1.0))])
    with pytest.raises(ValueError, match="regions for 2"):
        answer_page([("", answer)], "x", [[], []])


def test_prompt_pieces_and_letters():
    assert prompt_pieces("see [region 1][region 7]", 2) == [("see ", None), ("[region 1]", 1), ("[region 7]", None)]
    assert [letter(index) for index in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


def test_badges_do_not_cover_each_other():
    board = Board((100, 100))
    mask = square((100, 100), 10, 10, 80)
    none = np.zeros((100, 100), bool)
    spots = [board.on_mask(mask, none, (12, 10)) for _ in range(12)]
    for index, one in enumerate(spots):
        for other in spots[:index]:
            assert abs(one.x - other.x) >= 11 or abs(one.y - other.y) >= 9
    assert widest(none) == (0.0, 0.0, 0.0)


def test_a_badge_goes_beside_a_mask_that_it_would_hide():
    board = Board((100, 100))
    spot = board.on_mask(square((100, 100), 50, 50, 4), np.zeros((100, 100), bool), (12, 10))
    assert spot.anchor is not None and abs(spot.x - 52) + abs(spot.y - 52) > 6


def test_paragraphs_wrap_and_never_lose_a_word():
    words = "one two three " * 20 + "x" * 300 + " 中文" * 30
    paragraph = Paragraph([Piece(words), Piece(words, (255, 0, 0), "12")], 400, 16)
    drawn = "".join(word.text for line in paragraph.lines for word in line).replace(" ", "")
    assert drawn == (words * 2).replace(" ", "")
    assert all(line[-1].x + line[-1].width <= 400 for line in paragraph.lines if line and line[-1].text != " ")
    assert len(Paragraph([Piece("a\n\nb")], 400, 16).lines) == 3


def test_contact_sheet_has_one_width_and_names_bad_input():
    pictures = [
        ("one", Image.new("RGB", (300, 200))),
        ("two", Image.new("RGB", (600, 100))),
        ("", Image.new("L", (300, 9))),
    ]
    sheet = contact_sheet(pictures, 2)
    assert sheet.width < 3 * 300 and sheet.height > 200
    with pytest.raises(ValueError, match="0 pictures, 2 columns"):
        contact_sheet([], 2)


def test_page_escapes_everything_and_asks_for_nothing():
    evil = '<script>alert("x")</script>'
    text = f"{evil} & [SEG]"
    phrase = Phrase(evil, (0, len(evil)), (Instance(square((40, 60), 5, 5, 20), None, 0.5),))
    answer = Answer(text, (phrase,), np.zeros((40, 60, 3), np.uint8), (evil,), True, prompt=evil)
    page = answer_page([(evil, answer), ("plain", answer_of((40, 60), []))], evil)
    assert page.count("<script>") == 1 and "alert(&quot;x&quot;)" in page and "[SEG]" in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|\ssrc=\"(?!data:)", page)
    assert "default-src 'none'" in page and "cut off at the token limit" in page
