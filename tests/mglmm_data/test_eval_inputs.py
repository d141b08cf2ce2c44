"""Benchmarks as samples: regions where the text speaks of them, references with boxes, wrong lines named."""

import json

import numpy as np
import pytest
from PIL import Image

from mglmm_data.benchmarks import grounded_pieces, pointed, read_benchmark
from mglmm_data.reading import Problems
from mglmm_data.registry import make_source

HEIGHT, WIDTH = 20, 40


@pytest.fixture
def folder(tmp_path):
    for name in ("1.png", "000000000009.jpg", "v7w_1.jpg"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def source(name, path, root, **options):
    more = {key: options.pop(key) for key in ("on_error", "clip_boxes") if key in options}
    return make_source(
        {"type": "benchmark", "name": name, "path": path, "image_root": root, "options": options, **more}
    )


def spoken(sample):
    """What the question speaks of: words -> geometry."""
    turn = sample.conversations[0].turns[0]
    return {turn.text[m.start : m.end]: sample.regions[m.region] for m in turn.mentions}


def told(sample):
    turn = sample.conversations[0].turns[1]
    return {turn.text[p.start : p.end]: [sample.regions[i].box for i in p.regions] for p in turn.phrases}


def test_pope(folder, shared):
    path = lines(
        folder / "pope.json",
        {"question_id": 1, "image": "COCO_val2014_000000000009.jpg", "text": "Is there a dog?", "label": "no"},
    )
    sample = source("pope", path, folder).sample(0)
    assert [turn.text for turn in sample.conversations[0].turns] == ["Is there a dog?", "No."]
    assert sample.meta["label"] == "no" and sample.meta["mirror"] == "off"
    real = shared("data", "vlm_bench", "pope", "coco_pope_random.json")
    assert len(list(read_benchmark("pope", real, Problems()))) == 3000
    roots = [shared("data", "coco_mini", name) for name in ("train2017", "val2017", "val2017_unlabelled")]
    photos = source("pope", real, roots, on_error="count")
    assert len(photos) == 18  # six questions on each of three photographs
    assert {photos.sample(i).meta["label"] for i in range(6)} == {"yes", "no"}


def test_ferret_bench_as_it_is(shared):
    """Every box of the real files becomes a region, behind the words it belongs to; a box may end at 1.002."""
    root = shared("data", "vlm_bench", "ferret_bench")
    asked = list(read_benchmark("ferret_bench", root / "ground_conv", Problems()))
    raw = [json.loads(line)["text"] for line in (root / "ground_conv" / "answer.jsonl").open()]
    assert [len(item.regions) for item in asked] == [text.count("[") for text in raw]
    assert asked[0].answer[0] == ["The man", [0]] and asked[0].answer[2] == ["a skateboard", [1]]
    refer = list(read_benchmark("ferret_bench", root / "refer_caption", Problems()))
    assert all(sum(not isinstance(piece, str) for piece in item.question) in (1, 2) for item in refer)
    assert sum(len(item.regions) for item in refer) == 41
    photos = source("ferret_bench", root / "ground_conv", shared("data", "coco_mini", "val2017_unlabelled"),
                    on_error="count")  # fmt: skip
    sample = photos.sample(0)
    assert len(photos) == 1 and sample.meta["file"].endswith("000000241668.jpg") and sample.meta["context"]
    height, width = sample.size
    for boxes in told(sample).values():
        assert all(box and box[2] <= width and box[3] <= height for box in boxes)


@pytest.mark.parametrize(
    ("text", "phrases", "clean"),
    [
        ("The two men [0, 0, .5, 1] [0.5, 0, 1, 1] play.", [["The two men", [0, 1]]], "The two men play."),
        ("A boy, with red hair [0.1, 0.1, 0.2, 0.2].", [["hair", [0]]], "A boy, with red hair."),
        ("The man riding a horse is wearing boots [0.1, 0.1, 0.2, 0.2]", [["boots", [0]]], None),
        ("and the other girl [0.1, 0.1, 0.2, 0.2] stands", [["the other girl", [0]]], None),
        ("Nothing is marked [sic].", [], "Nothing is marked [sic]."),
    ],
)
def test_phrases_before_boxes(text, phrases, clean):
    pieces, _ = grounded_pieces(text.replace("[0, 0, .5, 1]", "[0, 0, 0.5, 1]"))
    assert [piece for piece in pieces if not isinstance(piece, str)] == phrases
    if clean:
        assert "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces) == clean
    with pytest.raises(ValueError, match="stands behind no word"):
        grounded_pieces("[0.1, 0.1, 0.2, 0.2] is a dog")


def test_llava_bench(folder, shared):
    root = shared("data", "vlm_bench", "llava_bench_coco")
    answers = str(root / "qa90_gpt4_answer.jsonl")
    asked = list(read_benchmark("llava_bench", root / "qa90_questions.jsonl", Problems(), answers=answers))
    assert len(asked) == 90 and asked[0].answer[0].startswith("The colors of the two suitcases")
    both = list(read_benchmark("llava_bench", root / "coco2014_val_gpt4_qa_30x3.jsonl", Problems()))
    assert len({item.id for item in both}) == 90 and {item.kind for item in both} == {"conv", "detail", "complex"}
    with pytest.raises(ValueError, match=r"line 1: question 0 has no answer; give the option answers"):
        list(read_benchmark("llava_bench", root / "qa90_questions.jsonl", Problems()))


@pytest.mark.parametrize("shape", ["point", "box", "free"])
def test_lvis_referring(folder, shape):
    mask = np.zeros((WIDTH, HEIGHT), int)
    mask[30:35, 2:6] = 1
    record = {
        "id": 5, "image_path": "coco/val2017/1.png", "width": WIDTH, "height": HEIGHT, "sample_point": [32, 4],
        "bbox": [30, 2, 5, 4], "bbox_norm": [0.75, 0.1, 0.875, 0.3], "free_shape_bbox_raw": [30, 2, 35, 6],
        "free_shape_segment_mask": mask.tolist(), "name": "mug", "neg_class": "bowl", "synonyms": ["cup"],
    }  # fmt: skip
    both = source("lvis_referring", lines(folder / "l.jsonl", record, record | {"id": 6}), folder, shape=shape)
    texts = [both.sample(i).conversations[0].turns[0].text for i in (0, 1)]
    assert texts[0].endswith("a mug or a bowl?") and texts[1].endswith("a bowl or a mug?")
    (region,) = spoken(both.sample(0)).values()
    if shape == "point":
        assert region.point == (32, 4)
    else:  # the file's mask is [W, H]; read as [H, W] it would lie somewhere else
        assert region.bounds == (30, 2, 35, 6)
    wrong = record | {
        "free_shape_segment_mask": mask.T.tolist(),
        "bbox_norm": [0.75, 0.1, 1.2, 0.3],
        "sample_point": [1],
    }
    with pytest.raises(
        ValueError, match=r"expected \(40, 20\) \(width, h|leaves the image by 0.200|expected 2 numbers"
    ):
        source("lvis_referring", lines(folder / "l.jsonl", wrong), folder, shape=shape)


def test_pointqa(folder, shared):
    data = {"1": [{"question": "What color is this dog?", "answer": "white", "point": {"x": 7, "y": 9}, "id": 1}]}
    (folder / "1.png").rename(folder / "1.jpg")
    (folder / "p.json").write_text(json.dumps(data))
    sample = source("pointqa", folder / "p.json", folder).sample(0)
    assert spoken(sample)["this dog"].point == (7, 9) and sample.meta["answer"] == "white"
    data["1"][0]["point"]["x"] = 400
    (folder / "p.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"p.json: question 1-0: point \(400.0, 9.0\) is outside the image of 40x20"):
        source("pointqa", folder / "p.json", folder).sample(0)
    asked = list(
        read_benchmark("pointqa", shared("data", "vlm_bench", "pointingqa", "spatial_dataset.json"), Problems())
    )
    assert len(asked) == 190 and all(item.kind == "point" for item in asked)
    record = {"file_path": "VG_100K/1.jpg", "obj_question": "How many dogs?", "answer": 2, "point": [7, 9],
              "bbox": [1, 2, 30, 18]}  # fmt: skip
    path = lines(folder / "twice.jsonl", record)
    boxed = source("pointqa_lines", path, folder, field="obj_question", shape="box").sample(0)
    assert boxed.conversations[0].turns[0].text == "How many dogs? Look at this region."
    assert spoken(boxed)["this region"].box == (1, 2, 30, 18) and boxed.conversations[0].turns[1].text == "2"
    assert pointed("How many dogs?", 0) == ["How many dogs?"]


def test_visual7w(folder):
    boxes = [{"box_id": i, "name": "dog", "x": i, "y": 1, "width": 5, "height": 6} for i in range(4)]
    pair = {"qa_id": 77, "type": "which", "question": "Which dog sleeps?", "answer": 2, "multiple_choices": [0, 1, 3]}
    image = {"image_id": 1, "filename": "v7w_1.jpg", "split": "test", "qa_pairs": [pair]}
    data = {"images": [image, image | {"split": "train"}], "boxes": boxes}
    (folder / "v.json").write_text(json.dumps(data))
    pointing = source("visual7w", folder / "v.json", folder)
    sample = pointing.sample(0)
    assert len(pointing) == 1 and len(spoken(sample)) == 4
    assert list(told(sample).values()) == [[(2, 1, 7, 7)]]
    assert sample.meta["choices"][sample.meta["answer_index"]] == 2
    pair["answer"] = 9
    (folder / "v.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"v.json: question 77: speaks of box 9, which is not among the boxes"):
        source("visual7w", folder / "v.json", folder)
    pair.update(answer="a cat", multiple_choices=["a dog", "a bird", "a cow"], type="what")
    (folder / "v.json").write_text(json.dumps(data))
    telling = source("visual7w", folder / "v.json", folder).sample(0)
    assert telling.conversations[0].turns[1].text == "a cat" and len(telling.meta["choices"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, r"pope.json: line 1: its 'label' is 'maybe'; expected yes or no"),
        ({"text": ""}, r"pope.json: line 1: its 'text' is empty"),
        ({"question_id": 1.5}, r"pope.json: line 1: its 'question_id' is 1.5 \(float\)"),
        ({"image": "../1.png"}, r"pope.json: question 1: its image '../1.png' leaves the folder"),
        ({"image": "2.png"}, r"pope.json: question 1: its image '2.png' is missing"),
    ],
)
def test_a_wrong_line_is_named_or_counted(folder, change, message):
    good = {"question_id": 1, "image": "1.png", "text": "Is there a dog?", "label": "no"}
    path = lines(folder / "pope.json", good | change, good)
    with pytest.raises(ValueError, match=message):
        source("pope", path, folder)
    assert len(source("pope", path, folder, on_error="count")) == 1


def test_unknown_benchmarks_and_options(folder):
    path = lines(folder / "pope.json", {})
    with pytest.raises(ValueError, match=r"no benchmark 'poep', did you mean 'pope'"):
        source("poep", path, folder)
    with pytest.raises(ValueError, match=r"benchmark 'lvis_referring' has no option 'shap', did you mean 'shape'"):
        source("lvis_referring", path, folder, shap="box")
    with pytest.raises(ValueError, match=r"shape is 'bxo', did you mean 'box'"):
        source("lvis_referring", path, folder, shape="bxo")
    path.write_text("no json\n")
    with pytest.raises(ValueError, match=r"pope.json: line 1: is no json"):
        source("pope", path, folder)
