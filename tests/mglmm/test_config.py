"""Configs: every mistake is one sentence with the near miss."""

import pytest
from pydantic import BaseModel

from mglmm.build import ModelConfig
from mglmm.config import (
    CONFIGS,
    LoraConfig,
    TrainConfig,
    find_config,
    load_config,
    override,
    parse,
    read_yaml,
    runs_dir,
)

STAGE = {"name": "one", "max_steps": 2, "sources": {"world": {"type": "world"}}, "train": {"projector": 1}}
RECIPE = {"stages": [STAGE, {**STAGE, "name": "two", "kind": "pixels", "sources": {}}]}


def refused(data, model: type[BaseModel] = TrainConfig):
    with pytest.raises(ValueError) as error:
        parse(model, data, "my.yaml")
    text = str(error.value)
    assert text.startswith("my.yaml: ") and "\n" not in text
    return text


def test_a_recipe_is_read_and_frozen():
    config = parse(TrainConfig, RECIPE, "my.yaml")
    assert [stage.name for stage in config.stages] == ["one", "two"]
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sede=1", "unknown key 'sede'; did you mean 'seed'?"),
        ("stages.0.max_step=1", "unknown key 'stages.0.max_step'; did you mean 'max_steps'?"),
        ("stages.one.losses={dise: 1}", "unknown key 'stages.0.losses.dise'; did you mean 'dice'?"),
        ("lora={rnk: 2}", "unknown key 'lora.rnk'; did you mean 'rank'?"),
        ("zzzzzz=1", "unknown key 'zzzzzz'; known keys: "),
        ("stages.0.max_steps=0", "stages.0.max_steps: Input should be greater than 0 (found 0)"),
        ("stages.0.optim=sgd", "stages.0.optim: Input should be 'adamw' or 'muon' (found 'sgd')"),
        ("stages.1.name=one", "stages need different names, at least one; got ['one', 'one']"),
        ("stages=[]", "stages need different names, at least one; got []"),
        ("stages.0.sources={}", "stage 'one' has no sources; name at least one"),
        ("stages.0.weights={moon: 2}", "weights name ['moon'], which are not among the sources ['world']"),
        ("lora.rank=0", "lora.rank: rank is 0; to train without adapters set lora: null"),
    ],
)
def test_mistakes_are_named(key, message):
    assert message in refused(override(RECIPE, [key]))


def test_several_mistakes_are_told_together():
    text = refused({"sede": 1, "loging_steps": 3})
    assert "did you mean 'seed'" in text and "did you mean 'logging_steps'" in text and "'stages' is missing" in text


def test_model_configs_name_near_misses_too():
    assert "unknown key 'small.dpth'; did you mean 'depth'?" in refused({"small": {"dpth": 2}}, ModelConfig)


@pytest.mark.parametrize(
    ("text", "walk", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("seed=1e-3", ("seed",), "1e-3"),
        ("bf16=true", ("bf16",), True),
        ("stages.0.max_steps=9", ("stages", 0, "max_steps"), 9),
        ("stages.two.max_steps=9", ("stages", 1, "max_steps"), 9),
        ("stages.one.train.encoder=0.5", ("stages", 0, "train", "encoder"), 0.5),
        ("stages.0.sources.world.size=[64, 96]", ("stages", 0, "sources", "world", "size"), [64, 96]),
        ("lora.rank=4", ("lora", "rank"), 4),
        ("output_dir=", ("output_dir",), None),
        ("model=a=b", ("model",), "a=b"),
    ],
)
def test_overrides(text, walk, value):
    out = override(RECIPE, [text])
    for step in walk:
        out = out[step]
    assert out == value
    assert RECIPE["stages"][0]["max_steps"] == 2  # a copy was changed


def test_a_whole_stage_is_replaced_by_name_or_number():
    for place in ("two", "1"):
        assert override(RECIPE, [f"stages.{place}={{name: new}}"])["stages"][1] == {"name": "new"}


