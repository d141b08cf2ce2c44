"""Imported checkpoints give the numbers that the published codes recorded (`shared/golden/{lisa,glamm,mglmm}`), fp32.

Recorded ids and labels go in first, so that weights and arithmetic are judged apart from tokenisation.
"""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import load_file, save_file

from mglmm.checkpoint import load_checkpoint
from mglmm.importers import FAMILIES, merge
from mglmm.importers.families import SAM
from mglmm.importers.lora import without_wrappers
from mglmm.inputs import IGNORE, PADDING, Batch
from mglmm.train.grounding import mask_losses, token_loss
from sam_bridge.bridge import Features
from sam_bridge.weights import key_map

pytestmark = pytest.mark.usefixtures("pillow")
IMAGE = -200  # how the published codes write an image
CASES = [
    ("lisa", "train", "abc"),
    ("lisa", "train_b", None),
    ("mglmm", "train", "abc"),
    ("mglmm", "train_b", None),
    ("glamm", "train_seg", None),
    ("glamm", "train_seg_b", None),
    ("glamm", "train_region", "ac"),
    ("glamm", "train_region_b", "de"),
]


@dataclass
class Golden:
    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: Any
    processor: Any


@pytest.fixture(scope="module")
def golden(shared, converted):
    """A function from a family to its converted checkpoint and what was recorded of it."""
    known = {}

    def load(family):
        if family not in known:
            folder = shared("golden", family)
            facts, tensors = json.loads((folder / "golden.json").read_text()), load_file(folder / "golden.safetensors")
            known[family] = Golden(folder, facts, tensors, *load_checkpoint(converted(family)))
        return known[family]

    return load


def record(golden, case):
    """What golden.json says of a batch; LISA's first batch stands at the top."""
    own = golden.facts.get(case, golden.facts)
    return {**own, "losses": own.get("losses") or own.get("train_losses")}


def images(golden, facts, names):
    """The batch's images: by name, else those whose sizes were recorded."""
    found = {path.stem[-1]: np.asarray(Image.open(path).convert("RGB")) for path in golden.folder.glob("img_*.png")}
    if names is None:
        sizes = {image.shape[:2]: name for name, image in found.items()}
        names = [sizes[tuple(size)] for size in facts["orig_sizes"]]
    return [found[name] for name in names]


def spread(rows, fill, count):
    """Rows of ids with the one image place of each made `count` long."""
    at = (rows[0] == IMAGE).nonzero()[:, 1].tolist()
    out = []
    for each, value in zip(rows, fill, strict=True):
        wide = torch.full((count,), value)
        out.append(torch.stack([torch.cat([row[:p], wide, row[p + 1 :]]) for row, p in zip(each, at, strict=True)]))
    return out


def batch_of(golden, case, names):
    """The recorded batch as ours, and how many masks of each image are decoded."""
    facts, tensors, model = record(golden, case), golden.tensors, golden.model
    pixels, clip, canvases = golden.processor.pixels(images(golden, facts, names))
    ids = tensors[f"{case}.input_ids"]
    labels = tensors.get(f"{case}.labels", torch.full_like(ids, IGNORE))
    there = tensors.get(f"{case}.attention_masks", (ids != 0).to(torch.uint8)).long()
    fill = (model.config.image_token_id, IGNORE, 1)
    ids, labels, there = spread((ids, labels, there), fill, model.num_image_tokens)
    offset = facts.get("offset", [0, len(ids)])
    row_image = torch.tensor([i for i in range(len(offset) - 1) for _ in range(offset[i + 1] - offset[i])])
    segs = row_image[(ids == model.config.seg_token_id).nonzero()[:, 0]].tolist()
    counts = [segs.count(i) for i in range(len(offset) - 1)]
    masks = [
        [torch.from_numpy(rle.decode(m).astype(bool)) for m in (own or [])[:n]]
        for own, n in zip(facts.get("gt_masks", [[]]), counts, strict=True)
    ]
    wanted = (ids == model.config.region_token_id).sum(1).tolist()  # upstream drops boxes that nobody speaks of
    boxes = [own[:n] for own, n in zip(facts.get("bboxes") or [], wanted, strict=False)]
    batch = Batch(
        pixels=pixels,
        clip_pixels=clip,
        row_image=row_image,
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),
        segments=torch.where(there > 0, 0, PADDING),
        region_masks=torch.zeros(sum(map(len, boxes)), 1, 1),
        region_image=torch.tensor([i for i, own in enumerate(boxes) for _ in own], dtype=torch.long),
        region_boxes=torch.tensor([box for own in boxes for box in own]).reshape(-1, 4),
        picked=torch.arange(len(segs)),
        mask_targets=torch.zeros(0, 0, 0),
        originals=tuple(mask for own in masks for mask in own),
        canvases=canvases,
        target_regions=tuple((image, index) for index, image in enumerate(segs)),
    )
    return batch, counts


