"""An answer in the formats that others read: our json, COCO, labelme, Label Studio, supervision.

COCO RLE is the lossless one: masks may overlap (a hat in a person) and keep their holes. Sources of the formats: COCO
data format (cocodataset.org/#format-data); labelme 5 files; Label Studio guide, "Import pre-annotated data".
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from PIL import Image

from mglmm.answer import Answer, Instance, Phrase
from mglmm_data import masks
from mglmm_data.sample import Box

if TYPE_CHECKING:
    import supervision


def _instances(answer: Answer) -> Iterator[tuple[int, Phrase, Instance, Box]]:
    """(index of the phrase, phrase, instance, box) of every instance; an empty mask has the box 0, 0, 0, 0."""
    for index, phrase in enumerate(answer.phrases):
        for instance in phrase.instances:
            x1, y1, x2, y2 = instance.bounds or (0.0, 0.0, 0.0, 0.0)
            yield index, phrase, instance, (float(x1), float(y1), float(x2), float(y2))


def to_json(answer: Answer) -> dict[str, Any]:
    """Everything but the pixels: plain dicts, lists, text and numbers, masks as compressed COCO RLE."""

    def instance(item: Instance) -> dict[str, Any]:
        return {
            "box": [float(value) for value in item.box] if item.box is not None else None,
            "score": float(item.score),
            "segmentation": masks.encode(item.mask) if item.mask is not None else None,
        }

    return {
        "text": answer.text,
        "phrases": [
            {
                "text": phrase.text,
                "span": [int(value) for value in phrase.span],
                "score": phrase.score,
                "instances": [instance(item) for item in phrase.instances],
            }
            for phrase in answer.phrases
        ],
        "notes": list(answer.notes),
        "truncated": answer.truncated,
        "prompt": answer.prompt,
        "score_kind": answer.score_kind,
        "image": {"height": answer.size[0], "width": answer.size[1]},
    }


def from_json(data: dict[str, Any], image: np.ndarray) -> Answer:
    """The answer that `to_json` wrote, about `image`, uint8[H, W, 3].

    Raises:
        ValueError: a key is missing, the image is of another size, or a mask is.
    """
    try:
        size = (int(data["image"]["height"]), int(data["image"]["width"]))
        if size != image.shape[:2]:
            raise ValueError(
                f"the answer is about an image of {size}, the one given is {image.shape[:2]} (height, width)"
            )

        def instance(item: dict[str, Any]) -> Instance:
            box, rle = item["box"], item["segmentation"]
            x1, y1, x2, y2 = box or (0.0, 0.0, 0.0, 0.0)
            mask = masks.decode(rle, size) if rle is not None else None
            return Instance(mask, (x1, y1, x2, y2) if box else None, float(item["score"]))

        phrases = tuple(
            Phrase(item["text"], (item["span"][0], item["span"][1]), tuple(instance(one) for one in item["instances"]))
            for item in data["phrases"]
        )
        return Answer(
            text=data["text"],
            phrases=phrases,
            image=image,
            notes=tuple(data["notes"]),
            truncated=bool(data["truncated"]),
            score_kind=data["score_kind"],
            prompt=data["prompt"],
        )
    except KeyError as error:
        raise ValueError(
            f"the json has no {error}; give what `Answer.to_json` or `mglmm ask --out x.json` wrote"
        ) from None


def to_coco(answer: Answer, *, file_name: str, image_id: int) -> dict[str, Any]:
    """COCO instances json; `annotations` alone is a COCO results list.

    Every distinct phrase is a category. Extra keys that readers ignore: `caption`, `phrase`, `span`. A box without a
    mask has `segmentation: []`.
    """
    names = list(dict.fromkeys(phrase.text for phrase in answer.phrases))
    annotations = []
    for number, (_, phrase, instance, (x1, y1, x2, y2)) in enumerate(_instances(answer), 1):
        mask = instance.mask
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": names.index(phrase.text) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()) if mask is not None else (x2 - x1) * (y2 - y1),
                "segmentation": masks.encode(mask) if mask is not None else [],
                "iscrowd": 0,
                "score": float(instance.score),
                "caption": answer.text,
                "phrase": phrase.text,
                "span": [int(value) for value in phrase.span],
            }
        )
    height, width = answer.size
    image = {"id": image_id, "file_name": file_name, "height": height, "width": width, "caption": answer.text}
    return {
        "info": {"description": "written by mglmm", "score_kind": answer.score_kind},
        "licenses": [],
        "images": [image],
        "categories": [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def to_labelme(
    answer: Answer, *, image_path: str, shapes: Literal["polygon", "mask"] = "polygon", embed: bool = False
) -> dict[str, Any]:
    """labelme 5 json: phrase -> `label`, number of the object -> `group_id`, answer -> `description`.

    Pieces of one mask share a `group_id`, two objects of a phrase do not: labelme reads a group as one object.

    Args:
        answer: what to write.
        image_path: relative to the json.
        shapes: "polygon" gives outer contours, one shape a piece: holes are lost; "mask" gives labelme's own bitmaps,
            which lose nothing.
        embed: put the image, as PNG, into `imageData`.

    Raises:
        ValueError: `shapes` is something else.
    """
    if shapes not in ("polygon", "mask"):
        raise ValueError(f"shapes is {shapes!r}; labelme masks are written as 'polygon' or 'mask'")
    out = []

    def add(number: int, phrase: Phrase, kind: str, points: list[list[float]], bitmap: str | None = None) -> None:
        shape = {"label": phrase.text, "points": points, "group_id": number, "description": answer.text}
        out.append({**shape, "shape_type": kind, "flags": {}, "mask": bitmap})

    for number, (_, phrase, instance, (x1, y1, x2, y2)) in enumerate(_instances(answer), 1):
        mask = instance.mask
        if mask is None:
            add(number, phrase, "rectangle", [[x1, y1], [x2, y2]])
            continue
        tight = masks.box_of(mask)
        if tight is None:
            continue
        if shapes == "polygon":
            for points in _contours(mask):
                add(number, phrase, "polygon", points)
        else:
            left, top, right, bottom = (int(value) for value in tight)
            bitmap = _png(Image.fromarray(mask[top:bottom, left:right]))
            add(number, phrase, "mask", [[left, top], [right - 1, bottom - 1]], bitmap)
    height, width = answer.size
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": out,
        "imagePath": image_path,
        "imageData": _png(Image.fromarray(answer.image)) if embed else None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _contours(mask: np.ndarray) -> list[list[list[float]]]:
    """Outer contours of bool[H, W] through the centres of its edge pixels, as labelme fills them; at least 3 points."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = [line.reshape(-1, 2).astype(float).tolist() for line in lines]
    return [points + points[:1] * max(0, 3 - len(points)) for points in contours]


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def to_label_studio(answer: Answer, *, image_url: str, model_version: str) -> dict[str, Any]:
    """A Label Studio task with one prediction; `label_studio_config` is the labelling config that goes with it."""
    height, width = answer.size
    result = []
    for number, (index, phrase, instance, (x1, y1, x2, y2)) in enumerate(_instances(answer), 1):
        kind = "rectanglelabels" if instance.mask is None else "brushlabels"
        if instance.mask is None:
            across, down = 100 / width, 100 / height
            value: dict[str, Any] = {"x": x1 * across, "y": y1 * down, "rotation": 0}
            value |= {"width": (x2 - x1) * across, "height": (y2 - y1) * down}
        else:
            value = {"format": "rle", "rle": encode_brush(instance.mask)}
        result.append(
            {
                "id": f"mglmm{number:04d}",
                "type": kind,
                "from_name": "box" if instance.mask is None else "brush",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": float(instance.score),
                "value": {**value, kind: [phrase.text]},
                "meta": {"text": [f"phrase {index + 1}, characters {phrase.span[0]}:{phrase.span[1]}"]},
            }
        )
    scores = [item["score"] for item in result]
    mean = float(np.mean(scores)) if scores else 0.0
    return {
        "data": {"image": image_url, "prompt": answer.prompt, "caption": answer.text},
        "predictions": [{"model_version": model_version, "score": mean, "result": result}],
    }


