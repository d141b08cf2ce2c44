"""transformers opens our folders after `import mglmm` alone, whichever of the two was imported first."""

import os
import subprocess
import sys

import pytest

OURS = "import mglmm"
THEIRS = "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor"
OPEN = """
import sys
assert not any(name in sys.modules for name in ("mglmm.model", "mglmm.processor"))
assert not any(type(finder).__name__ == "Watch" for finder in sys.meta_path)
for door in ({doors}):
    print(type(door.from_pretrained(sys.argv[1])))
from mglmm import MglmmConfig
from transformers.models.auto import configuration_auto
assert AutoConfig.from_pretrained(sys.argv[1]).__class__ is MglmmConfig
assert configuration_auto.CONFIG_MAPPING["mglmm"] is MglmmConfig
assert type(configuration_auto.__spec__.loader).__name__ == "SourceFileLoader"
"""
MODEL, PROCESSOR = "<class 'mglmm.model.Mglmm'>", "<class 'mglmm.processor.MglmmProcessor'>"


@pytest.mark.parametrize(
    ("imports", "doors", "found"),
    [
        ([OURS, THEIRS], "AutoProcessor, AutoModel, AutoModelForImageTextToText", [PROCESSOR, MODEL, MODEL]),
        ([THEIRS, OURS, OURS], "AutoModel, AutoProcessor", [MODEL, PROCESSOR]),
    ],
    ids=["ours first", "theirs first"],
)
def test_auto_classes_know_ours(tiny_checkpoint, imports, doors, found):
    code = "\n".join([*imports, OPEN.format(doors=doors)])
    command = [sys.executable, "-P", "-c", code, str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == found
