"""The seam between a model and its scores: queries go in, answers come out, and metrics never see the model.

A `Predict` takes queries (a batch of any mixture of tasks) and yields one `Answer` for each, in order, free-running.
An `Item` is one evaluated turn: the gold answer, and the query that leads to it. A query carries no gold: of the
sample's regions only those that the question or an earlier turn speaks of travel with it, renumbered.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from mglmm.answer import Answer
from mglmm_data import masks
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn


@dataclass(frozen=True, eq=False)
class Query:
    """What a model is asked.

    `prompt` is the question, or for a later turn of a chat all turns up to the question (gold answers in between);
    `regions` are those that the prompt's spans count into, `mentions` the spans of the (last) question.
    """

    image: np.ndarray  # uint8[H, W, 3]
    prompt: str | tuple[Turn, ...]
    regions: tuple[Region, ...] = ()
    mentions: tuple[Mention, ...] = ()
    sample_id: str = ""


Predict = Callable[[Sequence[Query]], Iterable[Answer]]


@dataclass(frozen=True)
class GoldPhrase:
    """A grounded phrase of the gold answer; `regions` index `Sample.regions`, in reading order."""

    text: str
    regions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Item:
    """The answer at `turn_index` of a conversation, to be compared with a model's; -1 is the last."""

    sample: Sample
    conversation: Conversation
    turn_index: int = -1

    def __post_init__(self) -> None:
        num_turns = len(self.conversation.turns)
        if not -num_turns <= self.turn_index < num_turns or self.gold.role != "assistant":
            raise ValueError(
                f"turn {self.turn_index} of {self.sample.id!r} is not an answer; the conversation has {num_turns} "
                "turns, give the index of an assistant turn (1, 3, ... or -1)"
            )

    @property
    def gold(self) -> Turn:
        return self.conversation.turns[self.turn_index]

    @property
    def question(self) -> Turn:
        return self.conversation.turns[self.turn_index - 1]

    @property
    def query(self) -> Query:
        return query_of(self.sample, self.conversation, self.turn_index)

    @cached_property
    def phrases(self) -> tuple[GoldPhrase, ...]:
        text = self.gold.text
        return tuple(GoldPhrase(text[span.start : span.end], tuple(span.regions)) for span in self.gold.phrases)

    @cached_property
    def mask(self) -> np.ndarray:
        """`bool[H, W]`: everything the gold answer grounds."""
        used = sorted({region for phrase in self.phrases for region in phrase.regions})
        return masks.union([self.sample.regions[index].mask for index in used], self.sample.size)

    @cached_property
    def ignored(self) -> np.ndarray | None:
        """`bool[H, W]`: pixels without ground truth (`meta["ignore_regions"]`: ReasonSeg, label maps), if any."""
        return joined(self.sample, "ignore_regions")

    @cached_property
    def void(self) -> np.ndarray | None:
        """`bool[H, W]`: pixels on which a mask is neither right nor invented: ignored ones and crowds, if any."""
        return void_of(self.sample)


def void_of(sample: Sample) -> np.ndarray | None:
    """`bool[H, W]`: pixels of a sample on which a mask is neither right nor invented; None where there are none."""
    return joined(sample, "ignore_regions", "crowd_regions")


def joined(sample: Sample, *keys: str) -> np.ndarray | None:
    """`bool[H, W]`: the regions together whose indices stand under `keys` in `Sample.meta`, if any."""
    used = [sample.regions[index].mask for key in keys for index in sample.meta.get(key, ())]
    return masks.union(used, sample.size) if used else None


def query_of(sample: Sample, conversation: Conversation, turn_index: int = -1) -> Query:
    """The query whose gold answer is the assistant turn at `turn_index`; earlier turns are those of the gold.

    Raises:
        ValueError: the turn is not an answer.
    """
    item = Item(sample, conversation, turn_index)
    end = turn_index % len(conversation.turns)
    # what a question names is gold, too
    turns = [replace(each, phrases=()) if each.role == "user" else each for each in conversation.turns[:end]]
    used: dict[int, int] = {}
    for turn in turns:
        for region in turn.regions:
            used.setdefault(region, len(used))
    turns = tuple(
        replace(
            turn,
            phrases=tuple(replace(p, regions=tuple(used[region] for region in p.regions)) for p in turn.phrases),
            mentions=tuple(replace(mention, region=used[mention.region]) for mention in turn.mentions),
        )
        for turn in turns
    )
    return Query(
        image=sample.image,
        prompt=turns if end > 1 else item.question.text,
        regions=tuple(replace(sample.regions[region], label="") for region in used),
        mentions=tuple(replace(mention, region=used[mention.region]) for mention in item.question.mentions),
        sample_id=sample.id,
    )


def predicted_mask(answer: Answer, size: tuple[int, int]) -> np.ndarray:
    """Union of all masks of an answer, `bool[H, W]`.

    Raises:
        ValueError: a mask is not of the image's size.
    """
    return masks.union([check_size(mask, size) for mask in predicted_masks(answer) if mask is not None], size)


def predicted_masks(answer: Answer) -> list[np.ndarray | None]:
    """The mask of every instance, in reading order; None where an instance has none."""
    return [instance.mask for phrase in answer.phrases for instance in phrase.instances]


def check_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask, if it is `bool[H, W]` of the image's size.

    Raises:
        ValueError: it is not.
    """
    if mask.shape != tuple(size) or mask.dtype != bool:
        raise ValueError(f"a predicted mask is {mask.dtype}{mask.shape}; bring it to image pixels, bool{tuple(size)}")
    return mask


def answered(predict: Predict, items: Iterable[Item], batch_size: int) -> Iterator[tuple[Item, Answer]]:
    """Ask in batches and pair every item with its answer.

    Raises:
        ValueError: the batch size is below 1, or the predictor gives another number of answers than it got queries.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    waiting = iter(items)
    while batch := list(islice(waiting, batch_size)):
        answers = list(predict([item.query for item in batch]))
        if len(answers) != len(batch):
            raise ValueError(
                f"the predictor gave {len(answers)} answers to {len(batch)} queries; give one for each, in order"
            )
        yield from zip(batch, answers, strict=True)


def blind(predict: Predict, seed: int = 0) -> Predict:
    """The same predictor with every image replaced by noise: what a model says that sees nothing it knows.

    That may be less than it could guess, see `swapped`. The noise is uniform, drawn from `seed` and the sample's id, so
    it does not depend on the order of the queries.
    """

    def predict_blind(queries: Sequence[Query]) -> Iterable[Answer]:
        return predict([replace(query, image=_noise(query, seed)) for query in queries])

    return predict_blind


def swapped(predict: Predict) -> Predict:
    """The same predictor with every image replaced by that of another sample: what is right of text and priors alone.

    It is the image of the next query of a batch that is of another sample and has an image of the same size; where
    there is none, noise.
    """

    def predict_swapped(queries: Sequence[Query]) -> Iterable[Answer]:
        return predict([replace(query, image=_other(queries, place)) for place, query in enumerate(queries)])

    return predict_swapped


def _other(queries: Sequence[Query], place: int) -> np.ndarray:
    query = queries[place]
    for other in (*queries[place + 1 :], *queries[:place]):
        if other.sample_id != query.sample_id and other.image.shape == query.image.shape:
            return other.image
    return _noise(query, 0)


def _noise(query: Query, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(query.sample_id.encode())])
    return rng.integers(0, 256, query.image.shape, dtype=np.uint8)
