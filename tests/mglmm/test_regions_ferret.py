# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Ferret's sampler against what upstream recorded (`shared/golden/ferret`), its geometry, and a checkpoint's."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from mglmm.importers import convert, ferret
from mglmm.regions_ferret import (
    Draws,
    FerretSampler,
    FerretSizes,
    farthest,
    nearest,
    read_points,
    region_points,
)
from mglmm_data import masks

CASES = ["real_hparams_mean", "real_hparams_max", "tiny_mean", "real_hparams_mean_bf16"]


@dataclass
class Golden:
    sampler: FerretSampler
    features: torch.Tensor  # float[3, C, h, w]
    image: torch.Tensor  # int64[7]
    masks: list[torch.Tensor]  # bool[H, W] each
    recorded: Draws
    wanted: torch.Tensor
    seed: int
    dtype: torch.dtype


@pytest.fixture(scope="module")
def golden(shared):
    """A function from a case's name to its sampler, inputs and outputs."""
    folder = shared("golden", "ferret")
    facts, tensors = json.loads((folder / "meta.json").read_text())["cases"], load_file(folder / "golden.safetensors")

    def load(name):
        case = facts[name]
        config, dtype = case["config"], getattr(torch, case["param_dtype"].removeprefix("torch."))
        sizes = FerretSizes.published(
            config["pooler_mode"],
            str(dtype).removeprefix("torch."),
            num_points=config["num_init_point"],
            anchors=tuple(config["num_sub_point"]),
            neighbours=tuple(config["num_neighbor"]),
        )
        sampler = FerretSampler(config["input_dim"], config["output_dim"], sizes)
        state = load_file(folder / f"{name.removesuffix('_bf16')}.state.safetensors")
        sampler.load_state_dict({ferret.from_upstream(key): value for key, value in state.items()})
        side, anchors = case["feature_map_hw"], [tensors[f"{name}.stage{i}.fps_idx"].long() for i in range(2)]
        regions = case["regions"]
        return Golden(
            sampler.to(dtype).eval(),
            tensors[f"{name}.feature_map"].transpose(1, 2).reshape(3, -1, side, side),
            torch.tensor([number for number, own in enumerate(regions) for _ in own]),
            [torch.from_numpy(masks.decode(r["rle_of_[w,h]_array"])).T for own in regions for r in own],
            Draws(tensors[f"{name}.stage0.points_in"].float(), anchors=tuple(anchors)),
            torch.cat([tensors[f"{name}.out.{i}"] for i, none in enumerate(case["out_is_none"]) if not none]),
            case["torch_manual_seed_before_forward"],
            dtype,
        )

    return load


def tolerance(case):
    return 2**-5 if case.dtype == torch.bfloat16 else 1e-5  # 4 roundings of bfloat16


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_recorded_points_give_the_recorded_features(golden, name):
    case = golden(name)
    found = case.sampler.vectors(case.features, case.image, case.recorded)
    assert found.dtype == case.dtype
    torch.testing.assert_close(found, case.wanted, rtol=tolerance(case), atol=tolerance(case))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_recorded_seed_gives_everything_from_the_masks(golden, name):
    """Upstream draws points region by region, then all starts of a stage, from one generator."""
    case = golden(name)
    sizes, generator = case.sampler.sizes, torch.Generator().manual_seed(case.seed)
    points = torch.stack([region_points(mask, sizes, generator) for mask in case.masks])
    rounded = points.to(case.dtype).float()
    assert torch.equal(rounded, case.recorded.points)
    counts = (sizes.num_points, *sizes.anchors[:-1])
    starts = tuple(torch.randint(0, count, (len(points),), generator=generator) for count in counts)
    assert torch.equal(farthest(points.to(case.dtype), sizes.anchors[0], starts[0]), case.recorded.anchors[0])
    found = case.sampler.vectors(case.features, case.image, Draws(points, starts))
    torch.testing.assert_close(found, case.wanted, rtol=tolerance(case), atol=tolerance(case))


SMALL = FerretSizes(num_points=24, anchors=(8, 3), neighbours=(4, 2))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return FerretSampler(6, 5, SMALL).eval(), [torch.randn(3, 6, 4, 4)]


def coverage(*regions):
    """float[G, 16, 16] of regions y0, y1, x0, x1."""
    out = torch.zeros(len(regions), 16, 16)
    for each, (y0, y1, x0, x1) in zip(out, regions, strict=True):
        each[y0:y1, x0:x1] = 1
    return out


def test_a_region_is_the_same_in_every_batch(small):
    sampler, maps = small
    regions = coverage((0, 5, 2, 9), (7, 8, 7, 8), (3, 16, 0, 16))
    image = torch.tensor([2, 0, 0])
    together = sampler(maps, regions, image)
    for number in (2, 0, 1):
        alone = sampler([maps[0][image[number]][None]], regions[number][None], torch.tensor([0]))
        torch.testing.assert_close(together[number], alone[0])
    other = sampler(maps, regions, torch.tensor([1, 0, 0]))
    assert not torch.allclose(together[0], other[0], atol=1e-3)
    reseeded = FerretSampler(6, 5, SMALL.model_copy(update={"seed": 1})).eval()
    reseeded.load_state_dict(sampler.state_dict())
    assert not torch.equal(reseeded(maps, regions, image)[2], together[2])


