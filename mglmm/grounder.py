"""What users call: an image and a question in, an `Answer` with masks out.

    grounder = Grounder.load("bundled")
    answer = grounder.ask("photo.jpg", "Describe the image and segment everything.")
    answer.save("answer.png")

An image is encoded once however many questions are asked about it; all masks are decoded in one call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from mglmm.answer import Answer, Instance, Phrase
from mglmm.checkpoint import load_checkpoint
from mglmm.codecs import BOX_PENDING
from mglmm.confidence import Spoken, confidence, features
from mglmm.encode import user_turn
from mglmm.eval.protocol import Query
from mglmm.formats import PromptFormat, ReadAnswer, ReadPhrase, read_answer
from mglmm.generate import Generated, GenerationOptions, Prompted, Run, complete
from mglmm.inputs import ImageState
from mglmm.model import Mglmm
from mglmm.processor import MglmmProcessor
from mglmm.quant import Quant
from mglmm.tokens import MARKERS
from mglmm_data.images import load_image
from mglmm_data.masks import box_of
from mglmm_data.sample import Region, Turn
from sam_bridge.canvas import Canvas

if TYPE_CHECKING:
    from mglmm.chat import Chat

UNSAID = -10.0
"""Log-probability that stands for the words of a phrase without any: what is not named is not named right."""
DESCRIBE = "Describe the image and segment everything."


@dataclass(frozen=True, eq=False)
class StreamEvent:
    """One thing that came out of a stream: a piece of text, or a finished phrase of the answer so far."""

    text: str = ""  # new clean text
    phrase: Phrase | None = None  # a phrase whose masks are complete
    answer: Answer | None = None  # the whole answer, with the last event


@dataclass(frozen=True, eq=False)
class Prepared:
    """A question ready to run: its turns, its regions, and what was said about the input."""

    image: int  # which of the distinct images
    turns: tuple[Turn, ...]
    regions: tuple[Region, ...]
    notes: tuple[str, ...]
    prompt: str = ""  # as it was typed


@dataclass(frozen=True, eq=False)
class Decoded:
    """Masks of M `[SEG]`, on the CPU."""

    logits: Tensor  # float32[M, q, q], over the square
    quality: Tensor  # float32[M], predicted IoU

    def part(self, start: int, end: int) -> Decoded:
        return Decoded(self.logits[start:end], self.quality[start:end])

    def join(self, other: Decoded) -> Decoded:
        return Decoded(torch.cat([self.logits, other.logits]), torch.cat([self.quality, other.quality]))


class Grounder:
    """A model and its processor, ready to answer."""

    def __init__(self, model: Mglmm, processor: MglmmProcessor, options: GenerationOptions | None = None):
        self.model, self.processor = model.eval(), processor
        self.options = options or GenerationOptions()
        self.cached: tuple[str, ImageState] | None = None  # the last image and its state

    @classmethod
    def load(
        cls,
        path: str | Path = "bundled",
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        quant: Quant = "none",
        **options: Any,
    ) -> Grounder:
        """From a checkpoint folder, a hub name, or `bundled`; on the GPU where there is one.

        Args:
            quant: bits that the language model's weights are held in; see `mglmm.quant`.
            options: fields of `GenerationOptions`.

        Raises:
            ValueError: see `mglmm.checkpoint.load_checkpoint`.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load_checkpoint(path, dtype, quant, device)
        if quant == "none":
            model.to(cast(Any, device))
        return cls(model, processor, GenerationOptions(**options))

    def ask(
        self,
        image: Any,
        prompt: str = DESCRIBE,
        regions: Sequence[Region] = (),
        options: GenerationOptions | None = None,
    ) -> Answer:
        """Answer one question about one image.

        Args:
            image: path, PIL image or uint8[H, W, 3].
            prompt: the question; `[region 0]` in it speaks of the first of `regions`.
            regions: parts of the image that the question is about, in its pixels.

        Raises:
            ValueError: the image cannot be read, the prompt is empty or too long for the model's context, a region
                lies outside the image, or the model reads no regions.
        """
        return self.ask_many([(image, prompt, regions)], options)[0]

    def ask_many(
        self, asked: Sequence[tuple[Any, str, Sequence[Region]]], options: GenerationOptions | None = None
    ) -> list[Answer]:
        """Answer many (image, prompt, regions) in one batch; the same image object or path is encoded once."""
        pixels: list[np.ndarray] = []
        known: dict[Any, int] = {}
        prepared = []
        notes_of: list[tuple[str, ...]] = []
        for image, prompt, regions in asked:
            key = str(image) if isinstance(image, str | Path) else id(image)
            if key not in known:
                loaded = load_image(image)
                known[key] = len(pixels)
                pixels.append(loaded.pixels)
                notes_of.append(loaded.notes)
            index = known[key]
            check_regions(regions, pixels[index])
            turn = user_turn(prompt, regions)
            notes = (*notes_of[index], *marker_notes(prompt, self.processor.form, self.processor.literal.special))
            prepared.append(Prepared(index, (turn,), tuple(regions), notes, prompt))
        return self.answer(pixels, prepared, options or self.options)

    def predict(self, queries: Sequence[Query]) -> list[Answer]:
        """The seam of `mglmm.eval`: one answer for each query, in order; queries may carry chats."""
        pixels: list[np.ndarray] = []
        known: dict[int, int] = {}
        prepared = []
        for query in queries:
            if id(query.image) not in known:
                known[id(query.image)] = len(pixels)
                pixels.append(query.image)
            turns = (
                (Turn("user", query.prompt, mentions=query.mentions),)
                if isinstance(query.prompt, str)
                else query.prompt
            )
            prepared.append(Prepared(known[id(query.image)], turns, query.regions, (), turns[-1].text))
        return self.answer(pixels, prepared, self.options)

    def answer(
        self, pixels: Sequence[np.ndarray], prepared: Sequence[Prepared], options: GenerationOptions
    ) -> list[Answer]:
        """Encode each image once, generate for all questions, decode all masks together."""
        if not prepared:
            return []
        images = self.encode(pixels)
        generated = complete(self.model, self.processor.encoder, images, self.prompts(images, prepared), options)
        return self.finish(pixels, images, prepared, generated)

    @torch.no_grad()
    def encode(self, pixels: Sequence[np.ndarray]) -> ImageState:
        """Image states; the last single image is kept, so that another question about it costs no encoding."""
        key = None
        if len(pixels) == 1:
            key = hashlib.sha256(repr(pixels[0].shape).encode() + pixels[0].tobytes()).hexdigest()
            if self.cached is not None and self.cached[0] == key:
                return self.cached[1]
        values, clip, _ = self.processor.pixels(pixels)
        device = self.model.device
        state = self.model.encode_image(values.to(device).floats(), None if clip is None else clip.to(device).floats())
        if key is not None:
            self.cached = (key, state)
        return state

    @torch.no_grad()
    def prompts(self, images: ImageState, prepared: Sequence[Prepared]) -> list[Prompted]:
        """Ids and region vectors of all questions."""
        built = [self.processor.encoder.prompt(each.turns, each.regions) for each in prepared]
        limit = self.model.config.language().max_position_embeddings - len(self.processor.encoder.prefix().ids)
        for tokens in built:
            if len(tokens.ids) >= limit:
                raise ValueError(
                    f"the question (with what was said before) is {len(tokens.ids)} tokens long, "
                    f"this model has room for {limit} beside the image; ask a shorter one"
                )
        given = [each.regions[index] for each, tokens in zip(prepared, built, strict=True) for index in tokens.given]
        image = [each.image for each, tokens in zip(prepared, built, strict=True) for _ in tokens.given]
        device = images.tokens.device
        coverage = self.processor.coverage(given).to(device)
        boxes = self.processor.region_boxes(given).to(device)
        index = torch.tensor(image, dtype=torch.long, device=device)
        vectors = self.model.region_encoder(images.maps, coverage, index, boxes)
        out, at = [], 0
        for each, tokens in zip(prepared, built, strict=True):
            places, boxes = self.processor.said(tokens, each.regions)
            out.append(Prompted(each.image, tokens.ids, vectors[at : at + len(tokens.given)], places, boxes))
            at += len(tokens.given)
        return out

    @torch.no_grad()
    def finish(
        self,
        pixels: Sequence[np.ndarray],
        images: ImageState,
        prepared: Sequence[Prepared],
        generated: Sequence[Generated],
    ) -> list[Answer]:
        """Masks of all answers in one call, then each `Answer`."""
        context = self.model.config.language().max_position_embeddings
        states = [state for each in generated for state in each.states]
        row_image = [each.image for each, out in zip(prepared, generated, strict=True) for _ in out.states]
        masks = self.decode(images, states, row_image)
        answers, at = [], 0
        for each, out in zip(prepared, generated, strict=True):
            image = pixels[each.image]
            size = (int(image.shape[0]), int(image.shape[1]))
            own = masks.part(at, at + len(out.states))
            at += len(out.states)
            read = read_answer(out.ids, self.processor.literal, self.processor.ids, size, self.processor.form)
            cut = (f"the answer ends where this model's context of {context} tokens does",) if out.full else ()
            answers.append(
                Answer(
                    text=read.text,
                    phrases=self.phrases(read, out, own, size),
                    image=image,
                    notes=(*each.notes, *read.notes, *cut),
                    truncated=out.truncated,
                    score_kind="probability" if self.judges(read) else "mask_x_text",
                    prompt=each.prompt,
                )
            )
        return answers

    @torch.no_grad()
    def decode(self, images: ImageState, states: Sequence[Tensor], image: Sequence[int]) -> Decoded:
        """Masks of `[SEG]` states."""
        if not states:
            return Decoded(torch.zeros(0, self.processor.mask_side, self.processor.mask_side), torch.zeros(0))
        prompts = self.model.seg_projection(torch.stack(list(states)))
        index = torch.tensor(list(image), device=prompts.device)
        masks = self.model.decode_masks(images.features, prompts, index)
        return Decoded(masks.logits[:, 0].float().cpu(), masks.scores[:, 0].float().cpu())

    def phrases(self, read: ReadAnswer, out: Generated, masks: Decoded, size: tuple[int, int]) -> tuple[Phrase, ...]:
        """Phrases of one answer with masks at image size.

        Score: `mglmm.confidence` where the model has it; else the mean probability inside the mask times exp of the
        mean log-probability of the phrase's tokens (an IoU head that no loss has trained means nothing).
        """
        canvas = self.processor.canvas(size)
        judged = self.judges(read)
        seg_at = [position for position, token in enumerate(out.ids) if token == self.processor.ids.seg]
        found = []
        for phrase in read.phrases:
            likely = text_score(phrase, out, seg_at)
            instances = [self.instance(masks, seg, canvas, phrase, out, judged, likely) for seg in phrase.segs]
            instances += [Instance(None, box, likely) for box in phrase.boxes]
            found.append(Phrase(read.text[phrase.start : phrase.end], (phrase.start, phrase.end), tuple(instances)))
        return tuple(found)

    def judges(self, read: ReadAnswer) -> bool:
        """Are all scores of an answer probabilities: a box that was spelt has no mask that could be judged."""
        return self.model.config.confidence is not None and not any(phrase.boxes for phrase in read.phrases)

    def instance(
        self, masks: Decoded, seg: int, canvas: Canvas, phrase: ReadPhrase, out: Generated, judged: bool, likely: float
    ) -> Instance:
        """One mask at image size, scored by `mglmm.confidence` where it is `judged`."""
        logit = canvas.logits_back(masks.logits[[seg]])[0]
        mask = (logit > 0).numpy()
        weights = self.model.config.confidence
        if judged and weights is not None:
            score = confidence(self.evidence(masks, seg, phrase, out), weights)
        else:
            score = likely * (float(logit.sigmoid()[logit > 0].mean()) if mask.any() else 0.0)
        return Instance(mask, box_of(mask), score)

    def evidence(self, masks: Decoded, seg: int, phrase: ReadPhrase, out: Generated) -> np.ndarray:
        """What `mglmm.confidence` judges an instance by, float64[7]."""
        ids = self.processor.ids
        places = [position for position, token in enumerate(out.ids) if token == ids.seg]
        first = phrase.tokens[0] - 1 if phrase.tokens else -1
        opened = first >= 0 and out.ids[first] == ids.phrase_open
        words = tuple(out.logprobs[position] for position in phrase.tokens) or (UNSAID,)
        spoken = Spoken(words, out.logprobs[first] if opened else 0.0, out.logprobs[places[seg]])
        return features(masks.logits[seg], float(masks.quality[seg]), spoken)

    def stream(
        self,
        image: Any,
        prompt: str = DESCRIBE,
        regions: Sequence[Region] = (),
        options: GenerationOptions | None = None,
    ) -> Iterator[StreamEvent]:
        """Answer while it comes: pieces of text, phrases as soon as their masks are there, at last the whole answer."""
        loaded = load_image(image)
        check_regions(regions, loaded.pixels)
        notes = (*loaded.notes, *marker_notes(prompt, self.processor.form, self.processor.literal.special))
        prepared = [Prepared(0, (user_turn(prompt, regions),), tuple(regions), notes, prompt)]
        images = self.encode([loaded.pixels])
        pixels, options = loaded.pixels, options or self.options
        run = Run(self.model, self.processor.encoder, images, self.prompts(images, prepared), options)
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        shown, done, masks = 0, 0, self.decode(images, [], [])
        literal, ids, form, out = self.processor.literal, self.processor.ids, self.processor.form, run.out[0]
        while run.active:
            ((_, token),) = run.step()
            if token in (ids.seg, ids.phrase_close) or token in literal.bytes:
                continue  # more [SEG] of the same phrase, or more bytes of the same letter, may follow
            read = read_answer(out.ids[:-1] if token == ids.phrase_open else out.ids, literal, ids, size, form)
            tail = read.text[read.phrases[-1].end :] if read.phrases else "."
            settled = token in (ids.phrase_open, ids.eos) or not BOX_PENDING.fullmatch(tail)
            whole = read.phrases if settled and not read.unclosed else read.phrases[:-1]
            if len(whole) > done:
                fresh = out.states[len(masks.quality) :]
                masks = masks.join(self.decode(images, fresh, [0] * len(fresh)))
                for phrase in self.phrases(replace(read, phrases=whole[done:]), out, masks, size):
                    yield StreamEvent(phrase=phrase)
                done = len(whole)
            if settled and len(read.text) > shown and not read.text[shown:].isspace():
                yield StreamEvent(text=read.text[shown:])
                shown = len(read.text)
        run.finish()
        (answer,) = self.finish([pixels], images, prepared, run.out)
        if len(answer.text) > shown:
            yield StreamEvent(text=answer.text[shown:])
        for phrase in answer.phrases[done:]:
            yield StreamEvent(phrase=phrase)
        yield StreamEvent(answer=answer)

    def chat(self, image: Any) -> Chat:
        """A conversation about one image; later questions may speak of earlier answers."""
        from mglmm.chat import Chat

        return Chat(self, image)


