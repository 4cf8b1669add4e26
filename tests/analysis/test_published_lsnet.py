"""LSNet's counting, against every number of the specification that was made with the released script."""

from __future__ import annotations

import pytest
import timm

import piip  # noqa: F401  (timm knows LSNet then)
from piip.analysis import published_cost
from piip.modeling.without_weights import on_meta

# Name -> fused parameters, billions of operations before fusing.
COUNTED = {
    "lsnet_t": (11_370_488, 0.3193),
    "lsnet_t_distill": (11_755_488, 0.3197),
    "lsnet_s": (16_098_232, 0.5434),
    "lsnet_s_distill": (16_547_232, 0.5438),
    "lsnet_b": (23_249_320, 1.2586),
    "lsnet_b_distill": (23_762_320, 1.2591),
}


@pytest.mark.parametrize("name", COUNTED)
def test_classifiers_cost_what_the_released_script_counts(name):
    with on_meta():
        model = timm.create_model(name)
    (cost,) = published_cost(model).values()
    assert cost.params == COUNTED[name][0]
    assert round(cost.macs / 1e9, 4) == COUNTED[name][1]
    assert model.training  # the model stays as it is
    assert all(p.is_meta for p in model.parameters())