def test_training_draws_anew_from_the_global_generator(small):
    sampler = FerretSampler(6, 5, SMALL).train()
    maps, region, image = small[1], coverage((0, 16, 0, 16)), torch.tensor([0])
    torch.manual_seed(7)
    first, second = sampler(maps, region, image), sampler(maps, region, image)
    torch.manual_seed(7)
    assert torch.equal(sampler(maps, region, image), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_every_layer_learns_and_no_region_is_no_break(small, pooling):
    sampler, maps = FerretSampler(6, 5, SMALL.model_copy(update={"pooling": pooling})), small[1]
    features = maps[0].clone().requires_grad_()
    sampler([features], coverage((2, 9, 1, 12)), torch.tensor([1])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in sampler.parameters())
    assert features.grad is not None
    assert features.grad[1].abs().sum() > 0
    assert features.grad[0].abs().sum() == 0
    sampler.zero_grad()
    none = sampler(maps, torch.zeros(0, 16, 16), torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 5)
    none.sum().backward()  # every parameter takes part, as distributed training needs it
    assert all(parameter.grad is not None for parameter in sampler.parameters())


def test_features_are_read_where_the_region_is():
    """A map whose two channels are x and y of each place; half a cell in from the border it is exact."""
    cells = (torch.arange(8) + 0.5) / 8
    ramp = torch.stack([cells.expand(8, 8), cells[:, None].expand(8, 8)])[None]
    mask = torch.zeros(40, 80, dtype=torch.bool)
    mask[8:10, 60:70] = True  # y 0.2..0.25, x 0.75..0.875
    sizes = FerretSizes(num_points=20, anchors=(4,), neighbours=(2,))
    points = region_points(mask, sizes, torch.Generator().manual_seed(0))[None]
    assert points.amin(1).tolist() == [[pytest.approx(60.5 / 80), pytest.approx(8.5 / 40)]]
    image = torch.tensor([0])
    torch.testing.assert_close(read_points(ramp, image, points, sizes), points)
    transposed = read_points(ramp, image, points, sizes.model_copy(update={"transpose_compat": True}))
    torch.testing.assert_close(transposed, points.flip(-1))
    corners = FerretSizes.published(num_points=20, anchors=(4,), neighbours=(2,))
    points = region_points(mask, corners, torch.Generator().manual_seed(0))
    assert points.amin(0).tolist() == [pytest.approx(60 / 80), pytest.approx(8 / 40)]


def test_farthest_points_and_nearest_neighbours_are_what_the_loops_say():
    torch.manual_seed(3)
    points = torch.rand(2, 30, 2)
    anchors = farthest(points, 6, torch.tensor([4, 11]))
    assert anchors[:, 0].tolist() == [4, 11]
    for own, chosen in zip(points, anchors, strict=True):
        for step in range(1, 6):
            gaps = [min(float((point - own[index]).norm()) for index in chosen[:step]) for point in own]
            assert gaps[int(chosen[step])] == pytest.approx(max(gaps))
    picked = points.gather(1, anchors[..., None].expand(-1, -1, 2))
    found = nearest(points, picked, 5, exact=True)
    distance = torch.cdist(picked, points)
    torch.testing.assert_close(distance.gather(2, found), distance.sort(-1).values[..., :5])
    assert torch.equal(found[..., 0], anchors)
    assert torch.equal(nearest(points, picked, 5, exact=False).sort(-1).values, found.sort(-1).values)


def test_ties_go_to_the_earlier_point():
    points = torch.tensor([[[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25]]])
    assert nearest(points, points[:, :1], 3, exact=True).tolist() == [[[0, 1, 2]]]


def test_bf16_loses_the_neighbours_of_a_small_region():
    """Why `knn: exact` is the default: an 11 x 11 px region of a photograph keeps few of its true neighbours."""
    mask = torch.zeros(480, 640, dtype=torch.bool)
    mask[300:311, 400:411] = True
    points = region_points(mask, FerretSizes(), torch.Generator().manual_seed(0))[None]
    anchors = points[:, :32]
    true = nearest(points, anchors, 24, exact=True)
    kept = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = nearest(points.to(dtype), anchors.to(dtype), 24, exact=False)
        near = torch.cdist(anchors, points.float()).gather(2, found).mean()
        kept[dtype] = float(near / torch.cdist(anchors, points).gather(2, true).mean())
    assert kept[torch.float32] < 1.05
    assert kept[torch.bfloat16] > 2


@pytest.mark.parametrize("region", [(7, 8, 3, 4), (0, 1, 0, 1), (15, 16, 15, 16)])
def test_one_pixel_is_enough(small, region):
    found = small[0](small[1], coverage(region) * 0.1, torch.tensor([0]))  # and thinner than a cell of the grid
    assert found.isfinite().all()
    assert found.shape == (1, 5)


def test_an_empty_region_is_told(small):
    with pytest.raises(ValueError, match="region 1 is empty: the model sees no pixel of it; give a mask"):
        small[0](small[1], coverage((0, 2, 0, 2), (0, 0, 0, 0)), torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"anchors": (8,)}, "anchors has 1 stages, neighbours 2; give one number for each"),
        ({"num_points": 16}, "a stage of 16 points cannot give 128 anchors with 24 neighbours"),
        ({"pooling": "sum"}, "Input should be 'max' or 'mean'"),
    ],
)
def test_sizes_that_do_not_fit_are_told(sizes, message):
    with pytest.raises(ValueError, match=message):
        FerretSizes(**sizes)


