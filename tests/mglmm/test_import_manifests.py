"""Every key of the real checkpoints is taken or left out with a reason: LISA, GLaMM, MGLMM, Ferret's sampler, SAM.

The published key lists (`shared/golden`) against the models that we would build, on the meta device.
"""

import gzip
import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, SamModel

from mglmm.importers import FAMILIES, detect, ferret
from mglmm.importers.convert import llava_config, mglmm_config, wanted_shapes
from mglmm.importers.families import CLIP, RECOMPUTED, TEXT_HALF
from mglmm.importers.families import TOWER as TOWER_FILE
from mglmm.importers.keys import Entry, Store
from mglmm.importers.lora import unwrap
from mglmm.regions_ferret import FerretSizes
from sam_bridge.config import parts
from sam_bridge.weights import TIED, infer_config, key_map

SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIDES = {"lisa": 224, "glamm": 336, "mglmm": 336}
COUNTS = {"lisa": 923, "glamm": 968, "mglmm": 925}
SAMS = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}  # width, layers, heads


def store_of(file, shapes, prefix=""):
    """A store of tensors that are nowhere, half precision, as published."""
    return Store(file, {prefix + key: Entry(file, key, tuple(shape), torch.float16) for key, shape in shapes.items()})


def read(file):
    return json.loads(gzip.decompress(file.read_bytes()))


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "module."], ids=["plain", "peft", "DDP"])
@pytest.mark.parametrize("family", SIDES)
def test_grounding_models(shared, family, prefix):
    (file,) = shared("golden", family).glob("*_key_manifest.json.gz")
    published = store_of(file, read(file), prefix)
    assert detect(published) == family
    store, kind = unwrap(published).store, FAMILIES[family]
    shapes = store.shapes
    sam = kind.sam_config(shapes, None)
    plan = kind.plan(store, sam)
    assert not plan.extra
    assert len(plan.takes) + len(plan.ignored) == len(shapes) == COUNTS[family]
    assert {take.key for take in plan.takes.values()} | set(plan.ignored) == set(shapes)
    assert set(plan.ignored.values()) == {RECOMPUTED}
    assert all(key.endswith("inv_freq") for key in plan.ignored)
    (rows, _) = shapes["lm_head.weight"]
    assert rows is not None
    tower = CLIPVisionConfig.from_dict({**TOWER, "image_size": SIDES[family], "patch_size": 14})
    llava = llava_config(SEVEN_B, rows, tower, rows, file)
    region = kind.region_config(shapes, {}) if kind.region_config is not None else None
    wanted = wanted_shapes(mglmm_config(kind, llava, sam, region, seg_token_id=1, region_token_id=2))
    outside = {key: shape for key, shape in wanted.items() if not key.startswith(CLIP)}
    plan.check(file, shapes, outside)
    assert parts(sam).vision.num_hidden_layers == 32
    assert parts(sam).decoder.num_attention_heads == 8


def published_clip(side):
    """Key -> shape of openai/clip-vit-large-patch14 (224 px) and -336, as their files hold them: both halves."""
    sizes = {**TOWER, "image_size": side, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes, projection_dim=768))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes["text_model.embeddings.position_ids"] = (1, 77)
    return {**shapes, "vision_model.embeddings.position_ids": (1, (side // 14) ** 2 + 1)}


@pytest.mark.parametrize("family", SIDES)
def test_their_vision_towers(shared, family):
    """Every key of the CLIP is taken for the model that the family builds, or left out with a reason."""
    shapes = published_clip(SIDES[family])
    assert {key.split(".")[0] for key in shapes} >= {"text_model", "vision_model", "visual_projection", "logit_scale"}
    (file,) = shared("golden", family).glob("*_key_manifest.json.gz")
    store = store_of(file, {TOWER_FILE + key: shape for key, shape in shapes.items()})
    plan = FAMILIES[family].plan(store, None)
    assert not plan.extra
    assert set(plan.ignored.values()) == {TEXT_HALF, RECOMPUTED}
    with torch.device("meta"):
        clip = CLIPVisionConfig.from_dict({**TOWER, "image_size": SIDES[family], "patch_size": 14})
        wanted = {key: tuple(value.shape) for key, value in CLIPVisionModel(clip).state_dict().items()}
    found = {ours.removeprefix(CLIP): shapes[take.key.removeprefix(TOWER_FILE)] for ours, take in plan.takes.items()}
    assert found == {key.removeprefix("vision_model."): shape for key, shape in wanted.items()}


def thirteen(key, shape):
    """The shape of a 7B's tensor in a LLaMA of 13B."""
    if "visual_model" in key:
        return shape
    return [{4096: 5120, 11008: 13824}.get(size, size) for size in shape]


def test_lisa_of_13b(shared):
    """LISA-13B-llama2-v1: LLaMA-13B's sizes and 40 layers around the same SAM."""
    (file,) = shared("golden", "lisa").glob("*_key_manifest.json.gz")
    seven = read(file)
    shapes = {key: thirteen(key, shape) for key, shape in seven.items()}
    for number in range(32, 40):
        layer = {key: shape for key, shape in shapes.items() if key.startswith("model.layers.31.")}
        shapes |= {key.replace("layers.31.", f"layers.{number}."): shape for key, shape in layer.items()}
    published = store_of(file, shapes)
    assert detect(published) == "lisa"
    kind = FAMILIES["lisa"].as_stored(published.shapes, {})
    sam = kind.sam_config(published.shapes, None)
    (rows, _) = shapes["lm_head.weight"]
    assert rows is not None
    tower = CLIPVisionConfig.from_dict({**TOWER, "image_size": 224, "patch_size": 14})
    sizes = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
    llava = llava_config({**sizes, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}, rows, tower, rows, file)
    wanted = wanted_shapes(mglmm_config(kind, llava, sam, None, seg_token_id=1, region_token_id=2))
    outside = {key: shape for key, shape in wanted.items() if not key.startswith(CLIP)}
    plan = kind.plan(published, sam)
    plan.check(file, published.shapes, outside)
    assert sum(torch.Size(shape).numel() for key, shape in wanted.items()) == pytest.approx(13.97e9, rel=0.01)


def test_ferrets_sampler(shared):
    file = shared("golden", "ferret", "ferret7b_sampler_manifest.json.gz")
    store = store_of(file, read(file))
    assert detect(store) == "ferret"
    plan, shapes = ferret.sampler_plan(store), ferret.bare_shapes(store)
    sizes = ferret.sampler_sizes(shapes, {"sampler_pooler_mode": "max"}, file)
    assert not plan.extra and not plan.ignored
    assert len(plan.takes) == len(store.entries) == 16
    assert sizes == FerretSizes.published("max")
    wanted = ferret.sampler_shapes(*ferret.widths(shapes, file)[:2], sizes)
    plan.check(file, store.shapes, wanted)
    assert sum(torch.Size(shape).numel() for shape in wanted.values()) == pytest.approx(44.07e6, rel=1e-3)


@pytest.mark.parametrize("name", SAMS)
def test_official_sam(shared, name):
    file = shared("golden", "sam", "official_key_manifest.json.gz")
    shapes = {key: tuple(shape) for key, shape in read(file)[name].items()}
    assert detect(store_of(file, shapes)) == "sam"
    config = infer_config(shapes)
    vision = parts(config).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == SAMS[name]
    names = key_map(config)
    assert names.keys() == shapes.keys()
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in SamModel(config).state_dict().items() if key != TIED}
    assert {names[key]: shape for key, shape in shapes.items()} == wanted
