"""The official checkpoint format: every real key maps, `segment-anything` itself agrees, bad files are named."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from transformers import SamConfig

from sam_bridge import Prompt, Prompts
from sam_bridge.config import parts, sam_config
from sam_bridge.sam import HfSam
from sam_bridge.weights import (
    TIED,
    from_official,
    infer_config,
    key_map,
    load_official,
    save_official,
    to_official,
)


@pytest.fixture(scope="module")
def official() -> Iterator[ModuleType]:
    """`segment_anything.modeling` without the package's own `__init__`, which imports torchvision."""
    spec = importlib.util.find_spec("segment_anything")
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps segment-anything==1.0"
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package
    yield importlib.import_module("segment_anything.modeling")
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        del sys.modules[name]


def build_official(modeling: ModuleType, seed: int = 0):
    """A SAM of Meta's own classes: 96 px, 6 x 6 cells, windows of 4, an IoU head of 4 layers; all drawn at random."""
    width, cells = 16, 6
    torch.manual_seed(seed)
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=16 * cells,
            patch_size=16,
            embed_dim=24,
            depth=3,
            num_heads=3,
            mlp_ratio=2,
            out_chans=width,
            norm_layer=lambda size: torch.nn.LayerNorm(size, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=width, image_embedding_size=(cells, cells), input_image_size=(96, 96), mask_in_chans=8
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=width,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=width, num_heads=2, mlp_dim=40),
            iou_head_depth=4,
            iou_head_hidden_dim=20,
        ),
    )
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sam.eval()


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_every_key_of_the_real_models_maps(shared, name):
    with gzip.open(shared("golden", "sam", "official_key_manifest.json.gz")) as file:
        shapes = {key: tuple(shape) for key, shape in json.load(file)[name].items()}
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    model = from_official(state)
    vision, _, decoder = parts(model.config)
    known = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == known[name]
    assert (vision.image_size, vision.window_size) == (1024, 14)
    step = vision.num_hidden_layers // 4
    assert list(vision.global_attn_indexes) == [step - 1, 2 * step - 1, 3 * step - 1, 4 * step - 1]
    assert decoder.mlp_dim == 2048
    names = key_map(model.config)
    assert len(set(names.values())) == len(names)
    assert set(names.values()) | {TIED} == set(model.state_dict())
    assert {key: tuple(value.shape) for key, value in to_official(model).items()} == shapes


