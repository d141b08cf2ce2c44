"""Answers token by token: KV cache, one image prefix for all its prompts, and only the states that matter kept.

N prompt tokens and T new ones cost N + T token passes. The prefix of an image (its tokens) runs once and its cache is
handed to every prompt about it; of all states only those that `[SEG]` is read from are kept. Rows that have ended leave
the batch. I images, R rows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from mglmm.config import Strict
from mglmm.encode import Encoder
from mglmm.grammar import Grammar
from mglmm.inputs import ImageState
from mglmm.model import Mglmm

REFUSAL = "There is no"
"""How answers begin that name no target; the first token of it is weighed."""


class GenerationOptions(Strict):
    """How answers are drawn; greedy where temperature is 0."""

    max_new_tokens: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    grammar: bool = True  # keep phrases well-formed; see `Grammar`
    no_target_threshold: float | None = Field(default=None, gt=0, lt=1)
    """From which probability on an answer says that there is no target, where it is that or a phrase.

    The probability is the model's own, or, with `MglmmConfig.refusal`, calibrated. None: the checkpoint's threshold,
    `MglmmConfig.no_target_threshold`.
    """


@dataclass
class Generated:
    """One row's answer: ids without the end token, their log-probabilities, and the `[SEG]` states in order."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # float[D] each
    truncated: bool = False
    full: bool = False  # truncated where the model's context ends, before `max_new_tokens`
    refusal: float = (
        0.0  # log-odds of beginning with "There is no" against the likeliest other token, as the model has it
    )


@dataclass(frozen=True)
class Prompted:
    """One prompt: its ids behind the image prefix, and the vectors of its `<region>`s, float[g, D]."""

    image: int
    ids: list[int]
    regions: Tensor
    said: tuple[int, ...] = ()  # places in ids where what was grounded in earlier answers is read back
    said_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # float[b, 4]: xyxy, shares of the square


@dataclass
class PrefixCache:
    """What chat keeps between turns: ids whose keys and values are in `cache`, for one row."""

    ids: list[int] = field(default_factory=list)
    cache: DynamicCache | None = None


def complete(
    model: Mglmm,
    encoder: Encoder,
    images: ImageState,
    prompts: Sequence[Prompted],
    options: GenerationOptions,
    reuse: PrefixCache | None = None,
) -> list[Generated]:
    """Generate for all prompts at once, to the end; see `Run`."""
    run = Run(model, encoder, images, prompts, options, reuse)
    while run.active:
        run.step()
    run.finish()
    return run.out