def text_score(phrase: ReadPhrase, out: Generated, seg_at: Sequence[int]) -> float:
    """exp of the mean log-probability of the phrase's tokens, or of its `[SEG]` (at `seg_at`) where it has no words."""
    places = phrase.tokens or [seg_at[seg] for seg in phrase.segs]
    return math.exp(sum(out.logprobs[place] for place in places) / len(places)) if places else 0.0


def check_regions(regions: Sequence[Region], pixels: np.ndarray) -> None:
    """Raise ValueError when a region was made for an image of another size."""
    size = (int(pixels.shape[0]), int(pixels.shape[1]))
    for index, region in enumerate(regions):
        if tuple(region.size) != size:
            raise ValueError(
                f"region {index} is for an image of {region.size[1]}x{region.size[0]} px, "
                f"this one has {size[1]}x{size[0]}; make regions with size=(height, width) of the image"
            )


def marker_notes(prompt: str, form: PromptFormat, special: Iterable[str] = ()) -> tuple[str, ...]:
    """Say it when a prompt spells a marker of ours or of the published model, or another special token: it is text."""
    spelt = [token for token in dict.fromkeys((*MARKERS, *special, *form.tokens)) if token in prompt]
    return (f"the prompt contains {', '.join(spelt)}; it was read as plain text",) if spelt else ()
