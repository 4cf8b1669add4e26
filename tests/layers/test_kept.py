"""What is made once per size: how long it is kept, and when it is made anew."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.layers import kept
from piip.layers.kept import Kept

CPU = torch.device("cpu")


def number(value=1.0):
    return lambda: torch.tensor(value)


def test_the_latest_are_kept():
    tensors = Kept(2)
    first = tensors(1, CPU, number())
    assert tensors(1, CPU, number()) is first
    second = tensors(2, CPU, number())
    tensors(3, CPU, number())
    assert tensors(2, CPU, number()) is second
    assert tensors(1, CPU, number()) is not first


def test_what_was_made_in_inference_serves_training():
    tensors = Kept(2)
    with torch.inference_mode():
        tensors(1, CPU, number())
    assert not tensors(1, CPU, number()).is_inference()


def test_made_anew_when_a_frozen_parameter_changes():
    weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)
    owner = nn.Module()
    owner.weight, owner.kept = weight, Kept(2)

    def doubled():
        return owner.kept("doubled", CPU, lambda: 2 * owner.weight, of=owner.weight)

    assert doubled() is doubled()
    owner.weight.copy_(torch.tensor(3.0))
    assert doubled() == 6
    owner.weight = nn.Parameter(torch.tensor(4.0), requires_grad=False)
    assert doubled() == 8
    owner.double().weight.data.mul_(2)  # which autograd does not see
    owner.float()
    assert doubled() == 16
    owner.weight.requires_grad_(True)
    assert doubled() is not doubled()
    assert doubled().requires_grad


def test_tensors_of_a_cuda_graph_are_no_others_and_stay(monkeypatch):
    """On the CPU, where nothing is recorded: only when tensors are made and dropped is looked at."""
    tensors = Kept(2)
    before = tensors("before", CPU, number())
    monkeypatch.setattr(kept, "_is_recording", lambda device: True)
    assert tensors("before", CPU, number()) is before
    recorded = tensors("recorded", CPU, number())
    monkeypatch.undo()
    assert tensors("recorded", CPU, number()) is not recorded, "memory of a graph, which eager code must not read"
    for key in range(5):
        tensors(key, CPU, number())
    assert any(t is before for t in tensors._in_graphs.values())


def test_fake_tensors_are_for_their_own_mode():
    tensors = Kept(4)
    with FakeTensorMode():
        fake = tensors(1, CPU, number())
        assert tensors(1, CPU, number()) is fake
    assert tensors(1, CPU, number()) is not fake


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_start_anew(again):
    tensors = Kept(2)
    first = tensors(1, CPU, number())
    other = again(nn.Sequential(tensors))[0]
    assert other.limit == 2
    assert other(1, CPU, number(5.0)) == 5
    assert tensors(1, CPU, number()) is first
