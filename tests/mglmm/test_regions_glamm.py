# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""GLaMM's region encoder against what upstream recorded (`shared/golden/glamm`), and against plain loops."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint
from mglmm.encode import visible
from mglmm.grounder import Grounder
from mglmm.inputs import IGNORE, PADDING, PREFIX, Batch
from mglmm.model_config import MglmmConfig
from mglmm.precision import bfloat16_arithmetic
from mglmm.regions_glamm import (
    NUM_LEVELS,
    GlammRegions,
    GlammSizes,
    boxes_of,
    from_upstream,
    roi_align,
)
from mglmm_data.sample import Region
from sam_bridge.canvas import Canvas

MARK = "model.region_encoder."
ULP = 2**-7  # of bfloat16, relative


@dataclass
class Golden:
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    encoder: GlammRegions


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared("golden", "glamm")
    state = torch.load(folder / "checkpoint" / "pytorch_model.bin", weights_only=True)
    encoder = GlammRegions(64, 64, 336, GlammSizes.published(inner=16))
    encoder.load_state_dict(
        {from_upstream(k.removeprefix(MARK)): v.float() for k, v in state.items() if k.startswith(MARK)}
    )
    facts = json.loads((folder / "golden.json").read_text())
    return Golden(facts, load_file(folder / "golden.safetensors"), encoder.eval())


@pytest.fixture(scope="module")
def maps(golden):
    generator = torch.Generator().manual_seed(3)  # as golden.json says
    levels = [torch.randn(1, 576, 64, generator=generator).bfloat16().float() for _ in range(NUM_LEVELS)]
    for number, level in enumerate(levels):
        assert torch.equal(level[:, ::24, ::4], golden.tensors[f"region.feats_in_slice.{number}"].float())
    return [level.transpose(1, 2).reshape(1, 64, 24, 24) for level in levels]


@torch.no_grad()
def test_every_step_is_upstreams(golden, maps, rounding):
    encoder, boxes = golden.encoder, torch.tensor(golden.facts["region"]["boxes"][0])
    image = torch.zeros(len(boxes), dtype=torch.long)
    with bfloat16_arithmetic(cuda=False):
        levels = copy_in(encoder, torch.bfloat16).body.fused(maps, torch.bfloat16)
    for number, level in enumerate(levels):
        step = max(1, level.shape[-1] // 12)
        wanted = golden.tensors[f"region.fused_slice.{number}"]
        near = max(ULP, rounding.sampled)
        torch.testing.assert_close(level[:, ::8, ::step, ::step], wanted, rtol=near, atol=near)
        corners = (boxes.bfloat16() * 224).float() * 2 ** (3 - number) / 14
        found = roi_align(level, corners, image)[:, ::8, ::2, ::2]
        torch.testing.assert_close(
            found, golden.tensors[f"region.roi_slice.{number}"], rtol=rounding.sampled, atol=rounding.sampled
        )
    out = encoder(maps, torch.zeros(3, 1, 1), image, boxes)
    torch.testing.assert_close(out, golden.tensors["region.out.0"], rtol=2 * ULP, atol=2 * ULP)
    assert out.dtype == torch.bfloat16


def copy_in(encoder, dtype):
    """A copy with its parameters in another dtype."""
    out = GlammRegions(64, 64, 336, encoder.sizes)
    out.load_state_dict(encoder.state_dict())
    return out.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize(("case", "names"), [("train_region", "ac"), ("train_region_b", "de")])
def test_features_of_pictures(golden, shared, rounding, case, names):
    folder = shared("golden", "glamm")
    where = folder / "clip-tiny-336"
    tower = CLIPVisionModel.from_pretrained(where, dtype=torch.float32, attn_implementation="eager").eval()
    images = [Image.open(folder / f"img_{name}.png").convert("RGB") for name in names]
    pixels = CLIPImageProcessorPil.from_pretrained(where)(images=images, return_tensors="pt")["pixel_values"]
    states = tower(pixels, output_hidden_states=True).hidden_states
    levels = [states[layer][:, 1:].transpose(1, 2).reshape(2, 64, 24, 24) for layer in (-11, -8, -5, -2)]
    boxes = [torch.tensor(each) for each in golden.facts[case]["bboxes"]]
    image = torch.tensor([index for index, each in enumerate(boxes) for _ in each])
    found = golden.encoder(levels, torch.zeros(len(image), 1, 1), image, torch.cat(boxes))
    wanted = torch.cat([golden.tensors[f"{case}.region_features.{index}"] for index in range(2)])
    near = max(2 * ULP, rounding.sampled)
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)


@pytest.mark.parametrize("aligned_with", [(0.0, 0.0, 6.0, 5.0), (1.3, 0.4, 3.9, 4.75), (-3.0, 2.0, 12.0, 9.0)])
def test_roi_align_is_what_the_loops_say(aligned_with):
    torch.manual_seed(0)
    level, boxes = torch.randn(2, 3, 5, 7), torch.tensor([aligned_with, (2.0, 2.0, 2.0, 2.0)])
    found = roi_align(level, boxes, torch.tensor([1, 0]), side=3, samples=2)
    for number, index in enumerate((1, 0)):
        wanted = by_loops(level[index].double().numpy(), boxes[number].tolist(), 3, 2)
        np.testing.assert_allclose(found[number], wanted, atol=2e-6)


