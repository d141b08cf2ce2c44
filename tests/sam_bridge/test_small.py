"""The small backbone: the same interface as SAM, one mask a prompt, and skips that matter."""

import numpy as np
import pytest
import torch
from PIL import Image

from sam_bridge import Prompt, Prompts
from sam_bridge.small import PIXEL_MEAN, PIXEL_STD, SmallBridge, SmallConfig

SIDE, WIDTH = 64, 32


@pytest.fixture(scope="module")
def bridge():
    torch.manual_seed(0)
    config = SmallConfig(
        side=SIDE, stem=(8, 8, 16), dim=32, depth=2, heads=2, prompt_dim=WIDTH, decoder_heads=2, decoder_mlp=32
    )
    return SmallBridge(config).eval()


@pytest.fixture(scope="module")
def features(bridge):
    with torch.no_grad():
        return bridge.encode(torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


POINTS = Prompt(points=torch.tensor([[10.0, 20.0], [30.0, 40.0]]), labels=torch.tensor([1, 0]))
KINDS = {
    "points": POINTS,
    "one point": Prompt(points=torch.tensor([[10.0, 20.0]]), labels=torch.tensor([1])),
    "box": Prompt(box=torch.tensor([5.0, 6.0, 40.0, 50.0])),
    "mask": Prompt(mask=draw(2, 1, 16, 16)),
    "language": Prompt(embeds=draw(3, 1, WIDTH)),
    "two states": Prompt(embeds=draw(4, 2, WIDTH)),
    "all": Prompt(
        points=torch.tensor([[1.0, 2.0]]),
        labels=torch.tensor([1]),
        box=torch.tensor([0.0, 0.0, 9.0, 9.0]),
        mask=draw(5, 1, 16, 16),
        embeds=draw(6, 1, WIDTH),
    ),
}


def test_shapes(bridge, features):
    grid = SIDE // 16
    assert features.embedding.shape == (3, WIDTH, grid, grid) and features.tokens.shape == (3, grid**2, 32)
    assert [tuple(skip.shape[1:]) for skip in features.skips] == [(16, 8, 8), (8, 16, 16), (8, 32, 32)]
    masks = bridge.decode(features, Prompts.language([draw(0, 2, WIDTH), draw(1, 0, WIDTH), draw(2, 1, WIDTH)]))
    assert masks.logits.shape == (3, 2, 1, SIDE // 2, SIDE // 2) and masks.scores.shape == (3, 2, 1)
    assert bridge.mask_side == SIDE // 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prompt_gives_a_mask_of_its_own(bridge, features, kind):
    with torch.no_grad():
        masks = bridge.decode(features.select(slice(1)), Prompts.pack([[KINDS[kind]]]))
        others = [bridge.decode(features.select(slice(1)), Prompts.pack([[p]])) for n, p in KINDS.items() if n != kind]
    assert torch.isfinite(masks.logits).all() and torch.isfinite(masks.scores).all()
    assert not any(torch.allclose(masks.logits, other.logits, atol=1e-5) for other in others)


def test_ragged_equals_single(bridge, features):
    rows = [list(KINDS.values()), [], [KINDS["box"], KINDS["language"]]]
    with torch.no_grad():
        together = bridge.decode(features, Prompts.pack(rows))
        for image, prompts in enumerate(rows):
            own = features.select(slice(image, image + 1))
            for slot, prompt in enumerate(prompts):
                alone = bridge.decode(own, Prompts.pack([[prompt]]))
                assert torch.allclose(together.logits[image, slot], alone.logits[0, 0], atol=1e-4)
                assert torch.allclose(together.scores[image, slot], alone.scores[0, 0], atol=1e-4)
    assert (together.logits[1] == 0).all()


def test_language_alone_equals_packed(bridge, features):
    states = [draw(1, 2, WIDTH), draw(2, 3, WIDTH), draw(3, 0, WIDTH)]
    packed = Prompts.pack([[Prompt(embeds=state[None]) for state in row] for row in states])
    with torch.no_grad():
        first, second = bridge.decode(features, Prompts.language(states)), bridge.decode(features, packed)
    assert torch.allclose(first.logits, second.logits, atol=1e-5)
    assert torch.allclose(bridge.state_tokens(states[0])[:, 0], states[0])


def test_gradient_reaches_states_and_encoder(bridge):
    bridge.zero_grad()
    states = draw(1, 2, WIDTH).requires_grad_()
    features = bridge.encode(draw(2, 1, 3, SIDE, SIDE))
    bridge.decode(features, Prompts.language([states])).logits.square().sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    for name, parameter in bridge.encoder.named_parameters():
        assert parameter.grad is not None, name
    assert bridge.prompt_encoder.shared_embedding.positional_embedding.grad is None


def test_the_decoder_stays_in_the_graph_without_prompts(bridge):
    bridge.zero_grad()
    features = bridge.encode(draw(2, 2, 3, SIDE, SIDE))
    states = draw(1, 2, WIDTH).requires_grad_()
    masks = bridge.decode(features, Prompts.language([states[:0], states[:0]]))
    assert masks.logits.shape[:2] == (2, 0)
    masks.logits.sum().backward()
    assert states.grad is not None and (states.grad == 0).all()
    grads = [p.grad for name, p in bridge.mask_decoder.named_parameters() if not name.startswith("quality")]
    assert all(grad is not None and (grad == 0).all() for grad in grads)


@pytest.mark.parametrize("number", range(3))
def test_every_skip_has_an_effect(bridge, features, number):
    prompts = Prompts.language([draw(1, 1, WIDTH)] * 3)
    changed = list(features.skips)
    changed[number] = changed[number] + 1.0 * draw(9, *changed[number].shape)
    other = type(features)(embedding=features.embedding, tokens=features.tokens, skips=tuple(changed))
    with torch.no_grad():
        difference = bridge.decode(features, prompts).logits - bridge.decode(other, prompts).logits
    assert difference.abs().max() > 1e-4


def test_tokens_flow_back_into_the_skips(bridge):
    """A change far away reaches a fine map only through the tokens."""
    pixels = draw(1, 1, 3, SIDE, SIDE)
    changed = pixels.clone()
    changed[..., :8, :8] += 3
    with torch.no_grad():
        first, second = bridge.encode(pixels), bridge.encode(changed)
    assert (first.skips[1][..., -1, -1] - second.skips[1][..., -1, -1]).abs().max() > 1e-5


def test_a_box_that_is_given_is_where_the_decoder_looks(bridge, features):
    box = torch.tensor([[0.1, 0.2, 0.5, 0.75]])
    told = torch.cat([box, torch.full((1, 4), torch.nan)])
    sparse = draw(3, 1, 2, WIDTH).expand(2, -1, -1)
    with torch.no_grad():
        _, _, where = bridge.decode_flat(features, torch.tensor([0, 0]), sparse, told=told)
        _, _, looked = bridge.decode_flat(features, torch.tensor([0]), sparse[:1])
    assert torch.allclose(where[0], box[0], atol=1e-6)
    assert torch.equal(where[1], looked[0]) and not torch.allclose(where[1], box[0], atol=0.02)


def test_half_precision(bridge):
    other = SmallBridge(bridge.config).to(torch.bfloat16)
    with torch.no_grad():
        features = other.encode(draw(1, 1, 3, SIDE, SIDE).bfloat16())
        masks = other.decode(features, Prompts.language([draw(2, 2, WIDTH).bfloat16()]))
    assert torch.isfinite(masks.logits).all()


@pytest.mark.parametrize("size", [(64, 64), (30, 90), (200, 100), (1, 1)])
def test_pixels_lie_in_their_canvas(bridge, size):
    image = np.full((*size, 3), 200, np.uint8)
    (pixels,), (canvas,) = bridge.preprocess([image])
    height, width = canvas.inner
    assert pixels.shape == (3, SIDE, SIDE) and max(height, width) == SIDE and canvas == bridge.canvas(size)
    assert torch.allclose(pixels[:, :height, :width], torch.tensor((200 - PIXEL_MEAN) / PIXEL_STD))
    assert (pixels[:, height:] == 0).all() and (pixels[:, :, width:] == 0).all()


def test_images_of_any_kind_in_one_batch(bridge):
    picture = Image.new("RGB", (50, 20), (10, 20, 30))
    pixels, canvases = bridge.preprocess([picture, np.zeros((64, 64, 3), np.uint8)])
    assert pixels.shape == (2, 3, SIDE, SIDE) and [canvas.image for canvas in canvases] == [(20, 50), (64, 64)]


def test_whole_squares_are_normalised_as_preprocessed(bridge):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    expected, _ = bridge.preprocess([image])
    assert torch.allclose(bridge.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]), expected)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (Prompts.language([torch.zeros(1, WIDTH)]), "features of 3 images, prompts for 1"),
        (Prompts.language([torch.zeros(1, 7)] * 3), "language prompts are 7 wide, this decoder takes 32"),
        (Prompts.pack([[Prompt(mask=torch.zeros(1, 32, 32))]] * 3), r"mask prompts are \(32, 32\).*\(16, 16\); resize"),
    ],
)
def test_prompts_that_do_not_fit(bridge, features, prompts, message):
    with pytest.raises(ValueError, match=message):
        bridge.decode(features, prompts)


def test_several_masks_a_prompt_are_refused(bridge, features):
    with pytest.raises(ValueError, match="one mask a prompt; call it with multimask=False"):
        bridge.decode(features, Prompts.language([torch.zeros(1, WIDTH)] * 3), multimask=True)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"side": 100}, "side is 100; .* multiple of 16"), ({"dim": 30, "heads": 4}, "dim 30 must divide by heads 4")],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        SmallConfig(**sizes)


def test_config_round_trip(bridge):
    assert SmallConfig(**bridge.config.to_dict()) == bridge.config and bridge.config.grid == 4
