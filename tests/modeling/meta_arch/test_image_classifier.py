"""The image classifier: what goes in and out, labels that are mixed, smoothed and taught, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from piip.errors import ConfigError, DataError
from piip.modeling.meta_arch import ImageClassifier

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]


class Linear(nn.Module):
    """Keeps what it is given; two heads on demand."""

    def __init__(self, num_classes: int = 3, heads: int = 1) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(3 * 4 * 4, num_classes) for _ in range(heads))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.seen = images.clone()
        logits = [head(images.flatten(1)) for head in self.heads]
        return tuple(logits) if self.training and len(logits) > 1 else sum(logits) / len(logits)


class Chooser:
    """A teacher that says what it is told to."""

    def __init__(self, choice: Tensor, num_classes: int = 3) -> None:
        self.choice, self.num_classes = choice, num_classes

    def __call__(self, images: Tensor) -> Tensor:
        self.seen = images
        return F.one_hot(self.choice, self.num_classes).float()


def classifier(network: nn.Module | None = None, **options: object) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(network or Linear(), 3, MEAN, STD, **options)


def batch(count: int = 4, size: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return [{"image": image, "label": i % 3, "image_id": i} for i, image in enumerate(images)]


def logits_of(model: ImageClassifier) -> list[Tensor]:
    return [head(model.network.seen.flatten(1)) for head in model.network.heads]


def test_scores_are_probabilities_of_normalised_images():
    model = classifier().eval()
    found = model(batch())
    images = torch.stack([x["image"] for x in batch()]).float()
    want = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.network.seen, want)
    scores = torch.stack([x["scores"] for x in found])
    torch.testing.assert_close(scores, logits_of(model)[0].softmax(-1))


def test_loss_is_cross_entropy_with_smoothing():
    model = classifier(label_smoothing=0.3)
    (loss,) = model(batch()).values()
    smooth = F.one_hot(torch.tensor([0, 1, 2, 0]), 3) * 0.7 + 0.1
    torch.testing.assert_close(loss, -(smooth * logits_of(model)[0].log_softmax(-1)).sum(-1).mean())


@pytest.mark.parametrize("settings", [{"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}])
def test_mixed_images_have_mixed_labels(settings):
    mixed = 0
    for seed in range(6):
        np.random.seed(seed)
        model = classifier(label_smoothing=0.3, mixup=settings)
        plain = model.preprocess(batch())
        (loss,) = model(batch()).values()
        # The share of the partner, by the first image, tells the labels.
        seen = model.network.seen
        if settings["mixup_alpha"]:
            share = ((seen - plain) / (plain.flip(0) - plain)).nanmedian()
            torch.testing.assert_close(seen, plain + share * (plain.flip(0) - plain), atol=1e-4, rtol=0)
        else:
            share = (seen == plain.flip(0)).all(1).float().mean()
            assert ((seen == plain) | (seen == plain.flip(0))).all()
        labels = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
        target = (1 - share) * labels + share * labels.flip(0)
        want = -((0.7 * target + 0.1) * logits_of(model)[0].log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)
        mixed += 0.01 < share < 0.99
    assert mixed >= 3


def test_nothing_is_mixed_or_erased_in_evaluation():
    model = classifier(mixup={"mixup_alpha": 1.0}, erasing={"probability": 1.0}).eval()
    model(batch(3))
    torch.testing.assert_close(model.network.seen, model.preprocess(batch(3)))


def test_erasing_leaves_a_part():
    torch.manual_seed(0)
    model = classifier(erasing={"probability": 1.0, "min_area": 0.2})
    model(batch())
    erased = (model.network.seen == 0).all(1).flatten(1).float().mean(1)
    assert (erased > 0).all()
    assert (erased < 0.7).all()


def test_hard_distillation_with_two_heads():
    teacher = Chooser(torch.tensor([2, 2, 1, 0]))
    np.random.seed(3)
    model = classifier(Linear(heads=2), teacher=teacher, mixup={"mixup_alpha": 0.8})
    losses = model(batch())
    first, second = logits_of(model)
    torch.testing.assert_close(losses["loss_distill"], 0.5 * F.cross_entropy(second, teacher.choice))
    (alone,) = _without_teacher(model, first).values()
    torch.testing.assert_close(losses["loss_cls"], 0.5 * alone)
    # It sees the mixed images, in its own units.
    mixed = model.network.seen * model.pixel_std + model.pixel_mean
    torch.testing.assert_close(teacher.seen, mixed)


def _without_teacher(model: ImageClassifier, logits: Tensor) -> dict[str, Tensor]:
    np.random.seed(3)
    alone = classifier(nn.Identity(), mixup={"mixup_alpha": 0.8})
    images, targets = alone.augment(model.preprocess(batch()), alone.targets(batch()))
    return alone.losses([logits], images, targets)


def test_hard_distillation_with_one_head():
    teacher = Chooser(torch.tensor([2, 2, 1, 0]))
    model = classifier(teacher=teacher)
    losses = model(batch())
    (logits,) = logits_of(model)
    torch.testing.assert_close(losses["loss_cls"], 0.5 * F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))
    torch.testing.assert_close(losses["loss_distill"], 0.5 * F.cross_entropy(logits, teacher.choice))


def test_without_teacher_both_heads_learn_the_labels():
    model = classifier(Linear(heads=2))
    (loss,) = model(batch()).values()
    want = sum(F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) for logits in logits_of(model)) / 2
    torch.testing.assert_close(loss, want)


def test_the_teacher_is_no_part_of_the_model():
    model = classifier(teacher=Chooser(torch.zeros(4, dtype=torch.long)))
    assert all(name.startswith("network.") for name in model.state_dict())
    assert sorted(dict(copy.deepcopy(model).named_children())) == ["network"]


@pytest.mark.parametrize("name", ["lsnet_t_distill", "deit_tiny_distilled_patch16_224"])
def test_timm_networks_for_distillation_give_both_logits(name):
    sizes = {} if name.startswith("lsnet") else {"img_size": 32, "depth": 1}
    network = timm.create_model(name, num_classes=3, **sizes)
    teacher = Chooser(torch.zeros(2, dtype=torch.long))
    model = ImageClassifier(network, 3, MEAN, STD, teacher=teacher)
    losses = model(batch(2, 64 if name.startswith("lsnet") else 32))
    assert sorted(losses) == ["loss_cls", "loss_distill"]
    sum(losses.values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": {"alpha": 1.0}}, r"mixup=.*alpha"),
        ({"mixup": {"mixup_alpha": 0.0}}, "mixup_alpha or cutmix_alpha above 0"),
        ({"erasing": {"share": 1.0}}, r"erasing=.*share"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"teacher": Chooser(torch.zeros(1), num_classes=5)}, r"teacher knows 5 classes and the model 3"),
    ],
)
def test_wrong_settings_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        classifier(**options)


def test_channels_are_three():
    with pytest.raises(ConfigError, match=r"pixel_mean=\[1\]"):
        ImageClassifier(Linear(), 3, [1], STD)


def test_wrong_batches_are_told():
    model = classifier()
    with pytest.raises(DataError, match=r"Image 1 has the label 3, .* classes 0 to 2"):
        model([batch()[0], {**batch()[1], "label": 3}])
    with pytest.raises(DataError, match=r"Image 'x.png' has the label None"):
        model([{"image": batch()[0]["image"], "file_name": "x.png"}])
    with pytest.raises(DataError, match="differ in size"):
        model([batch(1)[0], batch(1, 8)[0]])
    with pytest.raises(ConfigError, match=r"pairs of the 3 images"):
        classifier(mixup={"mixup_alpha": 1.0})(batch(3))
    with pytest.raises(ConfigError, match=r"Linear gives logits of shape \(4, 5\).*num_classes=3"):
        classifier(Linear(num_classes=5))(batch())