def by_loops(level, box, side, samples):
    """RoIAlign as Mask R-CNN describes it, with the half pixel, point by point."""
    channels, height, width = level.shape
    x1, y1, x2, y2 = (value - 0.5 for value in box)
    out = np.zeros((channels, side, side))
    for row, column, i, j in np.ndindex(side, side, samples, samples):
        y = y1 + (y2 - y1) / side * (row + (i + 0.5) / samples)
        x = x1 + (x2 - x1) / side * (column + (j + 0.5) / samples)
        if not (-1 <= y <= height and -1 <= x <= width):
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = level[:, top, left] * (1 - x + left) + level[:, top, right] * (x - left)
        lower = level[:, bottom, left] * (1 - x + left) + level[:, bottom, right] * (x - left)
        out[:, row, column] += (upper * (1 - y + top) + lower * (y - top)) / samples**2
    return out


@pytest.fixture(scope="module")
def small():
    """Correct geometry, fresh weights, in float32, on a 4 x 4 grid."""
    torch.manual_seed(1)
    encoder = GlammRegions(64, 8, 56, GlammSizes(inner=4))
    return encoder, [torch.randn(3, 64, 4, 4) for _ in range(NUM_LEVELS)]


def test_regions_of_several_images_do_not_touch(small):
    encoder, maps = small
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0, 0, 0.5, 0.5]])
    image = torch.tensor([2, 0, 0])
    together = encoder(maps, None, image, boxes)
    for number, index in enumerate(image):
        alone = encoder([level[index][None] for level in maps], None, torch.tensor([0]), boxes[number][None])
        torch.testing.assert_close(together[number], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)  # the same box of another image


def test_every_layer_learns_and_no_region_is_no_break(small):
    encoder, maps = small
    encoder.zero_grad()
    boxes = torch.tensor([[0.1, 0.1, 0.8, 0.9]])
    encoder(maps, None, torch.tensor([1]), boxes).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    encoder.zero_grad()
    none = encoder(maps, torch.zeros(0, 4, 4), torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 8)
    none.sum().backward()  # every parameter takes part, as distributed training needs it
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_mask_gives_its_box_and_a_pixel_is_enough(small):
    encoder, maps = small
    coverage = torch.zeros(2, 8, 8)
    coverage[0, 2:4, 1:8] = 1
    coverage[1, 5, 3] = 0.2
    boxes = boxes_of(coverage)
    assert boxes.tolist() == [[0.125, 0.25, 1, 0.5], [0.375, 0.625, 0.5, 0.75]]
    image = torch.zeros(2, dtype=torch.long)
    from_masks = encoder(maps, coverage, image)
    assert torch.equal(from_masks, encoder(maps, coverage, image, boxes))
    assert from_masks.isfinite().all()


@torch.no_grad()
def test_published_boxes_cover_two_thirds_of_the_map(golden, maps):
    published = copy_in(golden.encoder, torch.float32)
    published.body.place[5].weight.zero_()  # a box's own place must not tell
    correct = GlammRegions(64, 64, 336, GlammSizes(inner=16, compute="bfloat16"))
    correct.load_state_dict(published.state_dict())
    boxes, image = torch.tensor([[0.0, 0.1875, 0.75, 0.375]]), torch.tensor([0])
    assert torch.equal(published(maps, None, image, boxes), correct(maps, None, image, boxes * 224 / 336))
    assert not torch.equal(published(maps, None, image, boxes), correct(maps, None, image, boxes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e, maps: e(maps, torch.zeros(1, 4, 4), torch.tensor([0])),
            "region 0 is empty: the model sees no",
        ),
        (
            lambda e, maps: e(maps[:1], torch.ones(1, 4, 4), torch.tensor([0])),
            "reads 4 levels of the CLIP tower; got",
        ),
        (lambda e, maps: GlammRegions(48, 8, 56), "multiple of 64, this one has 48; set region_encoder: mask_mean"),
    ],
)
def test_mistakes_are_told(small, call, message):
    with pytest.raises(ValueError, match=message):
        call(*small)


@pytest.fixture(scope="module")
def imported(converted):
    """(model, processor) of the converted checkpoint."""
    return load_checkpoint(converted("glamm"))


