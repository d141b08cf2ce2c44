"""A tiny SAM through the interface: ragged batches equal single prompts, nothing padded is seen, gradients flow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamConfig

from sam_bridge import Features, Prompt, Prompts, decode_ragged
from sam_bridge.bridge import Frames
from sam_bridge.config import parts, sam_config
from sam_bridge.sam import PIXEL_MEAN, PIXEL_STD, HfSam

SIDE, WIDTH = 64, 32


def tiny_config() -> SamConfig:
    return sam_config(
        side=SIDE,
        hidden=32,
        depth=2,
        heads=2,
        window=3,
        global_layers=(1,),
        width=WIDTH,
        decoder_heads=2,
        decoder_mlp=32,
    )


@pytest.fixture(scope="module")
def bridge() -> HfSam:
    """Every parameter drawn anew: those of a fresh model give logits too small to compare."""
    torch.manual_seed(0)
    bridge = HfSam.from_config(tiny_config(), keep_tokens=True).eval()
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return bridge


@pytest.fixture(scope="module")
def features(bridge) -> Features:
    with torch.inference_mode():
        return bridge.encode(torch.randn(3, 3, SIDE, SIDE))


def mixed() -> list[list[Prompt]]:
    torch.manual_seed(1)
    points, mask = SIDE * torch.rand(3, 2), torch.randn(1, 16, 16)
    return [
        [
            Prompt(points=points, labels=torch.tensor([1, 0, 1])),
            Prompt(box=torch.tensor([3.0, 5.0, 30.0, 40.0])),
            Prompt(embeds=torch.randn(2, WIDTH)),
        ],
        [],
        [
            Prompt(points=points[:1], labels=torch.tensor([1]), mask=mask, box=torch.tensor([8.0, 8.0, 50.0, 60.0])),
            Prompt(embeds=torch.randn(1, WIDTH), points=points[1:2], labels=torch.tensor([0])),
            Prompt(mask=-mask),
            Prompt(embeds=torch.randn(1, WIDTH)),
        ],
    ]


def test_encode_gives_embedding_and_tokens(bridge, features):
    assert features.embedding.shape == (3, WIDTH, 4, 4) and len(features) == 3
    assert features.tokens is not None and features.tokens.shape == (3, 16, 32)
    two = features.select(torch.tensor([2, 2])).to(dtype=torch.bfloat16)
    assert two.embedding.dtype == torch.bfloat16 and torch.equal(two.embedding[0], two.embedding[1])


@pytest.mark.parametrize("multimask", [False, True], ids=["single", "multi"])
def test_a_ragged_mixed_batch_equals_each_prompt_alone(bridge, features, multimask):
    images = mixed()
    with torch.inference_mode():
        together = bridge.decode(features, Prompts.pack(images), multimask)
        assert together.logits.abs().max() > 0.1
        num = 3 if multimask else 1
        assert together.logits.shape == (3, 4, num, 16, 16) and together.scores.shape == (3, 4, num)
        for i, prompts in enumerate(images):
            for k, prompt in enumerate(prompts):
                alone = bridge.decode(features.select(slice(i, i + 1)), Prompts.pack([[prompt]]), multimask)
                assert torch.allclose(together.logits[i, k], alone.logits[0, 0], atol=1e-5)
                assert torch.allclose(together.scores[i, k], alone.scores[0, 0], atol=1e-5)
                assert (together.logits[i, k] - together.logits[i, k - 1]).abs().max() > 0.01  # the prompt matters
            assert not together.logits[i, len(prompts) :].any()


def test_language_states_equal_packed_prompts(bridge, features):
    states = [torch.randn(2, WIDTH), torch.randn(0, WIDTH), torch.randn(3, WIDTH)]
    language = Prompts.language(states)
    assert language.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    packed = Prompts.pack([[Prompt(embeds=state[None]) for state in image] for image in states])
    with torch.inference_mode():
        ours, theirs = bridge.decode(features, language), bridge.decode(features, packed)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-6)
    assert ours.logits[language.valid].shape == (5, 1, 16, 16)


def test_gradient_reaches_every_state_and_the_decoder(bridge, features):
    bridge = copy.deepcopy(bridge)
    states = [torch.randn(k, WIDTH, requires_grad=True) for k in (2, 1, 0)]
    bridge.decode(
        features.to(dtype=torch.float32).map(torch.clone), Prompts.language(states)
    ).logits.square().sum().backward()
    assert all(state.grad is not None and (state.grad != 0).any(1).all() for state in states[:2])
    assert bridge.sam.mask_decoder.mask_tokens.weight.grad is not None
    assert bridge.sam.shared_image_embedding.positional_embedding.grad is None


@pytest.mark.parametrize(
    "prompts",
    [
        Prompts.pack([[], [], []]),
        Prompts.language([torch.zeros(0, WIDTH)] * 3),
        Prompts(valid=torch.zeros(3, 2, dtype=torch.bool)),
    ],
    ids=["packed", "language", "invalid"],
)
def test_no_prompt_at_all_keeps_the_decoder_in_the_graph(bridge, features, prompts):
    bridge = copy.deepcopy(bridge)
    masks = bridge.decode(features.map(torch.clone), prompts)
    assert masks.logits.shape == (*prompts.valid.shape, 1, 16, 16)
    (masks.logits.sum() + masks.scores.sum()).backward()
    grad = bridge.sam.mask_decoder.mask_tokens.weight.grad
    assert grad is not None and not grad.any()


def test_preprocess_is_upstreams_normalisation(bridge):
    image = Image.new("RGB", (40, 20), (200, 100, 50))
    pixels, canvases = bridge.preprocess([image, np.asarray(image)])
    assert pixels.shape == (2, 3, SIDE, SIDE) and torch.equal(pixels[0], pixels[1])
    expected = torch.tensor([(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (50 - 103.53) / 57.375])
    assert torch.allclose(pixels[0, :, 10, 10], expected) and not pixels[0, :, 32:].any()
    assert canvases[0].inner == (32, 64)


def test_pictures_stay_bytes_until_they_are_on_their_device(bridge):
    image = Image.new("RGB", (40, 20), (200, 100, 50))
    frames = Frames.draw([image], [bridge.canvas((20, 40))], PIXEL_MEAN, PIXEL_STD)
    assert frames.values.dtype == torch.uint8 and frames.values.shape == (1, 3, SIDE, SIDE) and len(frames) == 1
    assert torch.equal(frames.floats(), bridge.preprocess([image])[0])
    moved = frames.to("meta")
    assert moved.values.is_meta and moved.inner == frames.inner == ((32, 64),)


def test_save_and_load_keep_every_output(bridge, features, tmp_path):
    bridge.sam.save_pretrained(tmp_path)
    again = HfSam.from_pretrained(tmp_path).eval()
    prompts = Prompts.pack(mixed())
    with torch.inference_mode():
        assert torch.allclose(
            again.decode(features, prompts).logits, bridge.decode(features, prompts).logits, atol=1e-6
        )
    assert parts(again.sam.config).decoder.layer_norm_eps == 1e-5


def test_a_fresh_tiny_model_has_usable_weights():
    bridge = HfSam.from_config(tiny_config())
    weights = bridge.sam.state_dict()
    assert 0.5 < weights["shared_image_embedding.positional_embedding"].std() < 2
    assert weights["vision_encoder.layers.0.mlp.lin1.weight"].std() > 0.01
    norms = [m for m in bridge.sam.mask_decoder.transformer.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 9 and all(norm.eps == 1e-5 for norm in norms)


def test_bfloat16_runs(features):
    bridge = HfSam.from_config(tiny_config()).bfloat16().eval()
    with torch.inference_mode():
        encoded = bridge.encode(torch.randn(3, 3, SIDE, SIDE))
        assert encoded.tokens is None
        assert bridge.decode(encoded, Prompts.pack(mixed())).logits.dtype == torch.bfloat16


def test_decode_ragged_puts_answers_into_their_slots():
    prompts = Prompts.pack(mixed())
    masks = decode_ragged(
        prompts,
        lambda rows: (
            (10 * rows.image + rows.slot + 1.0)[:, None, None, None].expand(-1, 1, 2, 2),
            torch.ones(len(rows), 1),
        ),
    )
    assert masks.logits[..., 0, 0, 0].tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [21, 22, 23, 24]]


def test_prompts_move_without_touching_integers():
    prompts = Prompts.pack(mixed()).to("cpu", torch.float64)
    assert prompts.boxes is not None and prompts.boxes.dtype == torch.float64
    assert prompts.valid.dtype == torch.bool and prompts.labels is not None and prompts.labels.dtype == torch.int64


def test_errors_name_the_value_and_the_way_out(bridge, features):
    with pytest.raises(ValueError, match="empty prompt; give points"):
        Prompt()
    with pytest.raises(ValueError, match="points need labels"):
        Prompt(points=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"embeds has shape \(2, 1, 1, 32\).*\(3, 4\)"):
        Prompts(valid=torch.zeros(3, 4, dtype=torch.bool), embeds=torch.zeros(2, 1, 1, WIDTH))
    with pytest.raises(ValueError, match=r"mask of different shapes.*\(8, 8\)"):
        Prompts.pack([[Prompt(mask=torch.zeros(1, 8, 8)), Prompt(mask=torch.zeros(1, 16, 16))]])
    with pytest.raises(ValueError, match="features of 3 images, prompts for 1"):
        bridge.decode(features, Prompts.language([torch.zeros(1, WIDTH)]))
    with pytest.raises(ValueError, match="7 wide, this decoder takes 32"):
        bridge.decode(features, Prompts.language([torch.zeros(1, 7)] * 3))
    with pytest.raises(ValueError, match=r"\(8, 8\), this decoder takes logits of side 16"):
        bridge.decode(features, Prompts.pack([[Prompt(mask=torch.zeros(1, 8, 8))], [], []]))
    with pytest.raises(ValueError, match="no images"):
        bridge.preprocess([])
    config = tiny_config()
    parts(config).vision.num_pos_feats = 128
    with pytest.raises(ValueError, match="num_pos_feats is 256.*hidden_size is 32"):
        HfSam.from_config(config)