class Run:
    """One generation, step by step: `step` while there are `active` rows, then `finish`; `out` has what came so far.

    With `reuse` (one prompt only), the part of the prompt whose keys and values are cached from earlier turns is not
    run again, and the cache is left ready for the next turn.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Mglmm,
        encoder: Encoder,
        images: ImageState,
        prompts: Sequence[Prompted],
        options: GenerationOptions,
        reuse: PrefixCache | None = None,
    ):
        self.model, self.encoder, self.options, self.reuse = model, encoder, options, reuse
        self.out = out = [Generated() for _ in prompts]
        self.language = model.llava.model.language_model
        ids = encoder.ids
        form = encoder.form
        self.grammars = [Grammar.of(encoder) for _ in out] if options.grammar and not form.published else None
        speakable = {ids.eos, ids.seg, ids.phrase_open, ids.phrase_close}
        silent = [index for index in encoder.literal.special.values() if index not in speakable]
        if form.published:  # whatever it was trained to say, as upstream
            silent = [encoder.literal.special[token] for token in form.untrained]
        rows = model.llava.lm_head.weight.shape[0]  # may be padded beyond the vocabulary, or lack rows of placeholders
        silent = [index for index in silent if index < rows]
        self.banned = torch.tensor([*silent, *range(encoder.literal.num_ids, rows)], dtype=torch.long)
        self.refusal = encoder.literal.encode(REFUSAL)[0]
        threshold = options.no_target_threshold
        if form.published and threshold not in (None, 0.5):
            raise ValueError(
                f"no_target_threshold is {threshold}: it weighs answers that begin with "
                f"{REFUSAL!r}, as checkpoints of this project do; this one was published by others, leave it at 0.5"
            )
        threshold = model.config.no_target_threshold if threshold is None else threshold
        scale, bias = model.config.refusal or (1.0, 0.0)
        self.shift = (bias + math.log(1 / threshold - 1)) / scale
        self.random = torch.Generator(device="cpu").manual_seed(options.seed)
        self.active = list(range(len(out)))  # rows that still run, in the order of the batch
        context = self.language.config.max_position_embeddings - len(encoder.prefix().ids)
        self.limits = [min(options.max_new_tokens, context - len(prompt.ids)) for prompt in prompts]
        if prompts:
            self.start(images, prompts)

    def start(self, images: ImageState, prompts: Sequence[Prompted]) -> None:
        """Run the image prefixes once each, then all prompts behind them, padded on the left."""
        device = images.tokens.device
        prefix = self.encoder.prefix().ids
        kept = self.resume(prefix, prompts)
        if kept < 0:
            self.start_images(images, prefix, [prompt.image for prompt in prompts])
        kept = max(kept, 0)
        longest = max(len(prompt.ids) for prompt in prompts)
        pad = self.encoder.ids.pad
        ids = torch.tensor([[pad] * (longest - len(p.ids)) + p.ids for p in prompts], device=device)
        own = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
        self.mask = torch.cat([own.new_ones(len(prompts), len(prefix)), own], 1)
        positions = (len(prefix) + own.cumsum(1) - 1).clamp_min(0)
        embeds = self.model.embed(ids, None, torch.cat([prompt.regions for prompt in prompts]))
        said = [(row, longest - len(p.ids) + place) for row, p in enumerate(prompts) for place in p.said]
        at = torch.tensor(said, dtype=torch.long, device=device).view(-1, 2)
        embeds = self.model.with_feedback(embeds, at, torch.cat([p.said_boxes for p in prompts]).to(device))
        self.hidden = self.forward(embeds[:, kept:], self.mask, positions[:, kept:])[:, -1]
        self.position = positions[:, -1]

    def start_images(self, images: ImageState, prefix: list[int], order: list[int]) -> None:
        """A new cache that holds, for each prompt, the prefix of its image; each image runs once."""
        device, used = images.tokens.device, sorted(set(order))
        ids = torch.tensor([prefix] * len(used), device=device)
        embeds = self.model.embed(ids, images.tokens[used], images.tokens.new_zeros(0, images.tokens.shape[-1]))
        self.cache = DynamicCache(config=self.language.config)
        self.forward(embeds, torch.ones_like(ids), torch.arange(len(prefix), device=device).expand(len(used), -1))
        rows = [used.index(image) for image in order]
        if rows != list(range(len(used))):
            self.cache.batch_select_indices(torch.tensor(rows, device=device))

    def resume(self, prefix: list[int], prompts: Sequence[Prompted]) -> int:
        """Go on with the cache of earlier turns; returns how many ids of the prompt it holds, -1 without it."""
        if self.reuse is None:
            return -1
        (prompt,) = prompts
        self.fed = prefix + prompt.ids
        common = 0
        while common < min(len(self.fed) - 1, len(self.reuse.ids)) and self.fed[common] == self.reuse.ids[common]:
            common += 1
        if self.reuse.cache is None or common < len(prefix):
            return -1
        self.cache = self.reuse.cache
        surplus = self.cache.get_seq_length() - common
        if surplus > 0:
            self.cache.crop(-surplus)
        return common - len(prefix)

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """States float[R, L, D] after the final norm; extends the cache."""
        return self.language(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    @torch.no_grad()
    def step(self) -> list[tuple[int, int]]:
        """Choose one token for every running row, and run those that go on; returns (row, token)."""
        tokens, logprobs = self.choose()
        ids, going, taken = self.encoder.ids, [], []
        for slot, (row, token, logprob) in enumerate(zip(self.active, tokens, logprobs, strict=True)):
            answer = self.out[row]
            taken.append((row, token))
            if token == ids.eos:
                continue
            answer.ids.append(token)
            answer.logprobs.append(logprob)
            if token == ids.seg and self.model.config.read_offset == -1:
                answer.states.append(self.hidden[slot])
            if self.grammars is not None:
                self.grammars[row].take(token)
            if len(answer.ids) >= self.limits[row]:
                answer.truncated, answer.full = True, self.limits[row] < self.options.max_new_tokens
                if not (token == ids.seg and self.model.config.read_offset == 0):
                    continue
            going.append(slot)
        self.advance(going, tokens)
        return taken

    def advance(self, going: list[int], tokens: list[int]) -> None:
        """Feed the chosen tokens of the slots that go on; ended rows leave the batch."""
        self.keep(going)
        if not going:
            return
        chosen = torch.tensor([[tokens[slot]] for slot in going], device=self.mask.device)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(going), 1)], 1)
        self.position = self.position + 1
        embeds = self.read_back(self.model.get_input_embeddings()(chosen))
        self.hidden = self.forward(embeds, self.mask, self.position[:, None])[:, -1]
        if self.model.config.read_offset == 0:
            for slot, row in enumerate(self.active):
                if int(chosen[slot, 0]) == self.encoder.ids.seg:
                    self.out[row].states.append(self.hidden[slot])
        # Some rows only ran on to read the state at their last [SEG].
        self.keep([slot for slot, row in enumerate(self.active) if len(self.out[row].ids) < self.limits[row]])

    def read_back(self, embeds: Tensor) -> Tensor:
        """Add the boxes that the last states point to where their tokens ground a phrase, float[R, 1, D]."""
        if self.model.box_feedback is None:
            return embeds
        ids = self.encoder.ids
        said = [self.out[row].ids[-2:] for row in self.active]  # behind `</p>` comes [SEG], or a box begins
        slots = [slot for slot, last in enumerate(said) if last[-1] == ids.seg or last[:-1] == [ids.phrase_close]]
        at = torch.tensor([(slot, 0) for slot in slots], dtype=torch.long, device=embeds.device).view(-1, 2)
        return self.model.with_feedback(embeds, at, self.model.look(self.hidden[slots]))

    def keep(self, slots: list[int]) -> None:
        """Let the other rows leave the batch; with the last ones the cache stays whole, for a chat."""
        if slots and len(slots) < len(self.active):
            kept = torch.tensor(slots, device=self.mask.device)
            self.cache.batch_select_indices(kept)
            self.mask, self.position, self.hidden = self.mask[kept], self.position[kept], self.hidden[kept]
        self.active = [self.active[slot] for slot in slots]

    def choose(self) -> tuple[list[int], list[float]]:
        """A token for each running row, and its log-probability before grammar, threshold and temperature."""
        logits = self.model.llava.lm_head(self.hidden).float()
        logits[:, self.banned.to(logits.device)] = -torch.inf
        logprobs = logits.log_softmax(-1)
        if self.grammars is not None:
            for slot, row in enumerate(self.active):
                left = self.limits[row] - len(self.out[row].ids)
                only, never = self.grammars[row].rule(left)
                if only:
                    kept = logits[slot, list(only)].clone()
                    logits[slot] = -torch.inf
                    logits[slot, list(only)] = kept
                if never:
                    logits[slot, list(never)] = -torch.inf
        self.weigh_refusals(logits)
        tokens = self.draw(logits) if self.options.temperature > 0 else logits.argmax(-1)
        return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()

    def weigh_refusals(self, logits: Tensor) -> None:
        """Where an answer begins, move the choice between a phrase and "There is no ..." to the threshold, in place."""
        first = [slot for slot, row in enumerate(self.active) if not self.out[row].ids]
        if not first:
            return
        others = logits[first]
        others[:, self.refusal] = -torch.inf
        odds = logits[first, self.refusal] - others.amax(-1)
        for slot, value in zip(first, odds.tolist(), strict=True):
            self.out[self.active[slot]].refusal = value
        logits[first, self.refusal] += self.shift

    def draw(self, logits: Tensor) -> Tensor:
        """Sample from the smallest set of tokens whose probability reaches `top_p`."""
        logits = logits - logits.amax(-1, keepdim=True)  # so that a very small temperature stays finite
        probabilities = (logits / self.options.temperature).softmax(-1)
        ordered, index = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= self.options.top_p] = 0
        chosen = torch.multinomial(ordered.cpu(), 1, generator=self.random).to(index.device)
        return index.gather(1, chosen)[:, 0]

    def finish(self) -> None:
        """Leave the cache of a chat as it is, with the ids it holds."""
        if self.reuse is not None:
            held = self.cache.get_seq_length()
            self.reuse.ids, self.reuse.cache = (self.fed + self.out[0].ids)[:held], self.cache