@torch.no_grad()
@pytest.mark.parametrize(("case", "names"), [("train_region", "ac"), ("train_region_b", "de")])
def test_the_whole_model_reads_regions_as_upstream(golden, shared, imported, rounding, case, names):
    batch = region_batch(golden, shared, imported, case, names)
    model, facts = imported[0], golden.facts[case]
    out = model(batch)
    loss = torch.nn.functional.cross_entropy(out.token_logits, out.token_labels)
    assert float(loss) == pytest.approx(facts["losses"]["ce_loss"], rel=rounding.loss, abs=1e-7)  # a small loss
    assert batch.pixels is not None and batch.clip_pixels is not None
    image = model.encode_image(batch.pixels.floats(), batch.clip_pixels.floats())
    regions = model.region_encoder(image.maps, batch.region_masks, batch.region_image, batch.region_boxes)
    embeds = model.embed(batch.input_ids, image.tokens, regions)
    hidden = model.llava.model.language_model(
        inputs_embeds=embeds, attention_mask=visible(batch.segments), position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    logits, there = model.llava.lm_head(hidden)[:, 580::2, ::9], batch.segments[:, 580::2] != PADDING
    wanted = golden.tensors[f"{case}.logits_tail"]
    for row in range(2):
        torch.testing.assert_close(logits[row][there[row]], wanted[row][there[row]], rtol=0, atol=rounding.states)


def region_batch(golden, shared, imported, case, names):
    """The recorded batch, its one image place of each row made as long as the image."""
    model, processor = imported
    images = [np.asarray(Image.open(shared("golden", "glamm", f"img_{name}.png")).convert("RGB")) for name in names]
    pixels, clip, canvases = processor.pixels(images)
    ids, labels = golden.tensors[f"{case}.input_ids"], golden.tensors[f"{case}.labels"]
    at = int((ids[0] == -200).nonzero())
    assert (ids[:, at] == -200).all()
    count = model.num_image_tokens
    there = torch.where(ids == 0, PADDING, PREFIX)
    long = [
        torch.cat([each[:, :at], torch.full((2, count), fill), each[:, at + 1 :]], 1)
        for each, fill in ((ids, model.config.image_token_id), (labels, IGNORE), (there, PREFIX))
    ]
    used = (ids == model.config.region_token_id).sum(1).tolist()  # a surplus box is dropped
    return Batch(
        pixels=pixels,
        clip_pixels=clip,
        row_image=torch.arange(2),
        input_ids=long[0],
        labels=long[1],
        position_ids=torch.arange(long[0].shape[1]).expand_as(long[0]),
        segments=long[2],
        region_masks=torch.zeros(sum(used), 1, 1),
        region_image=torch.repeat_interleave(torch.arange(2), torch.tensor(used)),
        picked=torch.zeros(0, dtype=torch.long),
        mask_targets=torch.zeros(0, 0, 0),
        canvases=canvases,
        region_boxes=torch.cat(
            [torch.tensor(boxes[:n]) for boxes, n in zip(golden.facts[case]["bboxes"], used, strict=True)]
        ),
    )


@pytest.mark.parametrize("name", ["region", "region2", "region_other_box"])
def test_answers_about_boxes(golden, shared, imported, name):
    case = next(each for each in golden.facts["evaluate"] if each["name"] == name)
    image = np.asarray(Image.open(shared("golden", "glamm", f"{case['image']}.png")).convert("RGB"))
    regions = [Region(size=image.shape[:2], box=tuple(map(float, box))) for box in case["boxes_xyxy_px"]]
    question = case["question"]
    for number in range(len(regions)):
        question = question.replace("<bbox>", f"[region {number}]", 1)
    assert Grounder(*imported).ask(image, question, regions).text == case["cleaned"]


def test_boxes_of_the_imported_model(imported, monkeypatch):
    """Boxes are shares of the image's own sides, as the weights were trained; else of what CLIP sees."""
    model, processor = imported
    assert model.config.region_config == GlammSizes.published(inner=16).model_dump()
    region = Region(size=(96, 140), box=(10, 20, 60, 80))
    torch.testing.assert_close(processor.region_boxes([region]), torch.tensor([[10 / 140, 20 / 96, 60 / 140, 80 / 96]]))
    monkeypatch.setattr(processor.config, "region_config", {**model.config.region_config, "box_frame": "canvas"})
    crop = Canvas.crop_square((96, 140), 336)
    wanted = torch.from_numpy(crop.boxes(np.array([[10.0, 20, 60, 80]])) / 336).float()
    torch.testing.assert_close(processor.region_boxes([region]), wanted)


def test_box_side_is_a_flag_of_the_conversion(shared, command):
    out = command("convert", shared("golden", "glamm", "checkpoint"), "out", "--region", "box_side=336")
    assert out.code == 0, out.err
    assert MglmmConfig.from_pretrained("out").region_config["box_side"] == 336
    wrong = command("convert", shared("golden", "glamm", "checkpoint"), "bad", "--region", "box_sid=336")
    assert wrong.code != 0
    assert "did you mean 'box_side'" in wrong.err


def test_a_model_from_parts_needs_its_tower(tiny_sizes):
    with pytest.raises(ValueError, match="region_encoder glamm reads a CLIP tower; set vision: clip"):
        build(ModelConfig(**{**tiny_sizes, "region_encoder": "glamm"}))