NOISE = 1e-7
"""Of a small cross-entropy in float32, whose logits are near 10: processors differ by their order of sums."""


def close(found, wanted, tolerance=1e-4, there=None):
    """Equal to `tolerance`; `there` leaves out padded places, which see other padding and are read by nobody."""
    assert found.shape == wanted.shape
    if there is not None:
        found, wanted = found[there], wanted[there]
    if wanted.numel():
        assert (found.detach() - wanted).abs().max() <= tolerance


def close_masks(found, wanted):
    """Mask logits, equal to 1e-4 of the largest: they reach 110, where recorded float32 is 1.3e-3 off from float64."""
    close(found, wanted, 1e-4 * max([1.0, *wanted.abs().flatten().tolist()]))


def test_images_are_prepared_as_published(golden):
    own = golden("lisa")
    pixels, clip, _ = own.processor.pixels(images(own, record(own, "train"), "abc"))
    assert torch.equal(pixels.floats()[:, :, ::8, ::8], own.tensors["train.images_slice"])
    close(clip.floats()[:, :, ::14, ::14], own.tensors["train.images_clip_slice"], 1e-6)


@pytest.mark.parametrize(("family", "case", "names"), CASES)
def test_training_losses(golden, rounding, family, case, names):
    own = golden(family)
    batch, _ = batch_of(own, case, names)
    with torch.no_grad():
        out = own.model(batch)
        found = {"ce": token_loss(out), **mask_losses(out, batch)}
    wanted = record(own, case)["losses"]
    total = found["ce"] + 2.0 * found["bce"] + 0.5 * found["dice"]
    close_by = rounding.loss if "region" in case else 1e-5
    assert float(found["ce"]) == pytest.approx(wanted["ce_loss"], rel=close_by, abs=NOISE)
    assert 2.0 * float(found["bce"]) == pytest.approx(wanted["mask_bce_loss"], rel=1e-5)
    assert 0.5 * float(found["dice"]) == pytest.approx(wanted["mask_dice_loss"], rel=1e-5)
    assert float(total) == pytest.approx(wanted["loss"], rel=close_by, abs=NOISE)


def test_losses_of_the_adapters_once_merged(golden, shared, tmp_path):
    """The recorded losses of the unmerged model: its adapters, added by `merge` to the weights they were trained on."""
    own = golden("lisa")
    for folder in ("checkpoint", "clip-tiny"):
        shutil.copytree(shared("golden", "lisa", folder), tmp_path / folder, copy_function=shutil.copyfile)
    file = tmp_path / "checkpoint" / "pytorch_model.bin"
    file.parent.chmod(0o755)
    part = load_file(shared("golden", "lisa", "lora_unmerged_subset.safetensors"))
    base = {without_wrappers(key): value for key, value in part.items() if "lora_" not in key}
    state = torch.load(file, weights_only=True)
    assert not all(torch.equal(state[key], value) for key, value in base.items())  # released: merged already
    torch.save({**state, **base}, file)
    adapters = tmp_path / "adapters.safetensors"
    save_file({key: value for key, value in part.items() if "lora_" in key}, adapters)
    merge(tmp_path / "checkpoint", adapters, tmp_path / "merged", lora_alpha=own.facts["lora"]["alpha"])
    model, _ = load_checkpoint(tmp_path / "merged")
    batch, _ = batch_of(own, "train", "abc")
    with torch.no_grad():
        out = model(batch)
        found = {"ce": token_loss(out), **mask_losses(out, batch)}
    wanted = own.facts["unmerged_lora_losses"]
    assert float(found["ce"]) == pytest.approx(wanted["ce_loss"], rel=1e-5, abs=NOISE)
    assert 2.0 * float(found["bce"]) == pytest.approx(wanted["mask_bce_loss"], rel=1e-5)
    assert 0.5 * float(found["dice"]) == pytest.approx(wanted["mask_dice_loss"], rel=1e-5)


