"""The list of data sets names every type of source and every benchmark there is."""

import re
from pathlib import Path

from mglmm_data.benchmarks import BENCHMARKS
from mglmm_data.grit_build import AMOUNTS
from mglmm_data.layouts import ENTRIES
from mglmm_data.registry import SOURCES

README = (Path(__file__).parents[2] / "datasets" / "README.md").read_text(encoding="utf-8")


def test_every_source_and_benchmark_has_its_line():
    for name in (*SOURCES, *BENCHMARKS):
        assert f"| `{name}` |" in README, name
    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert listed == {*SOURCES, *BENCHMARKS}


def test_every_name_of_the_layouts_is_listed():
    listed = README[README.index("The names:") : README.index("## Evaluation inputs")]
    for name in ENTRIES:
        assert f"`{name}`" in listed, name


def test_every_kind_of_the_grit_style_set_is_explained():
    for kind in AMOUNTS:
        assert kind in README, kind
