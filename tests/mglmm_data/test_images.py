"""Every bad picture is refused in one sentence that names it; every odd one is accepted and said."""

import contextlib
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mglmm_data.images import MAX_SIDE, ImageError, as_large_as, load_content, load_image, load_photo


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` RGB pixels and holds none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refused(path, match):
    with pytest.raises(ImageError, match=match) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_empty_folder_and_no_image(tmp_path):
    refused(tmp_path / "none.jpg", "does not exist; check the path")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", r"0 bytes")
    (tmp_path / "text.jpg").write_text("this is a letter")
    refused(tmp_path / "text.jpg", "not an image")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
@pytest.mark.parametrize("share", [0.02, 0.6], ids=["in the header", "in the pixels"])
def test_truncated(tmp_path, pixels, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.tile(pixels, (8, 8, 1))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "damaged|truncated|not an image")


def test_post_script_is_never_run(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.eps")
    refused(tmp_path / "a.eps", "save it as PNG or JPEG")


@pytest.mark.parametrize(
    ("size", "match"),
    [((1, 1), "at least 2 px a side"), ((MAX_SIDE + 1, 2), "16,384 px a side"), ((16000, 11200), "178 megapixels")],
)
def test_size_is_refused_from_the_header(tmp_path, size, match):
    path = tmp_path / "size.png"
    path.write_bytes(png_header(*size))
    refused(path, match)


def test_a_large_image_within_the_limits_gets_as_far_as_its_pixels(tmp_path, recwarn):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(16000, 11000))  # 176 megapixels: above Pillow's warning, below its error
    refused(path, "truncated or damaged")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("kind", "greatest", "bits"),
    [("P5", 65535, 16), ("P5", 4095, 12), ("P6", 65535, 16), ("P6", 1023, 10), ("P6", 255, 8), ("P5", 100, 8)],
)
def test_deep_netpbm_is_scaled_and_said(tmp_path, kind, greatest, bits):
    ramp = np.linspace(0, greatest, 12 if kind == "P5" else 36).round()
    path = tmp_path / "deep.pnm"
    path.write_bytes(f"{kind}\n4 3\n{greatest}\n".encode() + ramp.astype(">u2" if greatest > 255 else "u1").tobytes())
    loaded = load_image(path)
    wanted = np.linspace(0, 255, len(ramp)).reshape(3, 4, -1)
    assert np.abs(loaded.pixels - wanted).max() <= 1
    deep = f"{path} has {bits} bits a channel; scaled to 8 bits by its full range"
    assert loaded.notes == ((deep,) if bits > 8 else ())


def test_twelve_bits_of_a_tiff_are_not_black(tmp_path):
    ramp = np.linspace(0, 4095, 12).round().astype(int)
    packed = "".join(f"{value:012b}" for value in ramp)
    data = bytes(int(packed[at : at + 8], 2) for at in range(0, len(packed), 8))
    tags = {256: 4, 257: 3, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 3, 279: len(data)}
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path = tmp_path / "deep.tif"
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + fields + bytes(4))
    loaded = load_image(path)
    assert np.abs(loaded.pixels[..., 0].ravel() - np.linspace(0, 255, 12)).max() <= 1
    assert loaded.notes == (f"{path} has 12 bits a channel; scaled to 8 bits by its full range",)


@pytest.mark.parametrize("kind", ["png gray", "png rgb", "tif gray", "pgm", "array"])
def test_sixteen_bits_are_scaled_not_saturated(tmp_path, kind):
    ramp = np.linspace(0, 65535, 24 * 36).round().astype(np.uint16).reshape(24, 36)
    if kind == "array":
        loaded = load_image(ramp)
    else:
        path = tmp_path / f"deep.{kind.split()[0]}"
        cv2.imwrite(str(path), np.repeat(ramp[..., None], 3, 2) if "rgb" in kind else ramp)
        loaded = load_image(path)
    assert np.abs(loaded.pixels.astype(int) - (ramp / 257)[..., None]).max() <= 1
    assert loaded.pixels.max() == 255 and loaded.pixels.min() == 0
    assert [note for note in loaded.notes if "16 bits" in note] == list(loaded.notes)


def test_thirty_two_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "i.tif")
    refused(tmp_path / "i.tif", "32-bit pixels .*save it with 8 or 16 bits")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "f.tif")
    refused(tmp_path / "f.tif", "float pixels")


def test_cmyk_is_converted_and_said(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    loaded = load_image(tmp_path / "c.jpg")
    assert "CMYK" in loaded.notes[0]
    assert loaded.pixels[0, 0, 0] > 200 and loaded.pixels[0, 0, 1:].max() < 60  # red


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        picture.quantize(4).save(tmp_path / "a.png")
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert "transparency; laid over white" in loaded.notes[0]
    assert (loaded.pixels[:, :4] == 255).all() and (loaded.pixels[:, 4:] == 0).all()


def test_opaque_alpha_needs_no_note(tmp_path, pixels):
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.notes == () and (loaded.pixels == pixels).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert "3 frames; the first" in loaded.notes[0]
    assert tuple(loaded.pixels[4, 4]) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "r.png", exif=exif)
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(pixels),
    }  # fmt: skip
    loaded = load_image(tmp_path / "r.png")
    assert (loaded.pixels == turned[orientation]).all()
    assert bool(loaded.notes) == (orientation != 1)


def test_plain_pictures_pass_untouched(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    for given in (pixels, Image.fromarray(pixels), tmp_path / "p.png", str(tmp_path / "p.png")):
        loaded = load_image(given)
        assert loaded.notes == () and (loaded.pixels == pixels).all() and loaded.size == (24, 36)
    gray = load_image(tmp_path / "gray.png")
    assert gray.notes == () and (gray.pixels == pixels[..., :1]).all()
    assert (load_image(pixels[..., :1]).pixels == pixels[..., :1]).all()


def test_arrays_of_another_kind_name_the_way_out():
    with pytest.raises(ImageError, match=r"float64; give uint8"):
        load_image(np.zeros((4, 4, 3)))
    with pytest.raises(ImageError, match=r"shape \(4, 4, 5\)"):
        load_image(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(ImageError, match="not list"):
        load_image([[0]])  # pyright: ignore[reportArgumentType]


# ---- JPEG through OpenCV


def test_jpeg_pixels_are_pillows(tmp_path):
    picture = np.random.default_rng(3).integers(0, 256, (37, 53, 3), np.uint8)
    cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("a.jpg", "RGB", {"quality": 90}),
        ("b.jpg", "RGB", {"quality": 60, "progressive": True}),
        ("c.jpg", "L", {}),
        ("d.jpg", "CMYK", {}),
    )
    for name, mode, options in cases:
        Image.fromarray(picture).convert(mode).save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert (load_image(tmp_path / name).pixels == expected).all(), name


@pytest.mark.parametrize(
    ("needed", "shape"),
    [(None, (240, 320)), ((400, 1), (240, 320)), ((161, 1), (240, 320)), ((160, 1), (120, 160)), ((40, 1), (30, 40))]
    + [((40, 61), (120, 160)), ((40, 121), (240, 320))],
)
def test_a_jpeg_is_decoded_only_as_large_as_needed(tmp_path, needed, shape):
    ramp = np.tile(np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None], (240, 1, 3))
    for name, quality in (("a.jpg", 95), ("a.png", 0), ("cmyk.jpg", 95)):
        Image.fromarray(ramp).convert("CMYK" if "cmyk" in name else "RGB").save(tmp_path / name, quality=quality)
    with as_large_as(*needed) if needed else contextlib.nullcontext():
        loaded, user = load_photo(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg")
        told = load_content((tmp_path / "a.jpg").read_bytes(), "it")
        png, cmyk = load_photo(tmp_path / "a.png"), load_photo(tmp_path / "cmyk.jpg")
    assert loaded.pixels.shape[:2] == shape and (told.pixels == loaded.pixels).all()
    assert loaded.full_size == (None if shape == (240, 320) else (240, 320)) and loaded.size == (240, 320)
    small = np.asarray(Image.fromarray(ramp).resize(shape[::-1], Image.Resampling.BOX))
    assert np.abs(loaded.pixels.astype(int) - small).max() <= 4
    assert user.pixels.shape == png.pixels.shape == cmyk.pixels.shape == (240, 320, 3)
    assert load_photo(tmp_path / "a.jpg").full_size is None


def test_nothing_is_no_size_to_decode_to():
    with pytest.raises(ValueError, match="needed are 0 and 1 px"), as_large_as(0):
        pass


def test_a_cut_off_jpeg_is_refused_although_opencv_would_fill_it(tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"a.jpg is truncated"):
        load_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content + b"\0\0")
    assert load_image(tmp_path / "a.jpg").size == (64, 64)
