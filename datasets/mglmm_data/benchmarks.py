"""The files of benchmarks, each read into `Asked`.

Sources of the formats: AoiDragon/POPE; apple/ml-ferret (`ferret/eval`: Ferret-Bench, LVIS referring);
haotian-liu/LLaVA (LLaVA-Bench); princetonvisualai/pointingqa, and its lines as Shikra uses them;
yukezhu/visual7w-toolkit.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks
from mglmm_data.eval_inputs import Asked
from mglmm_data.reading import (
    Problems,
    name_in,
    read_json,
    read_jsonl,
    shown,
    take,
    take_id,
    take_line,
    take_list,
    take_size,
)
from mglmm_data.telling import near
from mglmm_data.wording import DETERMINERS, NUMBERS

BOXES = re.compile(r"(?:\s*\[\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*\])+")
BOX = re.compile(r"\[([^\]]+)\]")
THIS = re.compile(r"\b(?:this|that|these|those)(?: [\w'-]+)?", re.IGNORECASE)
OPENERS = DETERMINERS | frozenset(NUMBERS) | {"another", "each", "some", "several", "many", "other"}
BARRIERS = frozenset(("is", "are", "was", "were", "has", "have", "with", "wearing", "holding", "by", "in", "on", "at"))
"""Words that no phrase goes back over."""
ORDINALS = ("first", "second", "third", "fourth", "fifth")
REACH = 6
"""Words before a box among which the beginning of its phrase is looked for."""


def grounded_pieces(text: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Text with `[x1, y1, x2, y2]` behind its nouns (shares of the image) to pieces `[words, [regions]]`, and regions.

    The phrase of a box goes back to the nearest article, number or possessive of its clause, else it is the last word.

    Raises:
        ValueError: a box stands behind no word.
    """
    pieces: list[Any] = []
    regions: list[dict[str, Any]] = []
    at = 0
    for run in BOXES.finditer(text):
        before = text[at : run.start()]
        if (start := phrase_start(before)) is None:
            raise ValueError(f"its box {run.group().strip()} stands behind no word in {text!r}")
        boxes = [[float(value) for value in box.split(",")] for box in BOX.findall(run.group())]
        if start:
            pieces.append(before[:start])
        pieces.append([before[start:], list(range(len(regions), len(regions) + len(boxes)))])
        regions += [{"share": box} for box in boxes]
        at = run.end()
    return [*pieces, text[at:]] if text[at:] else pieces, regions


def phrase_start(before: str) -> int | None:
    """Where the noun phrase at the end of a text begins: at an article, number or possessive of its clause, else at the
    last word; None where no word stands there."""
    clause = re.split(r"[.,;:?!()]", before)[-1]
    words = list(re.finditer(r"\S+", clause))[-REACH:]
    if not words:
        return None
    stop = max((i + 1 for i, word in enumerate(words[:-1]) if word.group().lower() in BARRIERS), default=0)
    words = words[stop:]
    first = max((i for i, word in enumerate(words[:-1]) if word.group().lower() in OPENERS), default=len(words) - 1)
    while first and words[first - 1].group().lower() in OPENERS:
        first -= 1
    return len(before) - len(clause) + words[first].start()


def _spoken(pieces: list[Any]) -> list[Any]:
    """Pieces of a question: each mention is of one region, further boxes of the same words get words of their own."""
    out: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str):
            out.append(piece)
        else:
            out.append([piece[0], piece[1][0]])
            for region in piece[1][1:]:
                out += [" and ", ["this region", region]]
    return out


def ferret_bench(path: Path, problems: Problems) -> Iterator[Asked]:
    """A folder with `question.jsonl`, `answer.jsonl`, and `context.jsonl` if it is there; boxes are shares."""
    answers = _by_question(path / "answer.jsonl", problems)
    context = _by_question(path / "context.jsonl", problems) if (path / "context.jsonl").exists() else {}
    for number, record in read_jsonl(path / "question.jsonl", problems):
        with problems.at(f"{path / 'question.jsonl'}: line {number}"):
            identity, category = take_id(record, "question_id"), take(record, "category", str)
            if identity not in answers:
                raise ValueError(f"question {identity} has no answer in answer.jsonl")
            pieces, regions = grounded_pieces(take_line(record, "text"))
            told, boxes = grounded_pieces(answers[identity])
            told = [p if isinstance(p, str) else [p[0], [len(regions) + index for index in p[1]]] for p in told]
            yield Asked(
                identity, take(record, "image", str), _spoken(pieces), told, regions + boxes, task=category, kind="box",
                more={"reference": answers[identity], "context": context.get(identity, "")},
            )  # fmt: skip


