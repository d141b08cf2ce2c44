"""The one door for pictures: what a user or a dataset hands over becomes `uint8[H, W, 3]` RGB, or one clear sentence.

What is repaired on the way (16 bits, CMYK, alpha, animation, EXIF rotation) is said in `LoadedImage.notes`; what cannot
be is an `ImageError` that names the file and the way out. The size is checked from the header, before any pixel is
decoded.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Twice Pillow's `MAX_IMAGE_PIXELS`: above it Pillow speaks of a decompression bomb and refuses the header itself."""
MAX_SIDE = 16_384
"""px."""
MIN_SIDE = 2
"""px."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
"""Raster formats only: Pillow hands EPS to Ghostscript, which runs what stands in the file."""
EXIF_ORIENTATION = 0x0112

ImageLike = str | Path | Image.Image | np.ndarray
"""A path, a Pillow image, or an array: bool, uint8 or uint16, `[H, W]` or `[H, W, C]` with C = 1 gray, 2 gray and
alpha, 3 RGB, 4 RGBA."""


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and the way out, in one sentence."""


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """`pixels` are `uint8[H, W, 3]` RGB, upright; `notes` say what was changed for that; `path` is "" for objects.

    `full_size` is the picture's own (H, W), px, where it was decoded smaller than it is: annotations are in its pixels.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    path: str = ""
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, px, however small it was decoded."""
        return self.full_size or (int(self.pixels.shape[0]), int(self.pixels.shape[1]))


Sides = tuple[int, int]
"""A picture's longer and shorter side, px."""
_NEEDED: ContextVar[Sides | None] = ContextVar("needed", default=None)


@contextmanager
def as_large_as(longer: int, shorter: int = 1) -> Iterator[None]:
    """Within, photographs of samples are decoded no larger than who reads them needs; what they show stays the same.

    A JPEG whose longer and shorter side stay so long (px) is decoded at 1/2, 1/4 or 1/8 of its size, which is faster
    and takes less memory. `Sample.size` and all regions stay in pixels of the whole picture.
    """
    if min(longer, shorter) < 1:
        raise ValueError(f"needed are {longer} and {shorter} px; a picture has at least one pixel a side")
    token = _NEEDED.set((longer, shorter))
    try:
        yield
    finally:
        _NEEDED.reset(token)


@dataclass(frozen=True)
class KnownPhotos:
    """Photographs whose pixels nobody needs, because what a model sees of them is kept.

    `size_of` gives the (H, W), px, that was kept for a name, or None; `opened` are the names that were asked for.
    """

    size_of: Callable[[str], tuple[int, int] | None]
    opened: list[str] = field(default_factory=list)

    def look(self, content: bytes, path: str) -> LoadedImage | None:
        self.opened.append(name_of(content))
        size = self.size_of(self.opened[-1])
        return None if size is None else LoadedImage(np.zeros((1, 1, 3), np.uint8), path=path, full_size=size)


_KNOWN: ContextVar[KnownPhotos | None] = ContextVar("known", default=None)


