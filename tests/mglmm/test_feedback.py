"""Boxes read back, finer maps, layers between image tokens: silent in a new model, and refused where they cannot be."""

import pytest
import torch

from mglmm.build import ModelConfig, build
from mglmm.config import LossConfig
from mglmm.detail import ImageDetail
from mglmm.feedback import BoxFeedback, a_little_off
from mglmm.model_config import MglmmConfig
from mglmm.train.grounding import GroundingTraining, Joint
from mglmm.train.loop import weighted
from mglmm.train.pretrain import PixelPretraining
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose
from sam_bridge.small import SmallBridge

SIZE = (64, 64)
REGIONS = (Region(SIZE, box=(2, 3, 30, 40)), Region(SIZE, box=(35, 5, 60, 30)))


def said(grounding, *pieces):
    text, spans = compose(*pieces)
    return Turn("assistant", text, spans, grounding=grounding)


MASKS = Conversation((Turn("user", "What is there?"), said("mask", ("a dog", (0,)), " and ", ("cats", (1, 0)), ".")))
BOXES = Conversation((Turn("user", "Where is it?"), said("box", ("a dog", (1,)), " and ", ("cats", (0, 1)), ".")))


@pytest.fixture(scope="module")
def grown(tiny_sizes):
    """(model, processor) that sees finer maps and reads boxes back."""
    return build(ModelConfig(**tiny_sizes, detail=True, image_layers=1, box_feedback=True))


def sample(*conversations):
    pixels = torch.randint(0, 255, (*SIZE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Sample(pixels.numpy(), REGIONS, conversations)


def test_new_parts_say_nothing_at_first(grown, tiny):
    (model, processor), (old, _) = grown, tiny
    model.eval().load_state_dict(old.state_dict(), strict=False)
    batch, _ = processor.batch([sample(MASKS, BOXES)])
    with torch.no_grad():
        mine, theirs = model(batch), old(batch)
    assert torch.equal(mine.token_logits, theirs.token_logits)
    assert torch.equal(mine.mask_logits, theirs.mask_logits)
    assert mine.spelt.shape == (2, 32) and theirs.spelt is None


def test_boxes_are_spelt_behind_their_phrases(grown):
    processor = grown[1]
    batch, _ = processor.batch([sample(MASKS), sample(BOXES)])
    assert batch.spelt[:, 0].tolist() == [1, 1]  # the first box of each phrase, in the second row
    for (row, column), box, region in zip(batch.spelt.tolist(), batch.spelt_boxes, (1, 0), strict=True):
        assert batch.input_ids[row, column - 1] == processor.ids.phrase_close
        assert batch.input_ids[row, column] == processor.literal.encode(" [")[0]
        assert torch.allclose(box * 64, torch.tensor(REGIONS[region].box, dtype=torch.float32))


def test_what_is_read_back_reaches_later_tokens_only(grown):
    model, processor = grown
    model.eval()
    batch, _ = processor.batch([sample(MASKS)])
    with torch.no_grad():
        for parameter in model.box_feedback.parameters():
            parameter.normal_(0, 0.5)
        before = model(batch)
        batch.target_boxes[1] *= 0.5
        after = model(batch)
    assert torch.equal(before.prompts[:2], after.prompts[:2])  # a [SEG] does not know its own box
    assert not torch.allclose(before.prompts[2], after.prompts[2], atol=1e-3)


def test_boxes_of_empty_masks_add_nothing():
    torch.manual_seed(0)
    feedback = BoxFeedback(16)
    for parameter in feedback.parameters():
        torch.nn.init.normal_(parameter)
    found = feedback(torch.tensor([[0.1, 0.2, 0.3, 0.4], [torch.nan] * 4]))
    assert (found[0] != 0).all() and (found[1] == 0).all()


def test_a_box_is_a_little_off_in_training_and_exact_in_use(grown):
    model, processor = grown
    torch.manual_seed(0)
    boxes = torch.tensor([[0.2, 0.2, 0.6, 0.4]]).repeat(500, 1)
    spread = (a_little_off(boxes) - boxes).std(0)
    assert torch.allclose(spread, torch.tensor([0.037, 0.021, 0.037, 0.021]), rtol=0.15)
    batch, _ = processor.batch([sample(MASKS)])
    torch.nn.init.normal_(model.box_feedback.mlp[2].weight)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).token_logits, model(batch).token_logits)
        assert not torch.equal(model.train()(batch).token_logits, model(batch).token_logits)


def test_every_part_that_reads_back_learns(tiny_sizes):
    model, processor = build(ModelConfig(**tiny_sizes, detail=True, image_layers=1, box_feedback=True))
    assert isinstance(model.bridge, SmallBridge)
    training = GroundingTraining(model.train(), LossConfig(where=1.0), PixelPretraining(model.bridge))
    batch, _ = processor.batch([sample(MASKS, BOXES)])
    loss = weighted(training(Joint(batch)), training.weights())
    loss.backward()
    groups = model.parameter_groups()
    silent = ("detail.mlp.2.weight", "image_layers.out.weight")
    for group, part in (*(("projector", each) for each in silent), ("seg_projection", "box_feedback.mlp.2.weight")):
        grad = groups[group][part].grad
        assert grad is not None and grad.abs().sum() > 0


def test_cells_lie_below_their_token():
    """A bright cell of a map changes the token that covers it, and no other."""
    torch.manual_seed(0)
    detail = ImageDetail(4, 2, 8)
    for parameter in detail.parameters():
        torch.nn.init.normal_(parameter)
    coarse, fine = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 12, 12)
    before = detail(coarse, fine)
    coarse[0, :, 3, 5] += 1  # row 1, column 2 of 3 x 3 tokens
    fine[0, :, 7, 9] += 1
    changed = (detail(coarse, fine) != before).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("name", ["detail", "image_layers", "box_feedback"])
@pytest.mark.parametrize("change", [{"read_offset": 0}, {"vision": "clip"}])
def test_only_the_small_shared_backbone_has_them(tiny, name, change):
    with pytest.raises(ValueError, match=f"{name} needs the small backbone, shared"):
        MglmmConfig(**{**tiny[0].config.to_dict(), name: True, **change})
