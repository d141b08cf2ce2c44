"""A conversation about one image: structured turns, and a cache that runs only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mglmm.answer import Answer
from mglmm.encode import user_turn
from mglmm.generate import GenerationOptions, PrefixCache, complete
from mglmm.grounder import Grounder, Prepared, check_regions, marker_notes
from mglmm_data.images import load_image
from mglmm_data.sample import Grounding, Region, Turn


class Chat:
    """Turns about one image, kept as structured answers; each question re-encodes them and runs only what is new."""

    def __init__(self, grounder: Grounder, image: Any):
        loaded = load_image(image)
        self.grounder, self.pixels, self.notes = grounder, loaded.pixels, loaded.notes
        self.images = grounder.encode([loaded.pixels])
        self.turns: list[Turn] = []
        self.regions: list[Region] = []
        self.answers: list[Answer] = []
        self.cache = PrefixCache()

    def ask(self, prompt: str, regions: Sequence[Region] = (), options: GenerationOptions | None = None) -> Answer:
        """The next question; see `Grounder.ask`."""
        check_regions(regions, self.pixels)
        turn = user_turn(prompt, regions)
        first = len(self.regions)
        mentions = tuple(replace(mention, region=first + mention.region) for mention in turn.mentions)
        turns = (*self.turns, replace(turn, mentions=mentions))
        processor = self.grounder.processor
        spelt = marker_notes(prompt, processor.form, processor.literal.special)
        notes = (*(self.notes if not self.answers else ()), *spelt)
        prepared = [Prepared(0, turns, (*self.regions, *regions), notes, prompt)]
        grounder = self.grounder
        prompts = grounder.prompts(self.images, prepared)
        generated = complete(
            grounder.model, grounder.processor.encoder, self.images, prompts, options or grounder.options, self.cache
        )
        (answer,) = grounder.finish([self.pixels], self.images, prepared, generated)
        self.regions += regions  # only now: a question that failed leaves no trace
        self.turns = [*turns, self.remember(answer)]
        self.answers.append(answer)
        return answer

    def remember(self, answer: Answer) -> Turn:
        """The answer as a turn whose spans point at regions, so that it is re-encoded with its markers."""
        spans = []
        boxes = [phrase for phrase in answer.phrases if any(instance.mask is None for instance in phrase.instances)]
        for phrase in answer.phrases:
            kept = []
            for instance in phrase.instances:
                if instance.mask is not None and not boxes:
                    kept.append(len(self.regions))
                    self.regions.append(Region.of_mask(instance.mask, phrase.text))
                elif instance.box is not None and boxes:
                    kept.append(len(self.regions))
                    self.regions.append(Region(answer.size, box=instance.box, label=phrase.text))
            if kept:
                spans.append(Grounding(*phrase.span, tuple(kept)))
        return Turn("assistant", answer.text, tuple(spans), grounding="box" if boxes else "mask")
