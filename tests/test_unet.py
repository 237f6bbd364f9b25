import pytest
import torch
from torch.testing import assert_close

from instantgi.models.unet import ConvNeXtBlock, ConvNeXtUNet, copy_stages


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(**options) -> ConvNeXtUNet:
    torch.manual_seed(0)
    return ConvNeXtUNet(**{"width": 8, "dims": (8, 16), "depths": (1, 2), **options})


def test_published_sizes():
    unet = ConvNeXtUNet()
    assert count(unet.input) == 1_856
    assert count(unet.halvings) + count(unet.stages) == 87_591_040
    assert count(unet.up_steps) == 12_190_400
    assert count(unet.output) == 4_160


def test_block_is_that_of_timm():
    timm = pytest.importorskip("timm.models.convnext")
    theirs = timm.ConvNeXtBlock(12, ls_init_value=0.3)
    ours = ConvNeXtBlock(12)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 12, 9, 7)
    assert_close(ours(x), theirs(x))


def test_stages_of_timm_are_copied():
    timm = pytest.importorskip("timm.models.convnext")
    theirs = timm.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), num_classes=0)
    torch.nn.init.normal_(theirs.stages[1].blocks[0].gamma)
    unet = ConvNeXtUNet(8, (8, 16, 24, 32), (1, 2, 1, 1))
    taken = copy_stages(unet, theirs.state_dict())
    # every parameter of the stages and of the three halvings between them
    assert len(taken) == len(list(unet.stages.parameters())) + 3 * 4
    x = torch.randn(1, 16, 6, 5)
    assert_close(unet.stages[1](x), theirs.stages[1].blocks(x))
    y = torch.randn(1, 8, 6, 4)
    assert_close(unet.halvings[1](y), theirs.stages[1].downsample(y))
    with pytest.raises(ValueError, match="is .* in timm's model"):
        copy_stages(ConvNeXtUNet(8, (8, 8, 8, 8), (1, 1, 1, 1)), theirs.state_dict())
    with pytest.raises(ValueError, match="has no stages.0.1"):
        copy_stages(ConvNeXtUNet(8, (8, 16, 24, 32), (2, 2, 1, 1)), theirs.state_dict())
    with pytest.raises(ValueError, match="has no stages.0.0"):
        copy_stages(unet, {})


@pytest.mark.parametrize("height, width", [(1, 1), (3, 2), (16, 16), (17, 13), (31, 48)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_any_size_gives_a_feature_everywhere(height, width, stride):
    unet = small(stride=stride).eval()
    features = unet(torch.rand(2, 3, height, width))
    assert features.shape == (2, 8, -(-height // stride), -(-width // stride))
    assert features.isfinite().all()


def test_layer_norm_lets_a_picture_be_cut():
    unet = small(norm="layer").eval()
    image = torch.rand(1, 3, 64, 160)
    with torch.no_grad():
        whole, part = unet(image), unet(image[..., :96])
    # 7x7 in three blocks at 1/2 and 1/4, and the 3x3 around them, see less than 48 pixels far
    assert_close(part[..., :48], whole[..., :48], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_pictures_of_a_batch_do_not_matter_to_each_other(norm):
    unet = small(norm=norm).train()
    images = torch.rand(2, 3, 16, 16)
    assert_close(unet(images)[:1], unet(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"norm": "magic"}, 'norm must be one of batch, group, layer, got "magic"'),
        ({"depths": (1,)}, "dims and depths must be of one length"),
        ({"stride": 0}, "stride at least 1"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        small(**options)
