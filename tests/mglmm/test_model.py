"""The training pass: shared prefixes change nothing, every batch gives the same gradients a place, sizes add up."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SamConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.build import ModelConfig, build, model_config
from mglmm.config import BUNDLED, LossConfig, StageConfig, load_config
from mglmm.grounder import Grounder
from mglmm.model import Mglmm
from mglmm.model_config import MglmmConfig
from mglmm.processor import MglmmProcessor
from mglmm.train.grounding import GroundingTraining, Joint
from mglmm.train.loop import weighted
from mglmm.train.optim import build_optimizers
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn, compose
from sam_bridge.config import sam_config
from sam_bridge.sam import HfSam

SIZE = (48, 64)
REGIONS = (Region(SIZE, box=(2, 3, 30, 40)), Region(SIZE, box=(35, 5, 60, 30)), Region(SIZE, point=(50, 40)))
GROUPS = {"encoder", "mask_decoder", "projector", "language_model", "seg_projection", "region_encoder"}


def said(*pieces):
    text, spans = compose(*pieces)
    return Turn("assistant", text, spans)


GROUNDED = Conversation((Turn("user", "What is there?"), said(("a dog", (0,)), " and ", ("cats", (1, 0)), ".")))
REGION = Conversation((Turn("user", "What is A?", mentions=(Mention(8, 9, 2),)), said("A bird.")))
PLAIN = Conversation((Turn("user", "How many?"), said("12")))


def sample(*conversations, seed=0):
    image = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    return Sample(image, REGIONS, conversations)


@pytest.fixture
def fresh(tiny):
    model, processor = tiny
    return copy.deepcopy(model).train(), processor


def stage(*groups):
    sources = {"world": {"type": "world"}}
    return StageConfig(name="s", max_steps=1, train=dict.fromkeys(groups, 1.0), sources=sources)


def run(model, batch, groups=()):
    """Loss, output and gradients by name."""
    model.zero_grad(set_to_none=True)
    if groups:
        build_optimizers(model.parameter_groups(), stage(*groups))
    training = GroundingTraining(model, LossConfig())
    loss = weighted(training(Joint(batch)), training.weights())
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return loss.item(), model(batch), grads


def test_sharing_the_prefix_changes_nothing(fresh):
    model, processor = fresh
    samples = [sample(GROUNDED, REGION, PLAIN), sample(REGION, GROUNDED, seed=1)]
    runs = [run(model, processor.batch(samples, share_prefix=share)[0]) for share in (True, False)]
    (loss, out, grads), (loss_apart, out_apart, grads_apart) = runs
    assert loss == pytest.approx(loss_apart, abs=1e-5)
    assert torch.allclose(out.mask_logits, out_apart.mask_logits, atol=1e-5)
    assert torch.allclose(out.states, out_apart.states, atol=1e-5)
    for name, grad in grads.items():
        if grad is not None:
            assert torch.allclose(grad, grads_apart[name], atol=1e-5), name
    lengths, lengths_apart = (sorted(o.answers.bincount().tolist()) for o in (out, out_apart))
    assert lengths == lengths_apart and len(lengths) == 5  # every answer is one run of labels, wherever it stands


def test_attention_of_either_kind_sees_the_same(fresh):
    """Eager attention adds its mask to the logits; a bool mask would be added as 0 and 1, and hide nothing."""
    model, processor = fresh
    batch, _ = processor.batch([sample(GROUNDED, REGION, PLAIN)])
    with torch.no_grad():
        sdpa = model(batch).states
        model.llava.model.language_model.set_attn_implementation("eager")
        eager = model(batch).states
    assert torch.allclose(sdpa, eager, atol=1e-5)


def test_conversations_do_not_see_each_other(tiny):
    model, processor = tiny
    with torch.no_grad():
        first = model(processor.batch([sample(GROUNDED, PLAIN)])[0])
        second = model(processor.batch([sample(GROUNDED, REGION)])[0])
    assert torch.allclose(first.states, second.states, atol=1e-6)


def test_logits_stand_only_where_labels_are(tiny):
    model, processor = tiny
    batch, _ = processor.batch([sample(GROUNDED, PLAIN)])
    with torch.no_grad():
        out = model(batch)
    assert len(out.token_logits) == len(out.token_labels) == int((batch.labels != -100).sum())
    assert out.mask_logits.shape == (3, processor.mask_side, processor.mask_side)
    picked = replace(batch, picked=torch.tensor([2]), mask_targets=batch.mask_targets[2:])
    with torch.no_grad():
        assert torch.allclose(model(picked).mask_logits, out.mask_logits[2:], atol=1e-5)


@pytest.mark.parametrize("original", [False, True])
def test_gradients_have_the_same_places_whatever_the_batch_holds(fresh, original):
    """Else DDP waits for ever: a rank without masks, regions or [SEG] must give (zero) gradients too."""
    model, processor = fresh
    places = {}
    kinds = {"all": (GROUNDED, REGION), "regions": (REGION,), "masks": (GROUNDED,), "text": (PLAIN,)}
    for name, conversations in kinds.items():
        batch, _ = processor.batch([sample(*conversations)], original=original)
        loss, _, grads = run(model, batch, GROUPS)
        assert np.isfinite(loss)
        places[name] = {key for key, grad in grads.items() if grad is not None}
        assert all(torch.isfinite(grads[key]).all() for key in places[name])
    assert places["all"] == places["regions"] == places["masks"] == places["text"]
    # What a language prompt never touches: geometric prompts, the quality head, the positional matrix.
    untouched = {name for name, _ in model.named_parameters()} - places["all"]
    assert all(name.startswith(("bridge.prompt_encoder.", "bridge.mask_decoder.quality.")) for name in untouched)


def test_batches_without_any_mask_row_pick_nothing(fresh):
    model, processor = fresh
    batch, _ = processor.batch([sample(GROUNDED)])
    none = replace(batch, picked=batch.picked[:0], mask_targets=batch.mask_targets[:0])
    loss, out, _ = run(model, none, GROUPS)
    assert np.isfinite(loss) and out.mask_logits.shape[0] == 0 and len(out.prompts) == 3


def test_frozen_groups_get_no_gradient(fresh):
    model, processor = fresh
    batch, _ = processor.batch([sample(GROUNDED, REGION)])
    trained = {"projector", "seg_projection"}
    run(model, batch, trained)
    for name, members in model.parameter_groups().items():
        for key, parameter in members.items():
            assert (parameter.grad is not None) == (name in trained), (name, key)


def test_groups_hold_every_parameter_once(tiny):
    model, _ = tiny
    groups = model.parameter_groups()
    assert set(groups) == GROUPS
    grouped = [id(p) for members in groups.values() for p in members.values()]
    fixed = [name for name, p in model.named_parameters() if id(p) not in grouped]
    assert len(grouped) == len(set(grouped))
    assert all("shared_embedding" in name for name in fixed) and len(fixed) == 1


def test_unknown_group_names_those_there_are(tiny):
    with pytest.raises(ValueError, match=r"trains \['lora'\], but this model has the groups .*'seg_projection'"):
        build_optimizers(tiny[0].parameter_groups(), stage("lora"))
    with pytest.raises(ValueError, match="trains nothing; name groups under `train`"):
        build_optimizers(tiny[0].parameter_groups(), stage())


@pytest.mark.parametrize("offset", [-1, 0])
def test_read_offset_says_which_state_is_read(fresh, offset):
    model, processor = fresh
    model.config.read_offset = offset
    batch, _ = processor.batch([sample(PLAIN, GROUNDED)])
    caught = []
    hook = model.llava.model.language_model.register_forward_hook(lambda *args: caught.append(args[-1]))
    with torch.no_grad():
        out = model(batch)
    hook.remove()
    at = (batch.input_ids[0] == processor.ids.seg).nonzero()[:, 0]
    assert torch.equal(out.states, caught[0].last_hidden_state[0, at + offset])


def test_saved_model_is_the_same_through_every_door(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MglmmConfig)
    for door in (Mglmm, AutoModel, AutoModelForImageTextToText):
        again = door.from_pretrained(tmp_path)
        assert isinstance(again, Mglmm)
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MglmmProcessor) and loaded.ids == processor.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read_ofset": 0}, "unknown key 'read_ofset' in the model's config; did you mean 'read_offset'?"),
        ({"format_version": 7}, "format_version is 7, this program reads 1; use the mglmm release that wrote it"),
        ({"vision": "both"}, "vision is 'both'; choose clip or shared"),
        ({"read_offset": 1}, "read_offset is 1; -1 reads the state that emits"),
        ({"small_config": None}, "exactly one of sam_config and small_config"),
    ],
)
def test_config_refuses_what_it_does_not_know(tiny, tmp_path, change, message):
    data = {**tiny[0].config.to_dict(), **change}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        MglmmConfig.from_pretrained(tmp_path)
    assert message in str(error.value)


def test_clip_pixels_belong_to_a_clip_tower(tiny):
    model, _ = tiny
    side = model.bridge.side
    with pytest.raises(ValueError, match="vision is shared: clip_pixels must not be given"):
        model.encode_image(torch.zeros(1, 3, side, side), torch.zeros(1, 3, 8, 8))


def test_placeholders_and_vectors_must_match(tiny):
    model, processor = tiny
    ids = torch.tensor([[processor.ids.region, 5]])
    with pytest.raises(ValueError, match="1 placeholders of token .*, but 2 vectors"):
        model.embed(ids, None, torch.zeros(2, 32))


def test_same_seed_same_weights(tiny_sizes):
    first, second, other = (build(ModelConfig(**tiny_sizes), seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sam": "x"}, "exactly one of small"),
        ({"language": None}, "exactly one of language"),
        ({"vision": "clip"}, "no CLIP tower; set vision: shared"),
        ({"language": None, "llava": "x"}, "set vision: clip"),
        ({"language": None, "llava": "x", "vision": "clip"}, "bundled tokenizer does not fit a LLaVA"),
    ],
)
def test_parts_that_do_not_go_together(tiny_sizes, change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**tiny_sizes, **change})


# Parts by path: a tiny LLaVA and a tiny SAM in Hugging Face's layout, or SAM's official file.


@pytest.fixture(scope="module")
def tiny_sam():
    sizes = {"side": 64, "hidden": 16, "depth": 2, "heads": 2, "global_layers": (1,), "window": 2}
    return sam_config(**sizes, width=16, decoder_heads=2, decoder_mlp=16)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny, tiny_sam):
    """A folder with `llava` and `sam` as their publishers would save them."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = tiny[1].tokenizer
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ).to_dict(),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=1703,  # before the markers
            tie_word_embeddings=False,
        ).to_dict(),
        image_token_index=5,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.save_pretrained(folder / "llava")
    tokenizer.save_pretrained(folder / "llava")
    CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, resample=3
    ).save_pretrained(folder / "llava")
    HfSam.from_config(tiny_sam).sam.save_pretrained(folder / "sam")
    return folder


