"""Pictures of what a model says while it trains: a few questions of the stage's own data, answered freely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mglmm.draw import contact_sheet
from mglmm.eval.protocol import query_of
from mglmm.generate import GenerationOptions
from mglmm.grounder import Grounder

if TYPE_CHECKING:
    from PIL import Image

    from mglmm.model import Mglmm
    from mglmm.processor import MglmmProcessor
    from mglmm_data.sample import Sample

MAX_TOKENS = 96


def draw_panel(model: Mglmm, processor: MglmmProcessor, samples: list[Sample]) -> Image.Image:
    """One answer for the first conversation of each sample, side by side; the model is left in training mode.

    Each sample has a conversation.
    """
    was_training = model.training
    try:
        grounder = Grounder(model, processor, GenerationOptions(max_new_tokens=MAX_TOKENS))
        answers = grounder.predict([query_of(sample, sample.conversations[0]) for sample in samples])
    finally:
        model.train(was_training)
    pictures = [(sample.conversations[0].task, answer.plot()) for sample, answer in zip(samples, answers, strict=True)]
    return contact_sheet(pictures, columns=min(4, len(pictures)))
