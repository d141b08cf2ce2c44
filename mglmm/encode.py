"""A sample to rows of ids, and rows to a batch. The same `encode` serves training and inference.

Labels, `[SEG]` targets and given regions are recorded while the ids are built, never counted again afterwards.
With `share_prefix` the conversations of an image stand in one row behind its tokens; they do not see each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mglmm.formats import PromptFormat, Tokens, write_answer, write_prefix, write_question
from mglmm.inputs import IGNORE, PADDING, PREFIX
from mglmm.pieces import fresh_tokens
from mglmm.tokens import LiteralTokenizer, SpecialIds
from mglmm_data.sample import Mention, Region, Sample, Turn


@dataclass(frozen=True, eq=False)
class Row:
    """One row of tokens and what its markers stand for (indices of `Sample.regions`)."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[int]
    given: list[int]
    spelt: list[tuple[int, int]]  # (place in ids, region) of the boxes that are spelt
    named: list[tuple[int, int]]  # (place in ids, region) of the last token of a name in a question


@dataclass(frozen=True)
class Encoder:
    """How ids are made for one model: its tokenizer, format, and number of image tokens."""

    literal: LiteralTokenizer
    ids: SpecialIds
    form: PromptFormat
    num_image: int

    def prefix(self) -> Tokens:
        """The tokens all prompts about an image begin with."""
        out = fresh_tokens(self.form)
        write_prefix(out, self.form, self.literal, self.ids, self.num_image)
        return out

    def prompt(self, turns: Sequence[Turn], regions: Sequence[Region]) -> Tokens:
        """Turns that end with a question, up to where the answer begins, without the image prefix."""
        out = fresh_tokens(self.form, behind_image=True)
        for number, turn in enumerate(turns):
            if turn.role == "user":
                write_question(out, turn, self.form, self.literal, self.ids, first=number == 0)
            else:
                write_answer(out, turn, regions, self.literal, self.ids, tagged=self.form.tagged)
        out.close()
        return out

    def rows(self, sample: Sample, share_prefix: bool, max_length: int) -> tuple[list[Row], int]:
        """Training rows of a sample, and how many conversations did not fit into `max_length` tokens."""
        prefix = self.prefix()
        groups: list[list[Tokens]] = []
        length, left_out = 0, 0
        for conversation in sample.conversations:
            tokens = self.prompt(conversation.turns, sample.regions)
            if len(prefix.ids) + len(tokens.ids) > max_length:
                left_out += 1
                continue
            if not share_prefix or not groups or length + len(tokens.ids) > max_length:
                groups.append([])
                length = len(prefix.ids)
            groups[-1].append(tokens)
            length += len(tokens.ids)
        return [join(prefix, group) for group in groups], left_out


def join(prefix: Tokens, conversations: Sequence[Tokens]) -> Row:
    """The prefix once, the conversations behind it with restarted positions."""
    count = len(prefix.ids)
    row = Row(list(prefix.ids), [IGNORE] * count, list(range(count)), [PREFIX] * count, [], [], [], [])
    for number, tokens in enumerate(conversations, 1):
        row.spelt.extend((len(row.ids) + place, region) for place, region in tokens.spelt)
        row.named.extend((len(row.ids) + place, region) for place, region in tokens.named)
        row.ids.extend(tokens.ids)
        row.labels.extend(i if on else IGNORE for i, on in zip(tokens.ids, tokens.labelled, strict=True))
        row.positions.extend(range(count, count + len(tokens.ids)))
        row.segments.extend([number] * len(tokens.ids))
        row.targets.extend(tokens.targets)
        row.given.extend(tokens.given)
    return row


class Padded(TypedDict):
    """The token fields of a `Batch`, int64[R, L] each."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segments: Tensor


def pad_rows(rows: Sequence[Row], pad: int) -> Padded:
    """Rows to right-padded tensors."""

    def padded(values: Sequence[list[int]], fill: int) -> Tensor:
        return pad_sequence([torch.tensor(each) for each in values], batch_first=True, padding_value=fill)

    return Padded(
        input_ids=padded([row.ids for row in rows], pad),
        labels=padded([row.labels for row in rows], IGNORE),
        position_ids=padded([row.positions for row in rows], 0),
        segments=padded([row.segments for row in rows], PADDING),
    )


def visible(segments: Tensor) -> Tensor:
    """bool[R, 1, L, L]: what each token sees: earlier tokens of the image prefix and of its own conversation.

    A padded token sees itself alone, so that no row of the softmax is empty.
    """
    length = segments.shape[1]
    order = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    seen = order & ((key == PREFIX) | (key == query)) & (key != PADDING)
    return (seen | torch.eye(length, dtype=torch.bool, device=segments.device))[:, None]


def user_turn(prompt: str, regions: Sequence[Region]) -> Turn:
    """A question as typed: `[region 0]` is resolved when regions are given, otherwise it is text.

    Regions nobody mentions are mentioned at the end, so that a plain "What is this?" works with one region.

    Raises:
        ValueError: the prompt is empty, or names a region that was not given.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty; ask something, for example: Describe the image.")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ValueError(f"the prompt {prompt!r} is not text in UTF-8; type it again, or check the terminal's encoding")
    if not regions:
        return Turn("user", prompt)
    text, mentions, at = "", [], 0
    for match in re.finditer(r"\[region (\d+)\]", prompt):
        index = int(match.group(1))
        if index >= len(regions):
            raise ValueError(f"the prompt speaks of {match.group()}, but {len(regions)} region(s) are given, from 0")
        text += prompt[at : match.start()]
        mentions.append(Mention(len(text), len(text) + len("this region"), index))
        text += "this region"
        at = match.end()
    text += prompt[at:]
    spoken = {mention.region for mention in mentions}
    for index in range(len(regions)):
        if index not in spoken:
            found = re.search(r"\b(this|the) region\b", text) if not mentions else None
            if found:
                mentions.append(Mention(found.start(), found.end(), index))
            else:
                text = text.rstrip() + " "
                mentions.append(Mention(len(text), len(text) + len("this region"), index))
                text += "this region"
    return Turn("user", text, mentions=tuple(mentions))
