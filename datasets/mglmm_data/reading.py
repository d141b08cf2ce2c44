"""What readers of annotation files share: fields taken with a check, boxes, image folders, compact storage, one policy.

Every check raises `ValueError` with what is wrong; `Problems.at` puts file and record before it, and either lets it
through (`on_error: fail`) or leaves the record out and keeps the sentence (`on_error: count`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from mglmm_data.images import MAX_SIDE, LoadedImage, load_photo
from mglmm_data.masks import Size
from mglmm_data.sample import Box, Sample, check_text
from mglmm_data.telling import near

if TYPE_CHECKING:
    from mglmm_data.registry import Source

T = TypeVar("T")
OnError = Literal["fail", "count"]
KINDS = {object: "a value", str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
SLACK = 1.0
"""px: so far a box may leave its image by the rounding of its file; it is cut at the border, and that is counted."""
COCO_2014 = re.compile(r"^COCO_(train|val|test)(2014|2015)_")
BLANKS = re.compile(r"[\s,]*")
CHUNK = 1 << 22
"""Characters of a long json that are held at once."""
WRONG_TYPE = (TypeError, AttributeError, LookupError, ArithmeticError)
"""What comes of a field of another type than its format has, where no check of ours met it first."""


def sentence(error: Exception) -> str:
    """What an error says of an annotation: a `ValueError` has a sentence already, `WRONG_TYPE` gets one."""
    if isinstance(error, WRONG_TYPE):
        return f"a field is of another type than this format has ({type(error).__name__}: {error})"
    return str(error)


@contextmanager
def named(where: str) -> Iterator[None]:
    """An annotation that is read with its sample: what is wrong with it is a `ValueError` that begins with `where`."""
    try:
        yield
    except (ValueError, OSError, *WRONG_TYPE) as error:
        raise ValueError(f"{where}: {sentence(error)}; correct or remove it") from error


def read_sample(source: Source, index: int, epoch: int = 0) -> Sample:
    """The sample of a source.

    Raises:
        ValueError: the picture or the annotation is wrong; of `WRONG_TYPE` too, by the sample's id.
    """
    try:
        return source.sample(index, epoch)
    except WRONG_TYPE as error:
        raise ValueError(f"{id_of(source, index)}: {sentence(error)}; correct or remove it") from error


def id_of(source: Source, index: int) -> str:
    """The sample's id, or its number where the id cannot be read either."""
    try:
        return source.id_of(index)
    except (ValueError, OSError, *WRONG_TYPE):
        return f"sample {index}"


class Problems:
    """What is wrong in annotations: an error at once (`fail`), or left out and kept in `found` (`count`)."""

    def __init__(self, on_error: OnError | str = "fail") -> None:
        if on_error not in ("fail", "count"):
            raise ValueError(f"on_error is {on_error!r}{near(on_error, ('fail', 'count'))}")
        self.on_error = on_error
        self.found: list[str] = []

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """A record: what is wrong inside gets `where` (file and record) in front; not to be nested."""
        try:
            yield
        except (ValueError, OSError, *WRONG_TYPE) as error:
            self.take(where, error)

    @property
    def why(self) -> str:
        """The end of an error that nothing is left: the first problem, if there is one."""
        return f"; {len(self.found)} are wrong, the first of them: {self.found[0]}" if self.found else ""

    def take(self, where: str, error: Exception) -> None:
        """A record's error, named: `at` for loops over many records, whose `where` is made only when it is needed."""
        message = f"{where}: {sentence(error)}"
        if self.on_error == "fail":
            raise ValueError(f"{message}; correct or remove it, or set on_error: count to leave it out") from error
        self.found.append(message)


PLAIN = 2**63
"""Numbers of a smaller magnitude need no closer look."""


