"""Nodes that cannot become a model are told by their place."""

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.errors import ConfigError
from piip.modeling import PIIP, ViTBranch
from piip.modeling.instantiate import instantiate_model


def pyramid(**branch):
    node = L(PIIP)(branches=[L(ViTBranch)(embed_dim=32, depth=1, num_heads=2)], resolutions=[64], interaction_indexes=1)
    node.branches[0].update(branch)
    return node


def test_a_right_config_becomes_a_model():
    assert isinstance(instantiate_model(pyramid()), PIIP)
    assert isinstance(
        instantiate_model({"_target_": "piip.modeling.ViTBranch", **{"embed_dim": 32, "depth": 1, "num_heads": 2}}),
        ViTBranch,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_target_": "piip.modeling.ViTBranhc"}, r"branches.0: there is no 'ViTBranhc'.*Did you mean 'ViTBranch'"),
        ({"_target_": "piip.modeling.ConvNextBranch"}, "Did you mean 'ConvNeXtBranch'"),
        ({"_target_": "piipp.modeling.ViTBranch"}, r"'piipp.modeling.ViTBranch' cannot be imported"),
        ({"_target_": "piip.modeling.__doc__"}, "cannot be called"),
        (
            {"_target_": "piip.modeling.TimmBranch"},
            r"branches.0, TimmBranch: missing .*: 'model_name'",
        ),
        ({"windows_size": 3}, r"branches.0, ViTBranch: .*'windows_size'.*Did you mean 'window_size'"),
        ({"embed_dim": "???"}, r"embed_dim has no value"),
        ({"use_act_checkpoint": "no"}, r"branches.0.use_act_checkpoint='no' must be true or false"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(changes, message):
    with pytest.raises(ConfigError, match=message):
        instantiate_model(pyramid(**changes))


def test_references_are_left_to_the_config():
    node = OmegaConf.create({"kind": "piip.modeling.ViTBranch"}, flags={"allow_objects": True})
    node.branch = L(ViTBranch)(embed_dim=32, depth=1, num_heads=2)
    node.branch["_target_"] = "${kind}"
    assert isinstance(instantiate_model(node.branch), ViTBranch)