@pytest.mark.parametrize(("family", "case", "names"), CASES)
def test_states_and_masks(golden, rounding, family, case, names):
    own = golden(family)
    batch, counts = batch_of(own, case, names)
    kept = {}
    language = own.model.llava.model.language_model
    hook = language.register_forward_hook(
        lambda _, __, kwargs, out: kept.update(inputs=kwargs["inputs_embeds"], states=out.last_hidden_state),
        with_kwargs=True,
    )
    first = language.layers[0].register_forward_hook(lambda _, __, out: kept.update(first=out))
    with torch.no_grad():
        assert batch.pixels is not None and batch.clip_pixels is not None
        image = own.model.encode_image(batch.pixels.floats(), batch.clip_pixels.floats())
        out = own.model(batch)
        logits = own.model.llava.lm_head(kept["states"])
    hook.remove()
    first.remove()
    rows, wanted = batch.row_image, own.tensors
    loose = rounding.states if "region" in case else 1e-4
    steps = {"lisa": (8, 16, 250, 5, 1), "mglmm": (6, 8, 60, 7, 1), "glamm": (12, 32, 580, 9, 2)}[family]
    if f"{case}.sam_embed" in wanted:
        close(image.features.embedding, wanted[f"{case}.sam_embed"])
    if f"{case}.mm_projector_slice" in wanted:
        close(image.tokens[rows][:, :: steps[1], ::4], wanted[f"{case}.mm_projector_slice"])
        inside = batch.segments != PADDING
        states = kept["states"][:, :: steps[0], ::4]
        close(states, wanted[f"{case}.final_hidden_slice"], loose, there=inside[:, :: steps[0]])
        tail = slice(steps[2], None, steps[4])
        close(logits[:, tail, :: steps[3]], wanted[f"{case}.logits_tail"], loose, there=inside[:, tail])
    if f"{case}.layer0_slice" in wanted:
        inside = batch.segments != PADDING
        close(kept["first"][:, :: steps[0], ::4], wanted[f"{case}.layer0_slice"], there=inside[:, :: steps[0]])
    if f"{case}.inputs_embeds_slice" in wanted:
        close(kept["inputs"][:, :: steps[0], ::4], wanted[f"{case}.inputs_embeds_slice"])
    for i, (prompts, masks, scores) in enumerate(
        zip(*(each.split(counts) for each in (out.prompts, out.mask_logits, out.masks.scores)), strict=True)
    ):
        if f"{case}.pred_embeddings.{i}" in wanted:
            close(prompts, wanted[f"{case}.pred_embeddings.{i}"][:, 0])
        if f"{case}.low_res_masks.{i}" in wanted:
            close_masks(masks, wanted[f"{case}.low_res_masks.{i}"][:, 0])
        name = f"{case}.iou_pred.{i}" if family == "lisa" else f"{case}.iou.{i}"
        if name in wanted:
            close(scores, wanted[name])
        if f"{case}.pred_masks.{i}" in wanted:
            close_masks(batch.canvases[i].logits_back(masks)[:, ::2, ::2], wanted[f"{case}.pred_masks.{i}"])


@pytest.mark.parametrize(
    ("family", "how"), [("lisa", "float64"), ("lisa", "its embedding"), ("mglmm", "float64"), ("mglmm", "float32")]
)
def test_gradients(golden, monkeypatch, family, how):
    """Every recorded gradient to 1e-4.

    The masks' gradients magnify what LISA's embedding is off by (2e-6, a float32 rounding) a hundredfold. So they are
    judged in float64 from the pixels on, and in float32 from the recorded embedding on.
    """
    own = golden(family)
    batch, _ = batch_of(own, "train", "abc")
    model = copy.deepcopy(own.model).double() if how == "float64" else own.model
    if how == "its embedding":
        embedding = own.tensors["train.sam_embed"]
        monkeypatch.setattr(model.bridge, "encode", lambda pixels: Features(embedding=embedding))
    groups = model.parameter_groups()
    for name in ("encoder", "vision_tower"):  # published codes run both without gradients
        for parameter in groups[name].values():
            parameter.requires_grad_(False)
    model.zero_grad()
    out = model(batch)
    losses = mask_losses(out, batch)
    (token_loss(out) + 2.0 * losses["bce"] + 0.5 * losses["dice"]).backward()
    named = dict(model.named_parameters())
    norms = record(own, "train")["grad_norms"]
    kind = FAMILIES[family]
    sam = {kind.sam + theirs: SAM + ours for theirs, ours in key_map(model.bridge.sam.config).items()}
    compared = 0
    for key, told in norms.items():
        norm = told["norm"] if isinstance(told, dict) else told
        parameter = named.get(sam.get(key) or kind.ours(key) or "")
        if norm is None or parameter is None or parameter.grad is None:
            assert not norm, key
            continue
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-6), key
        compared += 1
    assert compared > 50
    if family == "lisa":
        embedding = model.get_input_embeddings().weight.grad
        close(embedding[model.config.seg_token_id], own.tensors["train.grad.embed_seg_row"])
        close(model.llava.lm_head.weight.grad[::20, ::4], own.tensors["train.grad.lm_head_slice"])
        close(model.seg_projection[0].weight.grad[::4, ::4], own.tensors["train.grad.text_fc0_slice"])
    model.zero_grad()
    model.requires_grad_(True)


@pytest.mark.parametrize(("family", "name"), [("lisa", "a"), ("mglmm", "b")])
def test_validation(golden, family, name):
    """`model_forward(inference=True)`: masks of given answers at the image's size; one picture, LISA two questions."""
    own = golden(family)
    batch, _ = batch_of(own, "val", name)
    with torch.no_grad():
        out = own.model(batch)
    close_masks(batch.canvases[0].logits_back(out.mask_logits), own.tensors["val.pred_masks"])
