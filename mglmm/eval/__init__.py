"""Scores of free-running answers: a predictor goes in, a `Report` comes out; no language model is seen here."""

from mglmm.eval.grounding import Grounding
from mglmm.eval.iou import BoxAccuracy, RefSeg
from mglmm.eval.metric import Metric
from mglmm.eval.parts import PartsIou, mean_mask_baseline, parts_report, score_parts
from mglmm.eval.protocol import Item, Predict, Query, blind, query_of
from mglmm.eval.report import Report, Row
from mglmm.eval.text import ExactMatch, RegionNaming, Vocabulary

__all__ = [
    "BoxAccuracy",
    "ExactMatch",
    "Grounding",
    "Item",
    "Metric",
    "PartsIou",
    "Predict",
    "Query",
    "RefSeg",
    "RegionNaming",
    "Report",
    "Row",
    "Vocabulary",
    "blind",
    "mean_mask_baseline",
    "parts_report",
    "query_of",
    "score_parts",
]