@pytest.mark.parametrize("source", ["folder", "official"])
def test_published_parts_are_joined_with_their_weights(parts, shared, source, tmp_path):
    sam = parts / "sam" if source == "folder" else shared("golden", "sam", "sam_tiny.pth")
    config = ModelConfig(
        llava=str(parts / "llava"), sam=str(sam), vision="clip", prompt_format="vicuna_v1", region_grid=8
    )
    model, processor = build(config)
    llava = LlavaForConditionalGeneration.from_pretrained(parts / "llava")
    loaded = HfSam.from_pretrained(sam) if source == "folder" else HfSam.from_official(sam)
    assert isinstance(model.bridge, HfSam)
    for part, original in ((model.llava, llava), (model.bridge.sam, loaded.sam)):
        state = part.state_dict()
        for key, value in original.state_dict().items():
            assert torch.equal(state[key][: len(value)] if value.ndim else state[key], value), key
    assert len(model.llava.lm_head.weight) == len(processor.tokenizer)
    assert set(model.parameter_groups()) == GROUPS | {"vision_tower"}
    grouped = [id(p) for members in model.parameter_groups().values() for p in members.values()]
    left = [name for name, p in model.named_parameters() if id(p) not in grouped]
    assert all("shared_embedding" in name or "shared_image_embedding" in name for name in left)

    batch, _ = processor.batch([sample(GROUNDED, REGION, PLAIN)])
    assert batch.pixels is not None and batch.clip_pixels is not None
    assert batch.pixels.values.dtype == batch.clip_pixels.values.dtype == torch.uint8, "floats are the device's work"
    model.train()
    loss, out, grads = run(model, batch, GROUPS - {"encoder"})
    assert np.isfinite(loss) and out.mask_logits.shape == (3, processor.mask_side, processor.mask_side)
    projector = grads["llava.model.multi_modal_projector.linear_1.weight"]
    assert projector is not None and projector.abs().sum() > 0
    shared_loss, _, _ = run(model, processor.batch([sample(GROUNDED, REGION, PLAIN)], share_prefix=False)[0])
    assert loss == pytest.approx(shared_loss, abs=1e-5)

    answer = Grounder(model, processor).ask(sample(PLAIN).image, "What is [region 0]?", [REGIONS[0]])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Grounder.load(tmp_path, device="cpu").ask(sample(PLAIN).image, "What is [region 0]?", [REGIONS[0]])
    assert again.text == answer.text


