import json

import pytest
import torch
from torch.testing import assert_close

import instantgi
from instantgi.models import InstantGI, shipped
from instantgi.models import instantgi as module
from instantgi.render import rasterize

SMALL = {"width": 8, "dims": (8, 16), "depths": (1, 1), "norm": "layer", "hidden": 16}


def network(**options) -> InstantGI:
    torch.manual_seed(0)
    return InstantGI(**{**SMALL, "fields": "local", "stride": 2, **options}).eval()


def picture(height: int = 50, width: int = 63, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(1))


def test_the_published_network_has_its_number_of_parameters():
    assert sum(p.numel() for p in InstantGI.of_size("base").parameters()) == 99_954_238


@pytest.mark.parametrize("fields", ["published", "local", "ellipse"])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 30), (20, 3), (50, 63)])
def test_any_picture_becomes_gaussians(fields, height, width):
    stride = 2 if fields == "local" else 1
    with torch.no_grad():
        gaussians = network(fields=fields, stride=stride)(picture(height, width))
    drawn = rasterize(gaussians, height, width)
    assert len(gaussians) >= 2 and drawn.isfinite().all()
    assert (gaussians.cholesky[:, [0, 2]] > 0).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colors_have_the_channels_of_the_picture(channels):
    with torch.no_grad():
        assert network()(picture(channels=channels)).colors.shape[1] == channels


@pytest.mark.parametrize("num", [2, 100, 300])
def test_the_wanted_number_is_an_upper_limit(num):
    with torch.no_grad():
        made = len(network()(picture(), num_gaussians=num))
    assert 0.8 * num <= made <= num


def test_smaller_cells_make_more_gaussians():
    with torch.no_grad():
        counts = [len(network()(picture(90, 120), patch_size=k)) for k in (3, 4, 5)]
    assert counts[0] > 1.3 * counts[1] > 1.3**2 * counts[2]


def test_the_same_picture_gives_the_same_gaussians():
    with torch.no_grad():
        first, second = network()(picture()), network()(picture())
    for a, b in zip((first.means, first.cholesky), (second.means, second.cholesky), strict=True):
        assert torch.equal(a, b)


def test_looks_bring_the_picture_closer():
    model = network(looks=3)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12), scale_factor=6)[0]
    with torch.no_grad():
        stages = model.predict(image[None])[0].stages
        fewer = model.predict(image[None], looks=1)[0].stages
    errors = [float((rasterize(g, 54, 72) - image).square().mean()) for g in stages]
    assert len(stages) == 4 and errors == sorted(errors, reverse=True)
    assert len(fewer) == 2 and torch.equal(fewer[1].means, stages[1].means)
    with pytest.raises(ValueError, match='looks need fields "local", got "ellipse"'):
        network(fields="ellipse", looks=1)


def test_pictures_of_a_batch_are_predicted_like_alone():
    images = torch.stack([picture(), picture().flip(2)])
    model = network()
    with torch.no_grad():
        both = model.predict(images, [100, None])
        alone = [model.predict(images[:1], 100)[0], model.predict(images[1:])[0]]
    for a, b in zip(both, alone, strict=True):
        assert_close(a.gaussians().means, b.gaussians().means, rtol=0, atol=1e-3)


def test_rendering_trains_all_but_the_map():
    model = network().train()
    prediction = model.predict(picture()[None])[0]
    rasterize(prediction.gaussians(), 50, 63).square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    of_the_map = [grad for name, grad in grads.items() if name.startswith("position_field")]
    assert of_the_map and all(grad is None for grad in of_the_map)
    for name in ("unet.input.0.weight", "fields.alone.0.weight", "fields.out.weight"):
        grad = grads[name]
        assert grad is not None and grad.isfinite().all()


def test_an_untrained_map_follows_the_gradient():
    image = torch.full((3, 40, 60), 0.3)
    image[:, :, 30:] = 0.7
    with torch.no_grad():
        position_map = network(position="gradient").encode(image[None])[1][0]
    assert float(position_map[:, 30].min()) > 5 * float(position_map[:, 5].max())
    with pytest.raises(ValueError, match='position must be field or gradient, got "magic"'):
        network(position="magic")


def test_large_pictures_are_encoded_in_tiles(monkeypatch):
    model, images = network(), picture(150, 203)[None]
    with torch.no_grad():
        features, maps = model.encode(images)
        monkeypatch.setattr(module, "TILE", 64)
        monkeypatch.setattr(module, "HALO", 48)
        tiled, tiled_maps = model.encode(images)
    assert_close(tiled, features, rtol=1e-3, atol=1e-4)
    assert_close(tiled_maps, maps, rtol=1e-3, atol=1e-4)


def test_a_saved_network_comes_back(tmp_path):
    model = network()
    model.save_pretrained(tmp_path / "mine")
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["hidden"] == 16
    again = instantgi.InstantGI.from_pretrained(tmp_path / "mine")
    with torch.no_grad():
        assert torch.equal(again(picture()).means, model(picture()).means)


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(OSError, match='there is no network "huge"'):
        InstantGI.from_pretrained("huge")
    with pytest.raises(ValueError, match='size must be one of base, small, tiny, got "huge"'):
        InstantGI.of_size("huge")


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="fields must be published, local or ellipse"):
        InstantGI(**{**SMALL, "fields": "magic"})


def test_the_package_knows_no_other_names():
    with pytest.raises(AttributeError, match="Instant"):
        instantgi.Instant  # noqa: B018


@pytest.mark.parametrize("name", shipped())
def test_shipped_networks_are_small_and_described(name):
    folder = module.WEIGHTS / name
    assert (folder / "model.safetensors").stat().st_size <= 20e6
    card = (folder / "README.md").read_text()
    for said in ("Data", "Config", "Commit", "Device", "Hours", "Kodak"):
        assert said in card, said