# From a checkpoint


@pytest.fixture
def published(tmp_path, shared):
    """A folder as Ferret is published, tiny: config.json, a few of LLaVA's keys, the sampler under its prefix."""
    folder = tmp_path / "ferret"
    folder.mkdir()
    state = load_file(shared("golden", "ferret", "real_hparams_max.state.safetensors"))
    tensors = {ferret.MARK + key: value for key, value in state.items()}
    save_file({**tensors, "model.embed_tokens.weight": torch.zeros(4, 24)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "ferret", "sampler_pooler_mode": "max"}))
    return folder


def test_convert_takes_the_sampler_and_says_what_it_leaves(published, command, golden):
    out = command("convert", published, "sampler")
    assert out.code == 0, out.err
    assert "ferret: 16 tensors taken" in out.out
    assert "left out: 1 (of Ferret's language model and projector, which know no masks" in out.out
    assert "region_encoder: sampler" in out.out
    case = golden("real_hparams_max")
    found = ferret.load_sampler("sampler")
    assert found.sizes == case.sampler.sizes
    with torch.no_grad():
        vectors = found.vectors(case.features, case.image, case.recorded)
    torch.testing.assert_close(vectors, case.wanted, rtol=1e-5, atol=1e-5)


def test_flags_are_kept_with_the_sampler(shared, command):
    file = shared("golden", "ferret", "tiny_mean.state.safetensors")
    sizes = ["num_points=48", "anchors=[12, 4]", "neighbours=[5, 5]", "transpose_compat=false", "knn=bfloat16"]
    options = [word for size in ["pooling=mean", *sizes] for word in ("--region", size)]
    done = command("convert", file, "out", *options)
    assert done.code == 0, done.err
    found = ferret.load_sampler("out").sizes
    assert (found.transpose_compat, found.knn, found.pooling, found.anchors) == (False, "bfloat16", "mean", (12, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the weights do not tell how the sampler pools"),
        (["pooling=mean"], "2 stages, the last with 4 anchors; anchors (128, 32) do not fit"),
        (["pooling=most", "anchors=[12, 4]"], "pooling: Input should be 'max' or 'mean' (found 'most')"),
        (["poling=max", "pooling=max", "anchors=[12, 4]"], "unknown key 'poling'; did you mean 'pooling'?"),
    ],
)
def test_what_the_file_does_not_tell_is_asked_for(shared, command, options, message):
    file = shared("golden", "ferret", "tiny_mean.state.safetensors")
    done = command("convert", file, "out", *[word for each in options for word in ("--region", each)])
    assert done.code != 0
    assert message in " ".join(done.err.split())


def test_keys_that_do_not_fit_are_listed(published):
    state = load_file(published / "model.safetensors")
    del state[f"{ferret.MARK}dim_projector.bias"]
    state[f"{ferret.MARK}agg_projector_list.0.norm.weight"] = torch.zeros(7)
    state[f"{ferret.MARK}surprise.weight"] = torch.zeros(1)
    save_file(state, published / "model.safetensors")
    with pytest.raises(ValueError, match="keys do not fit") as caught:
        ferret.convert(published, published.parent / "out")
    message = str(caught.value)
    assert "3 keys do not fit" in message
    for word in ("missing project.bias", "extra model.region_geo_sampler.surprise.weight", "is (7,), expected (16,)"):
        assert word in message
    assert not (published.parent / "out").exists()


def test_the_wrappers_of_trainers_are_seen_through(published, tmp_path):
    state = load_file(published / "model.safetensors")
    save_file({f"module.{key}": value for key, value in state.items()}, published / "model.safetensors")
    assert convert(published, tmp_path / "out").taken == 16


def test_other_files_are_refused(tmp_path, published):
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no sampler of Ferret .*begin with model.*; give a Ferret checkpoint"):
        ferret.convert(tmp_path / "other.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="exists and is no region encoder of ours; give a new folder"):
        ferret.convert(published, published)
    with pytest.raises(ValueError, match="is no region encoder of ours; write one with mglmm convert"):
        ferret.load_sampler(published)