def llava_bench(path: Path, problems: Problems, answers: str | None = None) -> Iterator[Asked]:
    """`qa90_questions.jsonl` with its `answers` file, or the form that has both (`instruction`, `output`, `type`)."""
    told = _by_question(Path(answers), problems) if answers is not None else {}
    for number, record in read_jsonl(path, problems):
        with problems.at(f"{path}: line {number}"):
            image = take(record, "image", str)
            if "instruction" in record:
                kind, text = take(record, "type", str), take_line(record, "instruction")
                identity: int | str = f"{take_id(record, 'id')}-{kind}"
                reference = take(record, "output", str).strip()
            else:
                identity, kind, text = (
                    take_id(record, "question_id"),
                    record.get("category", ""),
                    take_line(record, "text"),
                )
                if identity not in told:
                    raise ValueError(f"question {identity} has no answer; give the option answers, a file of them")
                reference = told[identity]
            yield Asked(identity, image, [text], [reference], task="chat", kind=kind, more={"reference": reference})


def pope(path: Path, problems: Problems) -> Iterator[Asked]:
    """Lines `{question_id, image, text, label: yes | no}`, whatever the file is called."""
    for number, record in read_jsonl(path, problems):
        with problems.at(f"{path}: line {number}"):
            label = take(record, "label", str)
            if label not in ("yes", "no"):
                raise ValueError(f"its 'label' is {label!r}; expected yes or no")
            identity, text = take_id(record, "question_id"), take_line(record, "text")
            image = take(record, "image", str)
            yield Asked(
                identity, image, [text], [f"{label.capitalize()}."], task="exists", kind=label, more={"label": label}
            )


def lvis_referring(path: Path, problems: Problems, shape: str = "box") -> Iterator[Asked]:
    """Ferret's choice between an object's name and another, of a point, box or free shape (`shape`) of LVIS.

    The name stands first on even lines, second on odd ones. `bbox_norm` is x1, y1, x2, y2 as shares, `sample_point` is
    px, and `free_shape_segment_mask` is transposed, `[W, H]`.
    """
    if shape not in ("point", "box", "free"):
        raise ValueError(f"shape is {shape!r}{near(shape, ('point', 'box', 'free'))}")
    for number, record in read_jsonl(path, problems):
        with problems.at(f"{path}: line {number}"):
            size, name, other = take_size(record), take_line(record, "name"), take_line(record, "neg_class")
            region: dict[str, Any]
            if shape == "point":
                region = {"point": _numbers(record, "sample_point", 2)}
            elif shape == "box":
                region = {"share": _numbers(record, "bbox_norm", 4)}
            else:
                mask = np.asarray(take(record, "free_shape_segment_mask", list), dtype=object)
                if mask.shape != size[::-1]:
                    raise ValueError(f"its mask is {mask.shape}; expected {size[::-1]} (width, height)")
                if not mask.any():
                    raise ValueError("its mask is empty")
                region = {"mask": masks.encode(mask.astype(bool).T)}
            pair = (name, other) if (number - 1) % 2 == 0 else (other, name)
            more = {"name": name, "neg_class": other, "synonyms": record.get("synonyms", [])}
            yield Asked(
                take_id(record, "id"), Path(take(record, "image_path", str)).name,
                ["Is ", ["the object", 0], f" of the image a {pair[0]} or a {pair[1]}?"], [f"It is a {name}."],
                [region], size, "choice", shape, more,
            )  # fmt: skip


def pointqa(path: Path, problems: Problems) -> Iterator[Asked]:
    """PointingQA's json: image id of Visual Genome -> questions `{question, answer, point: {x, y}?}`; points are px."""
    for image, items in read_json(path, dict).items():
        for number, record in enumerate(items if isinstance(items, list) else [items]):
            with problems.at(f"{path}: image {image}: question {number}"):
                text, answer = take_line(record, "question"), str(take_id(record, "answer")).strip()
                if not answer:
                    raise ValueError("its 'answer' is empty")
                regions = []
                if "point" in record:
                    point = take(record, "point", dict)
                    regions = [{"point": [take(point, "x", float), take(point, "y", float)]}]
                yield Asked(
                    f"{image}-{number}", f"{image}.jpg", pointed(text, len(regions)), [answer], regions,
                    task="pointqa", kind="point" if regions else "text", more={"answer": answer},
                )  # fmt: skip


def pointqa_lines(path: Path, problems: Problems, field: str = "question", shape: str = "point") -> Iterator[Asked]:
    """Shikra's lines `{file_path, FIELD, answer, point, bbox}`; FIELD is question, obj_question, super_question ..."""
    if shape not in ("point", "box"):
        raise ValueError(f"shape is {shape!r}{near(shape, ('point', 'box'))}")
    for number, record in read_jsonl(path, problems):
        with problems.at(f"{path}: line {number}"):
            values = _numbers(record, "point", 2) if shape == "point" else _numbers(record, "bbox", 4)
            answer = str(take_id(record, "answer")).strip()
            if not answer:
                raise ValueError("its 'answer' is empty")
            more = {"answer": answer, "choices": record.get("candidates", [])}
            yield Asked(
                number, Path(take(record, "file_path", str)).name, pointed(take_line(record, field), 1), [answer],
                [{shape: values}], task="pointqa", kind=field, more=more,
            )  # fmt: skip