def test_sam_may_serve_as_the_shared_encoder(parts, tiny_sizes):
    sizes = {key: value for key, value in tiny_sizes.items() if key != "small"}
    model, processor = build(ModelConfig(**{**sizes, "sam": str(parts / "sam")}))
    loss, _, _ = run(model, processor.batch([sample(GROUNDED, REGION)])[0], GROUPS)
    assert np.isfinite(loss) and model.num_image_tokens == processor.encoder.num_image == 16


def test_small_backbone_may_stand_beside_clip(parts, tiny_sizes):
    sizes = {"small": tiny_sizes["small"], "llava": str(parts / "llava"), "vision": "clip", "region_grid": 8}
    model, processor = build(ModelConfig(**sizes))
    loss, _, _ = run(model, processor.batch([sample(GROUNDED, REGION)])[0], GROUPS)
    assert np.isfinite(loss) and model.num_image_tokens == processor.encoder.num_image == 4


def test_the_published_size_is_built_on_the_meta_device(tiny):
    """LLaVA-1.5-7B and SAM ViT-H, from their configs: names and counts, no memory."""
    config = load_config(ModelConfig, "configs/model/llava_7b_sam_h.yaml")
    llava = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False
        ).to_dict(),
        image_token_index=32000,
    )
    with torch.device("meta"):
        sam = HfSam.from_config(
            sam_config(
                side=1024,
                hidden=1280,
                depth=32,
                heads=16,
                global_layers=(7, 15, 23, 31),
                window=14,
                width=256,
                decoder_heads=8,
                decoder_mlp=2048,
            )
        )
        settings = model_config(config, tiny[1].tokenizer, sam, llava)
        model = Mglmm(settings, bridge=sam)
        rebuilt = Mglmm(MglmmConfig(**settings.to_dict()))
    counts = {
        name: sum(p.numel() for p in members.values()) / 1e6 for name, members in model.parameter_groups().items()
    }
    assert counts["language_model"] == pytest.approx(6738.9, abs=1)
    assert counts["vision_tower"] == pytest.approx(303.5, abs=1) and counts["projector"] == pytest.approx(21, abs=0.1)
    assert counts["encoder"] + counts["mask_decoder"] == pytest.approx(641.1, abs=0.3)
    assert counts["seg_projection"] == pytest.approx(17.8, abs=0.1)
    assert model.num_image_tokens == 576 and model.bridge.cells == 64 and model.bridge.side == 1024
    shapes = {key: value.shape for key, value in rebuilt.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    assert config.region_grid == 24 and isinstance(MglmmConfig(**settings.to_dict()).bridge, object)


def test_bundled_config_builds_what_ships():
    model, processor = build(load_config(ModelConfig, "configs/model/bundled.yaml"))
    assert 6e6 < sum(p.numel() for p in model.parameters()) < 9.5e6  # of two bytes each, below 20 MB
    assert processor.side == 192 and len(processor.tokenizer) <= 2048 and BUNDLED.is_dir()


def test_sam_config_of_transformers_is_taken(tiny):
    data = {**tiny[0].config.to_dict(), "small_config": None, "sam_config": SamConfig().to_dict()}
    assert data["sam_config"]["vision_config"]["image_size"] == 1024
    config = MglmmConfig(**data)
    with torch.device("meta"):
        assert config.bridge().side == 1024


@pytest.mark.parametrize("how", [{}, {"do_normalize": False}, {"do_rescale": False}], ids=str)
@pytest.mark.parametrize("frame", ["crop", "pad"])
def test_clips_frame_becomes_the_floats_of_its_own_processor(parts, how, frame):
    config = ModelConfig(llava=str(parts / "llava"), sam=str(parts / "sam"), vision="clip", prompt_format="vicuna_v1")
    _, processor = build(config)
    processor.config.clip_frame = frame
    for name, value in how.items():
        setattr(processor.clip, name, value)
    image = np.random.default_rng(0).integers(0, 256, (70, 70, 3)).astype(np.uint8)
    assert processor.clip is not None
    wanted = processor.clip(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"].float()
    _, clip, _ = processor.pixels([image])
    assert clip is not None and torch.allclose(clip.floats(), wanted, atol=1e-5)