@pytest.mark.parametrize("multimask", [False, True], ids=["single", "multi"])
def test_segment_anything_itself_agrees(official, tmp_path, multimask):
    sam = build_official(official)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    bridge = HfSam.from_official(tmp_path / "sam.pth", decoder_heads=2)
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 96, 96)
    points, labels = 96 * torch.rand(2, 3, 2), torch.tensor([[1, 0, 1], [0, 1, -1]])
    boxes, mask = torch.tensor([[5.0, 9.0, 60.0, 80.0]] * 2), torch.randn(2, 1, 24, 24)
    cases = [
        {"points": (points, labels), "boxes": None, "masks": None},
        {"points": None, "boxes": boxes, "masks": None},
        {"points": (points, labels), "boxes": boxes, "masks": mask},
        {"points": None, "boxes": None, "masks": mask},
    ]
    with torch.inference_mode():
        theirs = sam.image_encoder(pixels)
        features = bridge.encode(pixels)
        assert (features.embedding - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)
        for case in cases:
            sparse, dense = sam.prompt_encoder(**case)
            low, scores = sam.mask_decoder(
                image_embeddings=theirs[:1],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            rows = [
                Prompt(
                    points=None if case["points"] is None else points[i],
                    labels=None if case["points"] is None else labels[i],
                    box=None if case["boxes"] is None else boxes[i],
                    mask=None if case["masks"] is None else mask[i],
                )
                for i in range(2)
            ]
            masks = bridge.decode(features, Prompts.pack([rows, []]), multimask)
            assert (masks.logits[0] - low).abs().max() <= 1e-4
            assert (masks.scores[0] - scores).abs().max() <= 1e-4


def test_in_float64_language_prompts_agree_to_rounding(official):
    """Float32 leaves up to 7e-5 on random weights; in float64 nothing but rounding may be left."""
    sam = build_official(official).double()
    bridge = HfSam(from_official(sam.state_dict(), decoder_heads=2, dtype=torch.float64))
    torch.manual_seed(1)
    pixels, states = torch.randn(1, 3, 96, 96).double(), torch.randn(3, 2, 16).double()
    steps = (torch.arange(6).double() + 0.5) / 6
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    with torch.inference_mode():
        theirs = sam.image_encoder(pixels)
        features = bridge.encode(pixels)
        assert torch.allclose(features.embedding, theirs, rtol=1e-10, atol=1e-10)
        low, scores = sam.mask_decoder(
            image_embeddings=theirs,
            image_pe=sam.prompt_encoder.pe_layer._pe_encoding(grid).permute(2, 0, 1)[None],
            sparse_prompt_embeddings=states,
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(3, -1, 6, 6),
            multimask_output=True,
        )
        masks = bridge.decode(features, Prompts.language([states]), multimask=True)
    assert low.abs().max() > 0.01
    assert torch.allclose(masks.logits[0], low, rtol=0, atol=1e-10)
    assert torch.allclose(masks.scores[0], scores, rtol=0, atol=1e-10)


def test_what_we_save_segment_anything_loads(official, tmp_path):
    sam = build_official(official)
    save_official(from_official(sam.state_dict(), decoder_heads=2), tmp_path / "ours.pth")
    other = build_official(official, seed=5)
    other.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in sam.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["ours.pth"]


def test_golden_checkpoint_there_and_back(shared, tmp_path):
    path = shared("golden", "sam", "sam_tiny.pth")
    save_official(load_official(path, decoder_heads=4), tmp_path / "again.pth")
    before, after = torch.load(path, weights_only=True), torch.load(tmp_path / "again.pth", weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_the_positional_matrix_is_one_frozen_parameter(shared):
    bridge = HfSam.from_official(shared("golden", "sam", "sam_tiny.pth"), decoder_heads=4)
    positions = bridge.sam.shared_image_embedding.positional_embedding
    assert bridge.sam.prompt_encoder.shared_embedding.positional_embedding is positions
    assert not positions.requires_grad and not bridge.training


class TestBadFiles:
    @pytest.fixture()
    def state(self, official) -> dict[str, torch.Tensor]:
        return dict(build_official(official).state_dict())

    def test_missing_and_extra_keys_are_listed(self, state):
        del state["mask_decoder.iou_token.weight"]
        state["image_encoder.novelty"] = torch.zeros(1)
        expected = r"1 missing: mask_decoder\.iou_token\.weight; 1 extra: image_encoder\.novelty"
        with pytest.raises(ValueError, match=expected):
            from_official(state, decoder_heads=2)

    def test_a_prefix_is_named(self, state):
        with pytest.raises(ValueError, match=r"under \['visual_model'\].*strip any prefix"):
            from_official({f"visual_model.{key}": value for key, value in state.items()})

    def test_shapes_are_listed(self, state):
        state["mask_decoder.transformer.layers.1.norm1.weight"] = torch.zeros(3)
        with pytest.raises(
            ValueError, match=r"1 of another shape: .*layers\.1\.norm1\.weight is \(3,\), expected \(16,\)"
        ):
            from_official(state, decoder_heads=2)

    def test_heads_that_do_not_fit(self, state):
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        assert parts(infer_config(shapes, heads=3, decoder_heads=2)).vision.num_attention_heads == 3
        with pytest.raises(ValueError, match="heads is 4, but 24 channels in heads of 8 make 3"):
            infer_config(shapes, heads=4)
        for i in range(3):
            del shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"]
        with pytest.raises(ValueError, match="3 of 3 encoder blocks have no rel_pos_h"):
            infer_config(shapes)

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"], ids=["empty", "text", "torn"])
    def test_unreadable_files(self, tmp_path, content):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pth is not a readable torch checkpoint"):
            load_official(tmp_path / "bad.pth")

    def test_code_in_a_file_is_not_run(self, tmp_path):
        torch.save({"model": print}, tmp_path / "code.pth")
        with pytest.raises(ValueError, match=r"code\.pth is not a readable"):
            load_official(tmp_path / "code.pth")

    def test_a_nested_dict(self, tmp_path, state):
        torch.save({"model": state}, tmp_path / "nested.pth")
        with pytest.raises(ValueError, match="flat state dict"):
            load_official(tmp_path / "nested.pth")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_official(tmp_path / "absent.pth")


def test_sam_config_keeps_upstreams_values_through_json(tmp_path):
    config = sam_config(
        side=64, hidden=32, depth=2, heads=2, window=2, global_layers=(1,), width=16, decoder_heads=2, decoder_mlp=32
    )
    config.save_pretrained(tmp_path)
    vision, _, decoder = parts(SamConfig.from_pretrained(tmp_path))
    assert vision.num_pos_feats == 8 and vision.initializer_range == 0.02 and decoder.layer_norm_eps == 1e-5
    assert vision.to_dict()["scale"] == 1
