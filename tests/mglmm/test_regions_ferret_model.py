# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Ferret's sampler in a model: converted or from nothing, and through a checkpoint."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint, save_checkpoint
from mglmm.grounder import Grounder
from mglmm.importers import ferret
from mglmm.regions_ferret import (
    FerretSampler,
    FerretSizes,
)
from mglmm_data.sample import Region
from sam_bridge.config import sam_config
from sam_bridge.sam import HfSam


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny):
    """A LLaVA whose CLIP is 16 wide and whose language model is 24 wide, as the recorded samplers; and a SAM."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, image_size=56, patch_size=14, **sizes
        ).to_dict(),
        text_config=LlamaConfig(
            hidden_size=24, intermediate_size=32, vocab_size=1703, tie_word_embeddings=False, **sizes
        ).to_dict(),
        image_token_index=5,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder / "llava")
    tiny[1].tokenizer.save_pretrained(folder / "llava")
    clip = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, resample=3)
    clip.save_pretrained(folder / "llava")
    sam = sam_config(side=64, hidden=16, depth=1, heads=2, global_layers=(0,), window=2, width=16, decoder_heads=2,
                     decoder_mlp=16)  # fmt: skip
    HfSam.from_config(sam).sam.save_pretrained(folder / "sam")
    return {"llava": str(folder / "llava"), "sam": str(folder / "sam"), "vision": "clip", "prompt_format": "vicuna_v1"}


def test_a_converted_sampler_goes_into_a_model_and_through_its_checkpoint(parts, shared, tmp_path):
    file = shared("golden", "ferret", "real_hparams_max.state.safetensors")
    ferret.convert(file, tmp_path / "sampler", pooling="max")
    model, processor = build(ModelConfig(**parts, region_encoder=str(tmp_path / "sampler")))
    assert isinstance(model.region_encoder, FerretSampler)
    assert model.config.region_config["transpose_compat"]
    assert processor.coverage([Region(size=(40, 60), box=(1, 2, 30, 20))]).shape == (1, 56, 56)
    save_checkpoint(tmp_path / "model", model, processor)
    again, _ = load_checkpoint(tmp_path / "model")
    assert again.region_encoder.sizes == model.region_encoder.sizes
    assert torch.equal(again.region_encoder.project.weight, load_file(file)["dim_projector.weight"])


def test_a_fresh_sampler_answers_about_regions_of_several_images(parts):
    model, processor = build(ModelConfig(**parts, region_encoder="ferret"))
    sizes = FerretSizes(**(model.config.region_config or {}))
    assert (sizes.transpose_compat, sizes.corner_compat, sizes.knn) == (False, False, "exact")
    grounder = Grounder(model, processor)
    images = [torch.randint(0, 255, (30, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)).numpy()
              for i in range(2)]  # fmt: skip
    state = grounder.encode(images)
    asked = [Region(size=(30, 50), point=(3, 4)), Region(size=(30, 50), box=(10, 5, 50, 30))]
    vectors = model.region_encoder(state.maps, processor.coverage([*asked, asked[1]]), torch.tensor([0, 0, 1]))
    assert vectors.shape == (3, 24)
    assert not torch.allclose(vectors[1], vectors[2], atol=1e-4)
    options = grounder.options.__class__(max_new_tokens=3)
    assert len(grounder.ask_many([(images[0], "What is [region 0]?", asked[:1]), (images[1], "Say", [])], options)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_encoder": "nowhere"}, "nowhere is no region encoder of ours"),
        ({"region_encoder": "glamm"}, r"reads four layers of a CLIP tower of at least 10, this one has 2"),
    ],
)
def test_what_does_not_fit_a_model_is_told(parts, change, message):
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(**parts, **change))


def test_a_sampler_of_another_size_is_refused(parts, shared, tmp_path):
    file = shared("golden", "ferret", "tiny_mean.state.safetensors")
    sizes = {"num_points": 48, "anchors": (12, 4), "neighbours": (5, 5), "pooling": "mean"}
    ferret.convert(file, tmp_path / "out", **sizes)
    with pytest.raises(ValueError, match="reads a CLIP tower 8 wide and writes to a language model 12 wide"):
        build(ModelConfig(**parts, region_encoder=str(tmp_path / "out")))
