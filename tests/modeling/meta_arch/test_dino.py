"""The detector as a whole: losses, gradients, detections, bad input, checkpoints."""

import copy

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from piip import model_zoo
from piip.analysis import build_on_meta
from piip.checkpoint import load_official
from piip.checkpoint.official import official_names
from piip.engine.config import config_root
from piip.errors import CheckpointError, ConfigError, DataError
from piip.modeling.meta_arch import DINO, ContrastiveDenoising, DINOCriterion
from tests.modeling.meta_arch.tiny_dino import (
    MEAN,
    STD,
    batch,
    picture,
    tiny_backbone,
    tiny_dino,
    tiny_transformer,
    trained_like,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return trained_like(tiny_dino())


def test_losses_and_gradients_of_all_parameters(model):
    """Each step must reach every parameter, or distributed training would wait for it."""
    empty = picture(64, 96, seed=3)
    for images in (batch(), [empty, empty]):
        model.zero_grad(set_to_none=True)
        losses = model(images)
        assert len(losses) == 12
        assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
        sum(losses.values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert set(model(batch())) == set(losses)


def test_with_objects_every_parameter_learns(model):
    sum(model(batch()).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad.abs().sum() == 0]
    # Classes that occur neither as labels nor as label noise have no gradient, but their table has.
    assert idle == []


def test_it_learns():
    torch.manual_seed(0)
    model = tiny_dino(decoder_layers=2, encoder_layers=1)
    images = [picture(64, 64, [(8, 8, 40, 40)], [2]), picture(64, 64, [(30, 20, 60, 50), (4, 40, 20, 60)], [0, 4], 1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        losses = model(images)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert sum(history[-3:]) < 0.6 * sum(history[:3])


def test_detections_in_the_size_that_is_asked_for(model):
    model.eval()
    images = [{**image, "height": 2 * image["height"], "width": 2 * image["width"]} for image in batch()]
    with torch.inference_mode():
        results = model(images)
    assert len(results) == 3
    for image, result in zip(images, results, strict=True):
        found = result["instances"]
        assert found.image_size == (image["height"], image["width"])
        assert 0 < len(found) <= 20
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= image["width"]).all()
        assert (boxes[:, [1, 3]] <= image["height"]).all()
        assert ((found.pred_classes >= 0) & (found.pred_classes < 5)).all()


def test_detections_are_the_best_pairs_of_query_and_class(model):
    logits = torch.full((4, 5), -8.0)
    logits[1, 3], logits[1, 0], logits[2, 4] = 3.0, 1.0, 2.0
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.2], [0.5, 0.5, 0.1, 0.1]])
    model.test_score_thresh = 0.5
    found = model.detections(logits, boxes, (40, 80))
    assert found.pred_classes.tolist() == [3, 4, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    wanted = torch.tensor([[0.0, 10, 40, 30], [56, 32, 80, 40], [0, 10, 40, 30]])  # the second one is clipped
    torch.testing.assert_close(found.pred_boxes.tensor, wanted)


def test_images_smaller_than_the_number_of_queries(model):
    small = tiny_dino(num_queries=200, detections_per_image=200).eval()
    with torch.inference_mode():
        assert len(small([picture(64, 32)])[0]["instances"]) <= 200


def test_heads_run_in_float32_under_autocast(model):
    model.eval()
    seen = []
    model.transformer.register_forward_hook(lambda m, args, out: seen.append((args[0][0].dtype, out.logits.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch())
        sum(model.train()(batch()).values()).backward()
    assert set(seen) == {(torch.float32, torch.float32)}


def test_evaluation_does_not_need_ground_truth(model):
    model.eval()
    image = {"image": picture(64, 64)["image"]}
    assert model([image])[0]["instances"].image_size == (64, 64)


def test_labels_of_other_classes_are_told(model):
    with pytest.raises(DataError, match=r"'7.png' has labels \[5, 9\], but the model has classes 0 to 4"):
        model([picture(64, 64, [(8, 8, 40, 40)] * 3, [5, 1, 9], seed=7)])


def test_training_without_ground_truth_is_told(model):
    image = picture(64, 64, seed=7)
    del image["instances"]
    with pytest.raises(DataError, match=r"'7.png' comes without instances.*is_train=True"):
        model([image])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": tiny_backbone(3)}, "gives 3 maps .* takes 4"),
        ({"transformer": tiny_transformer(num_levels=3)}, "gives 4 maps .* takes 3"),
        ({"denoising": ContrastiveDenoising(6, 32)}, "ContrastiveDenoising has num_classes=6"),
        ({"num_classes": 4}, "num_classes=4, but its DINOTransformer has num_classes=5"),
        ({"pixel_mean": [1.0, 2.0]}, "three channels"),
        ({"input_format": "XYZ"}, "input_format='XYZ'"),
        ({"detections_per_image": 21}, "detections_per_image=21 .* num_queries=20"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    parts = {
        "backbone": tiny_backbone(),
        "transformer": tiny_transformer(),
        "denoising": ContrastiveDenoising(5, 32),
        "criterion": DINOCriterion(),
        "num_classes": 5,
        "pixel_mean": MEAN,
        "pixel_std": STD,
        "detections_per_image": 20,
    }
    with pytest.raises(ConfigError, match=message):
        DINO(**{**parts, **changes})


# --- the released layout -------------------------------------------------------------------------------------------


def published(width, num_layers=6, classes=80, dim=256):
    """Names and shapes of all but the backbone in a released four-scale DINO (mmdet 2); ``width``: the backbone's."""
    shapes = {
        f"bbox_head.transformer.{k}": v for k, v in {"level_embeds": (4, dim), "query_embed.weight": (900, dim)}.items()
    }

    def linear(name, out, width=dim):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, width), (out,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    def layer(name, norms, deformable):
        for part, out in {
            "sampling_offsets": 256,
            "attention_weights": 128,
            "value_proj": dim,
            "output_proj": dim,
        }.items():
            linear(f"{name}.attentions.{deformable}.{part}", out)
        linear(f"{name}.ffns.0.layers.0.0", 2048)
        linear(f"{name}.ffns.0.layers.1", dim, 2048)
        for k in range(norms):
            norm(f"{name}.norms.{k}")

    for k in range(num_layers):
        layer(f"bbox_head.transformer.encoder.layers.{k}", 2, 0)
        layer(name := f"bbox_head.transformer.decoder.layers.{k}", 3, 1)
        shapes[f"{name}.attentions.0.attn.in_proj_weight"] = (3 * dim, dim)
        shapes[f"{name}.attentions.0.attn.in_proj_bias"] = (3 * dim,)
        linear(f"{name}.attentions.0.attn.out_proj", dim)
    for k in range(num_layers + 1):
        linear(f"bbox_head.cls_branches.{k}", classes)
        for part, out in ((0, dim), (2, dim), (4, 4)):
            linear(f"bbox_head.reg_branches.{k}.{part}", out)
    linear("bbox_head.transformer.enc_output", dim)
    norm("bbox_head.transformer.enc_output_norm")
    norm("bbox_head.transformer.decoder.norm")
    linear("bbox_head.transformer.decoder.ref_point_head.0", dim, 2 * dim)
    linear("bbox_head.transformer.decoder.ref_point_head.2", dim)
    shapes["bbox_head.label_embedding.weight"] = (classes, dim)
    for conv, kernel in (("convs.0", 1), ("convs.1", 1), ("convs.2", 1), ("extra_convs.0", 3)):
        shapes[f"neck.{conv}.conv.weight"] = (dim, width, kernel, kernel)
        norm(f"neck.{conv}.gn")
    return shapes


@pytest.fixture
def config():
    config = LazyConfig.load(str(config_root() / "common/models/dino_piip.py"), "model")
    branches = copy.deepcopy(
        model_zoo.get_config("quickstart/mask_rcnn_piip_digits.py").model.backbone.bottom_up.branches
    )
    for branch, width in zip(branches, (32, 64, 96), strict=True):
        branch.update(embed_dim=width, num_heads=2, patch_size=16)
    config.backbone.bottom_up.update(branches=branches, resolutions=[224, 160, 96], interaction_indexes=2)
    return config


@pytest.mark.parametrize("name", [name for name in model_zoo.list_configs() if name.startswith("COCO-Detection/dino")])
def test_the_published_configs_have_the_released_layout(name):
    model = build_on_meta(model_zoo.get_config(name).model)
    names, state = official_names(model), model.state_dict()
    assert set(state) == set(names)
    heads = {theirs: tuple(state[ours].shape) for ours, theirs in names.items() if not theirs.startswith("backbone.")}
    assert heads == published(width=model.backbone.bottom_up.output_shape()["c5"].channels)
    assert model.detections_per_image == 300
    assert model.transformer.num_queries == 900


def test_the_released_layout_loads_bit_for_bit(config):
    model = instantiate(config)
    names, state = official_names(model), model.state_dict()
    released = {theirs: torch.randn_like(state[ours]) for ours, theirs in names.items()}
    # The released three-branch code keeps the finest deconvolution, which no DINO uses.
    unused = {"backbone.fpn1.0.weight": torch.zeros(96, 96, 2, 2), "backbone.fpn1.0.bias": torch.zeros(96)}
    report = load_official(model, {"state_dict": {**released, **unused}, "meta": {"epoch": 36}})
    assert report.complete
    assert sorted(report.ignored) == sorted(unused)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[ours], released[theirs]) for ours, theirs in names.items())


def test_a_released_dino_of_other_depth_is_refused(config):
    state = instantiate(config).state_dict()
    names = official_names(instantiate(config))
    config.transformer.decoder_layers = 5
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.5"):
        load_official(instantiate(config), {theirs: state[ours] for ours, theirs in names.items()})
