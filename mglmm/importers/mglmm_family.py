"""MGLMM as published: LLaVA-1.5's projector, CLIP at 336 px, SAM ViT-H, phrases in `<p> </p>`; it reads no regions.

Source: mglmm `model/mglmm.py`.
"""

from mglmm.importers.families import Family

FAMILY = Family(name="mglmm", title="MGLMM", mark="model.segment_encoder.", sam="model.segment_encoder.")
