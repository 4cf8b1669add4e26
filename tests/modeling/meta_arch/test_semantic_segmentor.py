"""Inference in windows, at several scales and mirrored; padding of trainings; refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.modeling.meta_arch import SemanticSegmentor
from piip.modeling.sem_seg import SemanticFPNHead


class Convs(Backbone):
    """Two maps of convolutions, which see whether they are at a border."""

    size_divisibility = 8

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.first(image)
        return {"p2": x, "p3": self.second(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{k}": ShapeSpec(channels=8, stride=2**k) for k in (2, 3)}


def segmentor(**kwargs) -> SemanticSegmentor:
    torch.manual_seed(0)
    backbone = Convs()
    head = SemanticFPNHead(backbone.output_shape(), num_classes=4, conv_dims=8, common_stride=4, norm="", dropout=0.0)
    nn.init.normal_(head.predictor.weight)
    return SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[1.0, 2.0, 3.0], pixel_std=[2.0, 2.0, 2.0], **kwargs
    ).eval()


def image(h: int, w: int, **kwargs) -> dict:
    generator = torch.Generator().manual_seed(h * 1000 + w)
    return {"image": torch.randint(0, 6, (3, h, w), generator=generator, dtype=torch.uint8), **kwargs}


@torch.no_grad()
def logits(model: SemanticSegmentor, *inputs: dict) -> list[Tensor]:
    return [output["sem_seg"] for output in model(list(inputs))]


def test_one_window_is_the_whole_image() -> None:
    whole, windows = segmentor(), segmentor(window_size=64, window_stride=40)
    (expected,), (found,) = logits(whole, image(64, 64)), logits(windows, image(64, 64))
    assert expected.shape == (4, 64, 64)
    assert torch.equal(found, expected)


def test_windows_are_averaged_where_they_overlap() -> None:
    model = segmentor(window_size=32, window_stride=20)
    inputs = image(32, 60)
    total, count = torch.zeros(4, 32, 60), torch.zeros(60)
    for left in (0, 20, 28):
        (part,) = logits(segmentor(), {"image": inputs["image"][:, :, left : left + 32]})
        total[:, :, left : left + 32] += part
        count[left : left + 32] += 1
    assert torch.allclose(logits(model, inputs)[0], total / count, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (20, 90), (90, 20), (1, 200), (33, 32), (64, 65)])
def test_windows_take_images_of_any_size(size: tuple[int, int]) -> None:
    model = segmentor(window_size=32, window_stride=21)
    (found,) = logits(model, image(*size))
    assert found.shape == (4, *size)
    assert found.isfinite().all()


def test_small_images_are_padded_to_a_window() -> None:
    small = image(20, 24)
    normalised = (small["image"] - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 2
    model = segmentor()
    padded = F.pad(normalised, (0, 8, 0, 12))[None]
    with torch.no_grad():
        expected = model.sem_seg_head(model.backbone(padded))[0][0, :, :20, :24]
    assert torch.allclose(logits(segmentor(window_size=32, window_stride=21), small)[0], expected, atol=1e-6)


def test_whole_images_of_a_batch_keep_their_sizes() -> None:
    wide, high = logits(segmentor(), image(20, 40), image(40, 20, height=80, width=40))
    assert (wide.shape, high.shape) == ((4, 20, 40), (4, 80, 40))


def test_windows_of_a_batch_do_not_depend_on_it() -> None:
    model = segmentor(window_size=32, window_stride=32)
    a, b = image(32, 48), image(64, 32)
    assert torch.equal(logits(model, a, b)[0], logits(model, a)[0])


@pytest.mark.parametrize("window", [0, 32])
def test_mirrored_views_are_averaged(window: int) -> None:
    inputs = image(32, 64)
    (plain,) = logits(segmentor(window_size=window), inputs)
    (mirrored,) = logits(segmentor(window_size=window), {"image": inputs["image"].flip(-1)})
    (found,) = logits(segmentor(window_size=window, test_flip=True), inputs)
    assert torch.allclose(found, (plain.softmax(0) + mirrored.flip(-1).softmax(0)) / 2, atol=1e-6)
    assert torch.allclose(found.sum(0), torch.ones(32, 64), atol=1e-5)


def test_scales() -> None:
    seen = []
    model = segmentor(test_scales=[0.5, 1.0, 1.75])
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    (found,) = logits(model, image(36, 60))
    assert seen == [(24, 32), (40, 64), (64, 112)]
    assert found.shape == (4, 36, 60)
    assert torch.allclose(found.sum(0), torch.ones(36, 60), atol=1e-5)


def test_other_scales_are_made_of_the_picture_before_the_test_resized_it() -> None:
    seen = []
    model = segmentor(test_scales=[1.0, 2.0])
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    large = image(64, 96)["image"]
    small = F.interpolate(large[None].float(), (32, 48), mode="bilinear", antialias=True)[0]
    (found,) = logits(model, {"image": small, "original": large, "height": 64, "width": 96})
    assert found.shape == (4, 64, 96)
    for x, expected in zip(seen, (small, large), strict=True):
        normalised = (expected - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 2
        assert torch.equal(x[0, :, : expected.shape[-2], : expected.shape[-1]], normalised)


def test_training_pads_to_a_size() -> None:
    model = segmentor(train_size=48).train()
    seen = {}
    model.backbone.register_forward_pre_hook(lambda _, args: seen.update(images=args[0]))
    model.sem_seg_head.register_forward_pre_hook(lambda _, args: seen.update(labels=args[1]))
    batch = [image(20, 64, sem_seg=torch.ones(20, 64, dtype=torch.long))]
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg"}
    assert seen["images"].shape == (1, 3, 48, 64)
    assert (seen["images"][0, :, 20:] == 0).all()
    assert (seen["labels"][0, :20] == 1).all()
    assert (seen["labels"][0, 20:] == 255).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": 32, "window_stride": 40}, "leave gaps"),
        ({"train_size": -1}, "must not be negative"),
        ({"test_scales": []}, "one positive number or several"),
        ({"test_scales": [1.0, 0.0]}, "one positive number or several"),
    ],
)
def test_numbers_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segmentor(**settings)


def test_a_head_for_other_maps() -> None:
    settings = {"backbone": Convs(), "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    wide = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in (2, 3)}
    head = SemanticFPNHead(wide, num_classes=4, common_stride=4, norm="")
    with pytest.raises(
        ConfigError, match=r"16 channels at stride 4 in the map 'p2', but the backbone makes 8 at stride 4"
    ):
        SemanticSegmentor(sem_seg_head=head, **settings)
    other = {"p4": ShapeSpec(channels=8, stride=16)}
    with pytest.raises(ConfigError, match=r"wants the map 'p4', but the backbone makes \['p2', 'p3'\]"):
        SemanticSegmentor(sem_seg_head=SemanticFPNHead(other, num_classes=4, common_stride=16, norm=""), **settings)