def test_learning_rates_may_be_written_with_an_exponent():
    config = parse(TrainConfig, override(RECIPE, ["stages.0.learning_rate=1e-3"]), "my.yaml")
    assert config.stages[0].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "'seed' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("stages.7.name=x", "'7' is neither an index below 2 nor one of ['one', 'two']"),
        ("stages.three=x", "'three' is neither an index below 2 nor one of ['one', 'two']"),
        ("stages.0.name.x=1", "'x' asks for a key of 'one', which has none"),
        ("stages.0.name.x.y=1", "'x' asks for a key of 'one', which has none"),
        ("seed=[1", "override 'seed=[1': "),
    ],
)
def test_bad_overrides(text, message):
    with pytest.raises(ValueError) as error:
        override(RECIPE, [text])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train/world", "train/world.yaml", "configs/train/world.yaml", "configs/train/world"])
def test_files_are_found_by_short_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == find_config(CONFIGS / "train/world.yaml") == CONFIGS / "train" / "world.yaml"


def test_a_bare_name_is_of_one_config_or_of_the_room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("carparts") == find_config("carparts.yaml") == CONFIGS / "train" / "carparts.yaml"
    for name in ("world", "world.yaml"):
        assert find_config(name, "train").parent.name == "train" and find_config(name, "eval").parent.name == "eval"
        with pytest.raises(ValueError, match=rf"{name} is the name of several configs; .*eval/world.yaml, train/world"):
            find_config(name)
    assert load_config(TrainConfig, "world").stages and load_config(ModelConfig, "bundled").small
    (tmp_path / "world.yaml").write_text("seed: 1")
    assert find_config("world", "train").resolve() == tmp_path / "world.yaml", "a file that is there comes first"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [1", "is not readable as YAML"), (b"- 1", "holds a list; a config is a mapping"), (b"\xff\xfe\x00", "YAML")],
)
def test_files_that_are_no_config(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "x.yaml")


def test_missing_file_names_the_near_one():
    with pytest.raises(
        ValueError, match=r"no config at configs/train/wrld.yaml; did you mean configs/train/world.yaml"
    ):
        read_yaml("configs/train/wrld.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train/wolrd", "did you mean configs/train/world.yaml?"),
        ("carpart", "did you mean configs/train/carparts.yaml?"),
        ("recipes/mine.yml", "did you mean recipes/mine.yaml?"),
        ("qqq", "known: configs/eval/camvid.yaml, configs/eval/coco_mini.yaml, "),
    ],
)
def test_a_mistyped_name_gets_what_it_may_have_meant(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("seed: 1")
    with pytest.raises(ValueError) as error:
        find_config(name)
    assert str(error.value).startswith(f"no config at {name}; {hint}")


def test_environment_variables_in_values(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    path.write_text("a: {b: ['${MGLMM_TEST_HERE}/x', '${MGLMM_TEST_AWAY:-/there}/y', 3]}")
    monkeypatch.setenv("MGLMM_TEST_HERE", "/here")
    assert read_yaml(path) == {"a": {"b": ["/here/x", "/there/y", 3]}}
    monkeypatch.delenv("MGLMM_TEST_HERE")
    with pytest.raises(ValueError, match="MGLMM_TEST_HERE.*is not set; export"):
        read_yaml(path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_ship_are_valid(path):
    config = load_config(TrainConfig, path)
    assert config.stages


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_models_that_ship_are_valid(path):
    load_config(ModelConfig, path)


def test_runs_live_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("MGLMM_RUNS", str(tmp_path))
    assert runs_dir() == tmp_path
    monkeypatch.delenv("MGLMM_RUNS")
    assert CONFIGS.parent not in runs_dir().parents


def test_lora_defaults_are_the_published_ones():
    assert LoraConfig() == LoraConfig(rank=8, alpha=16, dropout=0.05, targets=("q_proj", "v_proj"))
