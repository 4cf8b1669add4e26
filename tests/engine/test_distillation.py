"""Teachers: their images, their weights, refusals."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from piip.engine.distillation import Teacher
from piip.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return str(path)


def test_teacher_normalises_as_its_own_network_wants_and_does_not_learn(weights):
    teacher = Teacher("test_vit", weights, num_classes=7)
    network = timm.create_model("test_vit", num_classes=7).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = 255 * torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = teacher(images.requires_grad_())
    assert not found.requires_grad
    torch.testing.assert_close(found, network(images / 127.5 - 1).detach())  # mean and std of 0.5
    torch.testing.assert_close(copy.deepcopy(teacher)(images), found)
    assert copy.deepcopy(teacher) is teacher


def test_published_teacher_is_not_loaded_before_it_is_asked():
    assert Teacher("regnety_160.deit_in1k").num_classes == 1000


def test_wrong_teachers_are_told(weights):
    with pytest.raises(ConfigError, match=r"no model 'regnety_161'.*Did you mean 'regnety_160'"):
        Teacher("regnety_161")
    with pytest.raises(ConfigError, match=r"no weights for the teacher 'vit_giant_patch14_224'"):
        Teacher("vit_giant_patch14_224")
    with pytest.raises(CheckpointError, match=r"'test_vit' with 5 classes lacks 2 tensors .*head\.weight"):
        Teacher("test_vit", weights, num_classes=5)(torch.zeros(1, 3, 160, 160))
    with pytest.raises(CheckpointError, match="does not exist"):
        Teacher("test_vit", "nowhere.pth")(torch.zeros(1, 3, 160, 160))