def shown(value: object) -> str:
    """A value in an error message: short, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def is_number(value: Any) -> bool:
    """Whether a value is a number: not NaN, not infinite, and no whole number that is too long for a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def take(record: Any, key: str, kind: type[T]) -> T:
    """A field of a json object that must be there and of this kind; `float` takes any finite number.

    Raises:
        ValueError: the record is no object, the field is missing, of another type, or a number is not finite.
    """
    if not isinstance(record, dict):
        raise ValueError(f"is {shown(record)}; expected an object with {key!r}")
    found: Any = record.get(key)
    if found.__class__ is kind and (kind not in (int, float) or -PLAIN < found < PLAIN):
        if kind is str:
            check_text(cast(str, found), f"its {key!r}")
        return found  # nearly always, and a file asks for it a million times
    if key not in record:
        raise ValueError(f"has no {key!r}")
    value: Any = record[key]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"its {key!r} is {shown(value)}; expected {KINDS[kind]}")
    if kind in (int, float) and not is_number(value):
        raise ValueError(f"its {key!r} is {str(value)[:60]}; expected a finite number")
    return cast(T, value)


def take_list(data: dict[str, Any], key: str, path: str | Path) -> list[Any]:
    """A list at the top of a json file, whose path stands in the error."""
    if not isinstance(data.get(key), list):
        raise ValueError(f"{path} has no list {key!r}; it has {', '.join(map(str, data)) or 'nothing'}")
    return data[key]


def name_in(record: Any, number: int, *keys: str) -> str:
    """What to call a record in an error: the first of the keys that it has (`id` by default), else its place."""
    for key in keys or ("id",):
        if isinstance(record, dict) and key in record:
            return str(record[key])[:60]
    return f"number {number}"


def take_id(record: Any, key: str) -> int | str:
    """An id: a whole number or text, as files of one family have it either way."""
    found = record.get(key) if isinstance(record, dict) else None
    return take(record, key, str) if isinstance(found, str) else take(record, key, int)


def take_crowd(record: Any) -> bool:
    """COCO's `iscrowd`: 0 or 1, and 0 where it is not said.

    Raises:
        ValueError: it is anything else.
    """
    found = record.get("iscrowd")
    if found not in (None, 0, 1) or isinstance(found, float):
        raise ValueError(f"its 'iscrowd' is {shown(found)}; expected 0 or 1")
    return bool(found)


def take_line(record: Any, key: str) -> str:
    """Text in one line: white space is one blank each, none at the ends; empty text is an error."""
    if not (text := " ".join(take(record, key, str).split())):
        raise ValueError(f"its {key!r} is empty")
    return text


def take_size(record: Any) -> Size:
    """(H, W) from `height` and `width`, px."""
    height, width = take(record, "height", int), take(record, "width", int)
    if min(height, width) < 1:
        raise ValueError(f"its size is {width}x{height} px; a picture has at least one pixel")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"its size is {width}x{height} px; no picture above {MAX_SIDE} px a side is read")
    return height, width


def read_box(values: Any, size: Size, form: Literal["xywh", "xyxy"], *, clip: bool = False) -> tuple[Box, bool]:
    """Four numbers in px to a box inside the image of `size` (H, W), and whether it had to be cut at the border.

    Raises:
        ValueError: not four finite numbers, no area, or it leaves the image by more than `SLACK` and `clip` is off.
    """
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise ValueError(f"its box is {shown(values)}; expected four numbers")
    for value in values:
        if not is_number(value):
            raise ValueError(f"its box {shown(values)} holds {shown(value)}; expected four finite numbers")
    x1, y1, x2, y2 = (float(value) for value in values)
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"its box {list(values)} ({form}) has no area")
    height, width = size
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    cut = max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"its box {list(values)} ({form}) lies outside the image of {width}x{height} px")
    if cut > SLACK and not clip:
        raise ValueError(f"its box {list(values)} ({form}) leaves the image of {width}x{height} px by {cut:g} px")
    return inside, cut > 0


def read_text(path: str | Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: it is missing, a folder, or in another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the annotations") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); "
            f"convert it, for example: iconv -f latin1 -t utf-8 {Path(path).name}"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); check the path of the annotations") from error


