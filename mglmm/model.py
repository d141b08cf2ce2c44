"""The model: LLaVA, a segmentation bridge, and the projection from `[SEG]` states to mask prompts.

    pixels ──bridge.encode──▶ features ────────────────────────────────────────────────────────────┐
       └── CLIP, or the same features' tokens ─projector─▶ LLaMA ─▶ state that emits [SEG] ─MLP─▶ bridge.decode ─▶ mask

Letters of shapes are in `inputs.py`. Sources: LISA (arXiv:2308.00692) section 3, MGLMM (AAAI'25).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from mglmm.detail import ImageDetail, ImageLayers
from mglmm.encode import visible
from mglmm.feedback import BoxFeedback, a_little_off
from mglmm.inputs import IGNORE, Batch, ImageState, Output, Seen
from mglmm.model_config import MglmmConfig
from mglmm.regions import build_region_encoder
from sam_bridge.bridge import Features, Masks
from sam_bridge.prompt import Prompts
from sam_bridge.sam import HfSam
from sam_bridge.small import SmallBridge


class Mglmm(PreTrainedModel):
    """LLaVA that answers with masks. `forward` is the training pass; answers come from `mglmm.generate`."""

    config_class = MglmmConfig
    config: MglmmConfig
    _supports_sdpa = True
    _no_split_modules = ["LlamaDecoderLayer"]

    def __init__(
        self,
        config: MglmmConfig,
        llava_model: LlavaForConditionalGeneration | None = None,
        bridge: SmallBridge | HfSam | None = None,
    ):
        """Build from a config; parts that are handed in keep their weights."""
        super().__init__(config)
        llava = config.llava()
        self.llava = LlavaForConditionalGeneration(llava) if llava_model is None else llava_model
        if config.vision == "shared":
            self.llava.model.vision_tower = nn.Identity()
        if config.projector == "linear" and llava_model is None:
            width = config.tower().hidden_size
            cast(Any, self.llava.model).multi_modal_projector = nn.Linear(width, config.language().hidden_size)
        self.bridge = config.bridge() if bridge is None else bridge
        dim = config.language().hidden_size
        self.seg_projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, self.bridge.prompt_dim))
        self.detail = self.image_layers = self.box_feedback = None
        if isinstance(self.bridge, SmallBridge):
            _, fine, coarse = self.bridge.config.stem
            self.detail = ImageDetail(coarse, fine, dim) if config.detail else None
            self.image_layers = ImageLayers(dim, config.image_layers) if config.image_layers else None
            self.box_feedback = BoxFeedback(dim) if config.box_feedback else None
        self.region_encoder = self.fresh_region_encoder()
        for part in (llava_model, bridge):
            for module in () if part is None else part.modules():
                vars(module)["_is_hf_initialized"] = True  # else `post_init` draws a SAM read from a .pth anew
        self.post_init()

    def fresh_region_encoder(self) -> nn.Module:
        """The region encoder of this config, with fresh weights."""
        if self.config.region_encoder == "glamm":  # its bf16 roundings follow the tower's last bits, as upstream
            self.llava.model.vision_tower.set_attn_implementation("eager")
        return build_region_encoder(self.config)

    def _init_weights(self, module: nn.Module) -> None:
        """Parts that are not transformers' own keep torch's initialisation."""

    @property
    def shares_skips(self) -> bool:
        """Do regions see the bridge's maps of higher resolution: only where they lie in the language tokens' frame."""
        return isinstance(self.bridge, SmallBridge) and self.config.vision == "shared"

    def get_input_embeddings(self) -> nn.Module:
        return self.llava.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llava.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llava.lm_head

    @property
    def num_image_tokens(self) -> int:
        """N, tokens that an image takes in the language model."""
        if self.config.vision == "shared":
            cells = self.bridge.config.grid if isinstance(self.bridge, SmallBridge) else self.bridge.cells
            return cells**2
        return self.config.tower_grid**2

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter by the name under which a recipe trains it; `mask_decoder` holds the prompt encoder too."""
        if isinstance(self.bridge, SmallBridge):
            encoder, heads = self.bridge.encoder, [self.bridge.prompt_encoder, self.bridge.mask_decoder]
        else:
            encoder, heads = (
                self.bridge.sam.vision_encoder,
                [self.bridge.sam.prompt_encoder, self.bridge.sam.mask_decoder],
            )
        llava = self.llava.model
        fixed = "shared_embedding"  # SAM's random positional matrix is a buffer upstream
        groups = {
            "encoder": dict(encoder.named_parameters()),
            "mask_decoder": {
                f"{i}.{k}": p for i, m in enumerate(heads) for k, p in m.named_parameters() if fixed not in k
            },
            "vision_tower": dict(llava.vision_tower.named_parameters()),
            "projector": {
                **dict(llava.multi_modal_projector.named_parameters()),
                **named("detail", self.detail),
                **named("image_layers", self.image_layers),
            },
            "language_model": {
                **dict(llava.language_model.named_parameters()),
                **({} if self.llava.config.tie_word_embeddings else {"lm_head_weight": self.llava.lm_head.weight}),
            },
            "seg_projection": {
                **dict(self.seg_projection.named_parameters()),
                **named("box_feedback", self.box_feedback),
            },
            "region_encoder": dict(self.region_encoder.named_parameters()),
        }
        return {name: members for name, members in groups.items() if members}

    def encode_image(self, pixels: Tensor, clip_pixels: Tensor | None = None) -> ImageState:
        """What an image costs once: `see`, then `read`."""
        return self.read(self.see(pixels, clip_pixels))

    def see(self, pixels: Tensor, clip_pixels: Tensor | None = None) -> Seen:
        """What the encoders make of images.

        Args:
            pixels: float[I, 3, S, S] from the bridge's `preprocess`.
            clip_pixels: float[I, 3, s, s] for the CLIP tower; needed with `vision: clip`.

        Raises:
            ValueError: the CLIP pixels are missing or given without need.
        """
        if (clip_pixels is None) != (self.config.vision == "shared"):
            raise ValueError(
                f"vision is {self.config.vision}: clip_pixels must {'not ' * (clip_pixels is not None)}be given"
            )
        trained = any(parameter.requires_grad for parameter in self.parameter_groups()["encoder"].values())
        with contextlib.nullcontext() if trained else torch.no_grad():
            features = self.bridge.encode(pixels.to(self.dtype))
        if clip_pixels is None:
            return Seen(features, {})
        states = self.clip_states(clip_pixels)
        return Seen(features, {layer: states[layer] for layer in {self.feature_layer, *self.region_layers}})

    def read(self, seen: Seen) -> ImageState:
        """What the language model, the regions and the decoder get of what was seen."""
        features, states = seen.features, seen.states
        if not states:
            assert features.tokens is not None
            raw = features.tokens
            maps = self.region_maps(features, [raw])
        else:
            chosen = states[self.feature_layer]
            raw = chosen[:, 1:] if self.llava.config.vision_feature_select_strategy == "default" else chosen
            maps = self.region_maps(features, [states[layer][:, 1:] for layer in self.region_layers])
        tokens = self.llava.model.multi_modal_projector(raw)
        if self.detail is not None:
            tokens = tokens + self.detail(*features.skips[:2])
        if self.image_layers is not None:
            tokens = self.image_layers(tokens)
        return ImageState(tokens, features, maps)

    def clip_states(self, clip_pixels: Tensor) -> tuple[Tensor, ...]:
        """float[I, 1 + N, d] of every layer of the CLIP tower, the class token in front."""
        trained = any(parameter.requires_grad for parameter in self.llava.model.vision_tower.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            return self.llava.model.vision_tower(clip_pixels.to(self.dtype), output_hidden_states=True).hidden_states

    @property
    def feature_layer(self) -> int:
        """Layer of the CLIP tower that the language model's image tokens come from."""
        return cast(int, self.llava.config.vision_feature_layer)

    @property
    def region_layers(self) -> list[int]:
        """Layers of the CLIP tower that regions are read from: the tokens' own; for GLaMM four, every third."""
        last = self.feature_layer
        return [last - 9, last - 6, last - 3, last] if self.config.region_encoder == "glamm" else [last]

    def region_maps(self, features: Features, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps float[I, C_i, h_i, w_i] over the frame of the language tokens: these, then skips of stride 8 and 4."""
        grids = [rearrange(each, "i (h w) c -> i c h w", h=round(each.shape[1] ** 0.5)) for each in states]
        return (*grids, *features.skips[:2]) if self.shares_skips else tuple(grids)

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None, regions: Tensor) -> Tensor:
        """Ids to inputs float[R, L, D]; image tokens float[R, N, D] and regions float[G, D] take their places in order.

        Raises:
            ValueError: the counts of placeholders and of vectors differ.
        """
        table = cast(nn.Embedding, self.get_input_embeddings())
        known = input_ids
        for token in (self.config.image_token_id, self.config.region_token_id):
            if token >= table.num_embeddings:  # a placeholder that an imported vocabulary has no row for
                known = known.masked_fill(known == token, 0)
        embeds = table(known)
        for token, vectors in ((self.config.image_token_id, image_tokens), (self.config.region_token_id, regions)):
            if vectors is None:
                continue
            place = input_ids == token
            flat = vectors.reshape(-1, vectors.shape[-1])
            if int(place.sum()) != len(flat):
                raise ValueError(
                    f"{int(place.sum())} placeholders of token {token}, but {len(flat)} vectors to put there"
                )
            embeds = embeds.masked_scatter(place[..., None], flat.to(embeds.dtype))
        return embeds

    def forward(self, batch: Batch) -> Output:
        """The training pass over rows with shared prefixes; see `Output`."""
        if batch.seen is None:
            assert batch.pixels is not None
            clip = None if batch.clip_pixels is None else batch.clip_pixels.floats()
            image = self.encode_image(batch.pixels.floats(), clip)
        else:
            image = self.read(batch.seen.to(dtype=self.dtype))
        regions = self.region_encoder(image.maps, batch.region_masks, batch.region_image, batch.region_boxes)
        embeds = self.embed(batch.input_ids, image.tokens[batch.row_image], regions)
        segs = batch.input_ids == self.config.seg_token_id
        embeds = self.with_feedback(embeds, segs.nonzero(), batch.target_boxes)
        embeds = self.with_feedback(embeds, batch.spelt, batch.spelt_boxes)
        out = self.llava.model.language_model(
            inputs_embeds=embeds,
            attention_mask=self.seen(batch.segments, embeds.dtype),
            position_ids=batch.position_ids,
            use_cache=False,
            output_hidden_states=len(batch.named) > 0,
        )
        hidden, named = out.last_hidden_state, None
        if len(batch.named):
            named = out.hidden_states[len(out.hidden_states) // 2][batch.named[:, 0], batch.named[:, 1]]
        labelled = (batch.labels[:, 1:] != IGNORE) & (batch.segments[:, 1:] == batch.segments[:, :-1])
        token_logits = self.llava.lm_head(hidden[:, :-1][labelled])
        row, column = segs.nonzero(as_tuple=True)
        states = hidden[row, column + self.config.read_offset]
        prompts = self.seg_projection(states)
        picked = batch.picked
        masks = self.decode_masks(image.features, prompts[picked], batch.row_image[row[picked]])
        begins = labelled.clone()
        begins[:, 1:] &= ~labelled[:, :-1]
        answers = begins.flatten().cumsum(0).view_as(labelled)[labelled] - 1
        spelt = None
        if self.box_feedback is not None:
            spelt = self.seg_projection(hidden[batch.spelt[:, 0], batch.spelt[:, 1] - 1])
        labels = batch.labels[:, 1:][labelled]
        return Output(token_logits, labels, prompts, masks, states, answers, spelt, image.tokens, named)

    def with_feedback(self, embeds: Tensor, at: Tensor, boxes: Tensor | None) -> Tensor:
        """Inputs float[R, L, D] with the boxes float[B, 4] read back at (row, column) int64[B, 2]; see `feedback`."""
        if self.box_feedback is None or boxes is None or not len(at):
            return embeds
        vectors = self.box_feedback(a_little_off(boxes) if self.training else boxes)
        return embeds.index_put((at[:, 0], at[:, 1]), vectors.to(embeds.dtype), accumulate=True)

    def look(self, states: Tensor) -> Tensor:
        """Where states float[B, D] that emit `[SEG]` or a box point: boxes float[B, 4], xyxy, shares of the side."""
        return cast(SmallBridge, self.bridge).look(self.seg_projection(states))

    def seen(self, segments: Tensor, dtype: torch.dtype) -> Tensor:
        """What each token sees, [R, 1, L, L]: as bool, or as what eager attention adds to its logits."""
        seen = visible(segments)
        if self.llava.model.language_model.config._attn_implementation != "eager":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def decode_masks(self, features: Features, prompts: Tensor, image: Tensor) -> Masks:
        """Masks of prompts float[P, C], each of the image int64[P], in one ragged call: logits float[P, 1, q, q]."""
        states = [prompts[image == index] for index in range(len(features))]
        masks = self.bridge.decode(features, Prompts.language(states))
        order = torch.argsort(image, stable=True)
        slot = torch.empty_like(image)
        counts = torch.tensor([len(state) for state in states], device=image.device)
        slot[order] = torch.cat([torch.arange(int(count), device=image.device) for count in counts])
        return masks.pick(image, slot)


def named(prefix: str, module: nn.Module | None) -> dict[str, nn.Parameter]:
    """The parameters of a part that a model may lack, by names that begin with its own."""
    return {} if module is None else {f"{prefix}.{key}": value for key, value in module.named_parameters()}


AutoConfig.register("mglmm", MglmmConfig)
AutoModel.register(MglmmConfig, Mglmm)
AutoModelForImageTextToText.register(MglmmConfig, Mglmm)