def name_of(content: bytes) -> str:
    """What a photograph is known by wherever it lies: the hash of its file, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def known(photos: KnownPhotos) -> Iterator[None]:
    """Within, photographs of samples that are known are not decoded: one black pixel stands for them.

    `Sample.size` and all regions stay in pixels of the whole picture, as within `as_large_as`.
    """
    token = _KNOWN.set(photos)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def load_photo(path: str | Path) -> LoadedImage:
    """The photograph of a sample, as large as it is needed (`as_large_as`); `load_image` is for masks and users."""
    return _from_file(Path(path), _NEEDED.get(), _KNOWN.get())


def load_content(content: bytes, name: str) -> LoadedImage:
    """As `load_photo`, from the bytes of a file, which `name` stands for in errors."""
    photos = _KNOWN.get()
    if photos is not None and (seen := photos.look(content, "")) is not None:
        return seen
    return _read(io.BytesIO(content), name, "", _NEEDED.get())


def load_image(image: ImageLike | LoadedImage) -> LoadedImage:
    """Load a picture from a path, a Pillow image or an array; one that is loaded stays as it is.

    Returns:
        `uint8[H, W, 3]` RGB with EXIF rotation applied, alpha laid over white, 16 bits scaled to 8 (65535 becomes 255).

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, too small or too large, or its pixels are of a
            kind with no agreed range (32-bit integers, floats).
    """
    if isinstance(image, LoadedImage):
        return image
    if isinstance(image, (str, Path)):
        return _from_file(Path(image), None)
    if isinstance(image, Image.Image):
        _check_size(image.size, "the image")
        return _from_pillow(image, "the image", path="")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise ImageError(f"an image is a path, a PIL.Image or a numpy array, not {type(image).__name__}")


def _from_file(path: Path, needed: Sides | None, photos: KnownPhotos | None = None) -> LoadedImage:
    name = os.fsencode(path).decode("utf-8", "replace")  # what is said; not every file's name is text
    if path.is_dir():
        raise ImageError(f"{name} is a folder; give the path of one image file")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{name} is empty (0 bytes); copy or download it again")
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read; check its permissions") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be opened ({error.strerror}); check the path") from error
    with file:
        if photos is not None:
            if (seen := photos.look(file.read(), name)) is not None:
                return seen
            file.seek(0)
        return _read(file, name, name, needed)


def _read(file: IO[bytes], name: str, path: str, needed: Sides | None) -> LoadedImage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half of MAX_PIXELS on
            opened = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        count = f"{int(found[0]) / 1e6:,.0f} megapixels" if found else "too many pixels"
        raise ImageError(
            f"{name} has {count}; at most {MAX_PIXELS // 10**6} megapixels fit, scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read, or its beginning is damaged; save it as PNG or JPEG"
        ) from error
    except Exception as error:  # a damaged header: decoders raise struct.error, SyntaxError, EOFError, KeyError ...
        raise ImageError(f"{name} is damaged ({error}); copy or download it again, or save it anew") from error
    with opened:
        _check_size(opened.size, name)
        if opened.format == "JPEG" and (decoded := _decode_jpeg(opened, file, path, needed)) is not None:
            return decoded
        return _from_pillow(opened, name, path=path)


def _decode_jpeg(opened: Image.Image, file: IO[bytes], path: str, needed: Sides | None) -> LoadedImage | None:
    """A plain JPEG through OpenCV: the pixels that Pillow gives in two thirds of the time, or fewer of them.

    None for what needs Pillow's care: CMYK, rotation, several frames, no end marker (OpenCV fills what is cut off
    with grey and says nothing).
    """
    import cv2

    if opened.mode not in ("RGB", "L") or getattr(opened, "n_frames", 1) > 1:
        return None
    if opened.getexif().get(EXIF_ORIENTATION, 1) != 1:
        return None
    file.seek(0)
    content = file.read()
    if not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        file.seek(0)
        return None
    longer, shorter, factor = max(opened.size), min(opened.size), 1
    while needed and factor < 8 and longer // (2 * factor) >= needed[0] and shorter // (2 * factor) >= needed[1]:
        factor *= 2
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        return None
    full = (opened.size[1], opened.size[0]) if factor > 1 else None
    return LoadedImage(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), path=path, full_size=full)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width}x{height} px; an image needs at least {MIN_SIDE} px a side, use a larger one"
        )
    if max(size) > MAX_SIDE:
        raise ImageError(f"{name} is {width}x{height} px; at most {MAX_SIDE:,} px a side fit, scale it down first")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} px; at most {MAX_PIXELS // 10**6} megapixels fit, scale it down first"
        )


def _from_pillow(image: Image.Image, name: str, path: str) -> LoadedImage:
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"{name} has {frames} frames; the first is used")
    bits = _channel_bits(image)
    if bits > 8:
        notes.append(_deep_note(name, bits))
    try:
        if frames > 1:
            image.seek(0)
        image.load()
    except Exception as error:  # damaged pixels: OSError, SyntaxError, EOFError, zlib.error, struct.error ...
        raise ImageError(f"{name} is truncated or damaged ({error}); copy or download it again") from error
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        notes.append(f"{name} is rotated as its EXIF orientation ({orientation}) says")
    if image.mode.startswith("I") or image.mode == "F":
        notes += [] if bits > 8 else [_deep_note(name, 16)]
        image = _to_eight_bits(image, name, bits)
    if image.mode == "CMYK":
        notes.append(f"{name} is CMYK; converted to RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            notes.append(f"{name} has transparency; laid over white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        pixels = np.array(image.convert("RGB"))
    except ValueError as error:
        raise ImageError(f"{name} has pixels of mode {image.mode}, which has no way to RGB; save it as RGB") from error
    return LoadedImage(pixels=pixels, notes=tuple(notes), path=path)


def _channel_bits(image: Image.Image) -> int:
    """Bits a channel in the file, from what Pillow's decoder is told about it; 8 where it is told nothing."""
    bits = 16 if image.mode.startswith("I;16") else 8
    for tile in getattr(image, "tile", None) or ():
        told: list[object] = [*tile[3]] if isinstance(tile[3], tuple) else [tile[3]]
        packed = re.match(r"(?:I|L|RGB|CMYK)\w?;(\d+)", str(told[0])) if told else None
        if tile[0].startswith("ppm"):
            bits = max(8, int(str(told[1])).bit_length())  # of the greatest value
        elif packed:
            bits = max(8, int(packed[1]))
    return bits


def _deep_note(name: str, bits: int) -> str:
    return f"{name} has {bits} bits a channel; scaled to 8 bits by its full range"


def _to_eight_bits(image: Image.Image, name: str, bits: int) -> Image.Image:
    """Modes I;16*, I and F to L; 16-bit RGB needs nothing, Pillow's decoder keeps the high byte of each channel."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name} has {'float' if image.mode == 'F' else '32-bit'} pixels ({values.min()} to {values.max()}), "
            "whose white is anyone's guess; save it with 8 or 16 bits"
        )
    shift = bits - 8 if image.mode.startswith("I;16") else 8  # Pillow widens 12 bits to 16 in some formats, not in TIFF
    return Image.fromarray((values.astype(np.uint32) >> shift).astype(np.uint8))


def _from_array(array: np.ndarray) -> LoadedImage:
    name = "the array"
    channels: Any = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise ImageError(f"{name} has shape {array.shape}; give [H, W], or [H, W, C] with 1, 2, 3 or 4 channels")
    _check_size((array.shape[1], array.shape[0]), name)
    notes: list[str] = []
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
        notes.append(_deep_note(name, 16))
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(
            f"{name} is {array.dtype}; give uint8 (0..255) or uint16 (0..65535), e.g. (x * 255).astype('uint8')"
        )
    if array.ndim == 3 and channels == 1:
        array = array[..., 0]
    loaded = _from_pillow(Image.fromarray(np.ascontiguousarray(array)), name, path="")
    return LoadedImage(pixels=loaded.pixels, notes=(*notes, *loaded.notes))