@overload
def read_json(path: str | Path, kind: type[T]) -> T: ...
@overload
def read_json(path: str | Path, kind: None = None) -> Any: ...
def read_json(path: str | Path, kind: Any = None) -> Any:
    """A whole json file, whose top is of this kind if one is given."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json ({error}); export or download it again") from error
    if kind is not None and not isinstance(data, kind):
        raise ValueError(f"{path} holds {type(data).__name__} at its top; expected {KINDS[kind]}")
    return data


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not empty."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: json may hold U+2028
        if line.strip():
            yield number, line


def read_jsonl(path: str | Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Number and json of each line."""
    for number, line in read_lines(path):
        with problems.at(f"{path}: line {number}"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list ever deeper
                raise ValueError(f"is no json ({error})") from error
            yield number, record


def stream_json(path: str | Path) -> Iterator[Any]:
    """The objects of a json list one after the other: Visual Genome's files are too long to be held at once.

    Raises:
        ValueError: the file is missing, not UTF-8, not a list, or damaged.
    """
    scan = json.JSONDecoder().raw_decode
    try:
        with open(path, encoding="utf-8-sig") as file:
            text, at, ended = file.read(CHUNK).lstrip(), 1, False
            if text[:1] != "[":
                raise ValueError(f"it begins with {text[:20]!r}; expected a list")
            while True:
                at = BLANKS.match(text, at).end()  # type: ignore[union-attr]
                if text[at : at + 1] == "]":
                    return
                try:
                    value, at = scan(text, at)
                except json.JSONDecodeError as error:
                    # An object that is cut at the end of what was read fails there, or in a string without end.
                    if ended or (error.pos < len(text) - 64 and "Unterminated" not in error.msg):
                        raise
                    more = file.read(CHUNK)
                    text, at, ended = text[at:] + more, 0, not more
                    continue
                yield value
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the annotations") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); check the path of the annotations") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it, for example with iconv") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json ({error}); export or download it again") from error


class Packed(Sequence[Any]):
    """Records of json values as one block of bytes and where each ends: a hundred thousand cost no dicts."""

    def __init__(self, records: Iterable[Any]) -> None:
        blob, ends = bytearray(), array("Q", [0])
        for record in records:
            blob += json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return json.loads(self._blob[self._ends[index] : self._ends[index + 1]])

    @property
    def num_bytes(self) -> int:
        return len(self._blob) + 8 * len(self._ends)


class Pictures:
    """One or several image folders; a name is looked for in each, and never outside of them.

    COCO's 2014 names are also found without their `COCO_val2014_`, since later releases dropped it. A folder is listed
    once, so that a hundred thousand names cost no call of the file system each.

    Raises:
        ValueError: a folder does not exist.
    """

    def __init__(self, roots: str | Path | Sequence[str | Path]) -> None:
        self.roots = [Path(roots)] if isinstance(roots, (str, Path)) else [Path(root) for root in roots]
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(f"image folder {root} does not exist; set image_root to the folder of the pictures")
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str:
        """The path of a picture.

        Raises:
            ValueError: the name leaves the folders (`..`, an absolute path), or the picture is in none of them.
        """
        for root in self.roots:
            base = os.path.join(os.path.abspath(root), "")
            for way in dict.fromkeys((name, COCO_2014.sub("", name))):
                path = os.path.normpath(os.path.join(base, way))
                if not path.startswith(base):
                    raise ValueError(f"its image {name!r} leaves the folder {root}; give a path inside it")
                folder, file = os.path.split(path)
                if file in self._files(folder):
                    return path
        raise ValueError(f"its image {name!r} is missing in {', '.join(map(str, self.roots))}")

    def _files(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            self._listed[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        return self._listed[folder]


def with_both_halves(roots: str | Path | Sequence[str | Path]) -> list[Path]:
    """Image folders, and with each the `VG_100K` and `VG_100K_2` in it or beside it: the images come in two parts."""
    given = [Path(roots)] if isinstance(roots, (str, Path)) else [Path(root) for root in roots]
    halves = [root / half for root in given for half in ("VG_100K", "VG_100K_2")]
    halves += [
        root.parent / half for root in given if root.name.startswith("VG_100K") for half in ("VG_100K", "VG_100K_2")
    ]
    return list(dict.fromkeys([*given, *(half for half in halves if half.is_dir())]))


def load_picture(path: str | Path, size: Size | None, where: str) -> LoadedImage:
    """Load a picture and check it against the size (H, W) of its annotation, if that has one."""
    loaded = load_photo(path)
    if size is not None and loaded.size != tuple(size):
        raise ValueError(
            f"{where}: the annotation is for {tuple(size)} (height, width), {path} is {loaded.size}; "
            "use the images that were annotated"
        )
    return loaded
