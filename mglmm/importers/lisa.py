"""LISA (v0, v1, v1-explanatory; 7B and 13B): LLaVA with one Linear as projector, CLIP at 224 px, SAM ViT-H.

Source: LISA `model/LISA.py`; https://huggingface.co/xinlai/LISA-7B-v1.
"""

from mglmm.importers.families import Family

FAMILY = Family(name="lisa", title="LISA", mark="model.visual_model.", sam="model.visual_model.", projector="linear")