def visual7w(path: Path, problems: Problems, split: str = "test") -> Iterator[Asked]:
    """`dataset_v7w_pointing.json` (four boxes to choose from) or `dataset_v7w_telling.json` (four texts)."""
    data = read_json(path, dict)
    boxes: dict[int, list[float]] = {}
    for number, box in enumerate(take_list(data, "boxes", path) if "boxes" in data else ()):
        with problems.at(f"{path}: box {name_in(box, number, 'box_id')}"):
            x, y, width, height = (float(take(box, key, float)) for key in ("x", "y", "width", "height"))
            boxes[take(box, "box_id", int)] = [x, y, x + width, y + height]
    for place, image in enumerate(take_list(data, "images", path)):
        name, pairs = "", []
        with problems.at(f"{path}: image {name_in(image, place, 'image_id')}"):
            if take(image, "split", str) == split:
                pairs, name = take(image, "qa_pairs", list), take(image, "filename", str)
        for number, record in enumerate(pairs):
            with problems.at(f"{path}: question {name_in(record, number, 'qa_id')}"):
                yield _seven(record, name, boxes)


def _seven(record: Any, image: str, boxes: dict[int, list[float]]) -> Asked:
    """A question of Visual7W; its choices are texts or ids of boxes."""
    identity, text, wrong = (
        take(record, "qa_id", int),
        take_line(record, "question"),
        take(record, "multiple_choices", list),
    )
    kind = str if isinstance(record.get("answer"), str) else int
    right = take(record, "answer", kind)
    if identity < 0 or not 1 <= len(wrong) < len(ORDINALS) or not all(type(choice) is kind for choice in wrong):
        raise ValueError(f"its choices are {shown(wrong)} beside {right!r}; expected 1 to 4 others of its kind")
    choices, place = _shuffled(wrong, right, identity)
    question: list[Any] = [text]
    answer: list[Any] = [right]
    regions = []
    if kind is int:
        if missing := [choice for choice in choices if choice not in boxes]:
            raise ValueError(f"speaks of box {missing[0]}, which is not among the boxes")
        names = [f"the {word} region" for word in ORDINALS[: len(choices)]]
        joined = [item for i, name in enumerate(names) for item in (", " if i else "", [name, i])][1:]
        question, answer = [f"{text} Choose one of ", *joined, "."], [[names[place].capitalize(), [place]], "."]
        regions = [{"box": boxes[choice]} for choice in choices]
    more = {"choices": choices, "answer_index": place}
    return Asked(
        identity, image, question, answer, regions, task="visual7w", kind=str(record.get("type", "")), more=more
    )


BENCHMARKS: dict[str, Callable[..., Iterator[Asked]]] = {
    "pope": pope,
    "ferret_bench": ferret_bench,
    "llava_bench": llava_bench,
    "lvis_referring": lvis_referring,
    "pointqa": pointqa,
    "pointqa_lines": pointqa_lines,
    "visual7w": visual7w,
}


def read_benchmark(name: str, path: str | Path, problems: Problems, **options: Any) -> Iterator[Asked]:
    """Every question of a benchmark, in its order; no image is looked for.

    Raises:
        ValueError: the name or an option is unknown; and what its reader raises.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}{near(name, BENCHMARKS)}")
    known = list(inspect.signature(BENCHMARKS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise ValueError(f"benchmark {name!r} has no option {option!r}{near(option, known)}")
    return BENCHMARKS[name](Path(path), problems, **options)


def pointed(question: str, num_regions: int) -> list[Any]:
    """A question about one region: `this dog` speaks of it, or words at its end do."""
    if not num_regions:
        return [question]
    if found := THIS.search(question):
        return [question[: found.start()], [found.group(), 0], question[found.end() :]]
    return [f"{question} Look at ", ["this region", 0], "."]


def _by_question(path: Path, problems: Problems) -> dict[int | str, str]:
    told: dict[int | str, str] = {}
    for number, record in read_jsonl(path, problems):
        with problems.at(f"{path}: line {number}"):
            told[take_id(record, "question_id")] = take(record, "text", str).strip()
    return told


def _numbers(record: Any, key: str, count: int) -> list[float]:
    values = take(record, key, list)
    if len(values) != count:
        raise ValueError(f"its {key!r} is {shown(values)}; expected {count} numbers")
    return [float(take({key: value}, key, float)) for value in values]


def _shuffled(wrong: list[Any], right: Any, identity: int) -> tuple[list[Any], int]:
    """The choices in an order that the question's id decides, and the place of the right one."""
    order = np.random.default_rng(identity).permutation(len(wrong) + 1)
    every = [right, *wrong]
    return [every[i] for i in order], int(np.flatnonzero(order == 0)[0])