def label_studio_config(answers: list[Answer]) -> str:
    """The labelling config (XML) that knows every phrase of `answers`."""
    from xml.sax.saxutils import quoteattr

    names = dict.fromkeys(phrase.text for answer in answers for phrase in answer.phrases)
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    return (
        '<View><Text name="caption" value="$caption"/><Image name="image" value="$image"/>'
        f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels>'
        f'<RectangleLabels name="box" toName="image">{labels}</RectangleLabels></View>'
    )


_BRUSH_SIZES = (3, 4, 8, 16)
"""Bits that a run's length may take in Label Studio's RLE; the header names them."""


def encode_brush(mask: np.ndarray) -> list[int]:
    """bool[H, W] to Label Studio's brush RLE: bytes of a bit stream over the mask as RGBA bytes, row by row.

    Stream: number of RGBA bytes (32 bits), word size - 1 (5), four length sizes - 1 (4 each); then runs of equal bytes:
    1, index of the length size (2), length - 1, value (8). The test compares with bytes that Label Studio exported.
    """
    flat = np.asarray(mask, bool).reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * 4
    bits = [f"{flat.size * 4:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _BRUSH_SIZES)]
    for length, on in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        while length > 0:
            run = min(length, 1 << _BRUSH_SIZES[-1])
            which = next(index for index, size in enumerate(_BRUSH_SIZES) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{_BRUSH_SIZES[which]}b}{255 if on else 0:08b}")
            length -= run
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def to_supervision(answer: Answer) -> supervision.Detections:
    """`supervision.Detections`: a row an instance, `data["phrase"]`, `class_id` the phrase's index.

    `mask` is None where no instance has one; beside others, an instance with a box only has an empty mask.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        import supervision
    except ImportError:
        raise ValueError("to_supervision needs the package supervision: pip install 'mglmm[demo]'") from None
    rows = list(_instances(answer))
    if not rows:
        return supervision.Detections.empty()
    given = [instance.mask for _, _, instance, _ in rows]
    blank = np.zeros(answer.size, bool)
    any_mask = any(mask is not None for mask in given)
    return supervision.Detections(
        xyxy=np.array([box for *_, box in rows], np.float32),
        mask=np.stack([blank if mask is None else mask for mask in given]) if any_mask else None,
        confidence=np.array([instance.score for _, _, instance, _ in rows], np.float32),
        class_id=np.array([index for index, *_ in rows], int),
        data={"phrase": np.array([phrase.text for _, phrase, _, _ in rows])},
    )
