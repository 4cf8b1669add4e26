"""Branches on streams of their own: same results, in inference alone."""

import copy
import logging

import pytest
import torch

from piip.layers.kernels.choice import log_once
from piip.modeling import PIIP, PIIPClassifier, ViTBranch
from piip.modeling.branches import BranchState
from piip.modeling.overlap import run_branches


def tiny(cls=PIIP, **kwargs):
    torch.manual_seed(0)
    branches = [ViTBranch(w, 4, 2, window_size=4, pretrain_img_size=64) for w in (32, 64, 96)]
    model = cls(branches, [224, 160, 96], interaction_indexes=2, interaction={"num_heads": 4}, **kwargs)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model.eval()


def streams_of_branches(overlap):
    """On which streams three branches ran, and the one around them."""

    def run(state):
        seen.append(torch.cpu.current_stream())
        return state

    seen = []
    states = [BranchState(torch.full((1, 1, 1), float(k)), (1, 1)) for k in range(3)]
    assert run_branches(run, states, overlap=overlap) == states
    return seen, torch.cpu.current_stream()


def test_all_branches_but_the_last_have_a_stream_of_their_own(caplog):
    log_once.cache_clear()
    with torch.inference_mode(), caplog.at_level(logging.INFO, "piip"):
        seen, here = streams_of_branches(overlap=True)
        again, _ = streams_of_branches(overlap=True)
    assert len(set(seen)) == 3
    assert seen[2] is here
    assert again == seen, "streams are made once"
    assert caplog.text.count("a CPU has no streams") == 1


def test_every_stream_around_them_has_its_own_streams_of_branches():
    with torch.inference_mode():
        seen, _ = streams_of_branches(overlap=True)
        with torch.cpu.stream(torch.cpu.Stream()):
            others, here = streams_of_branches(overlap=True)
    assert others[2] is here
    assert not set(seen) & set(others), "what the first ones made would be used again while the other stream reads it"


def test_without_the_option_or_with_gradients_all_branches_share_a_stream():
    with torch.inference_mode():
        seen, here = streams_of_branches(overlap=False)
    assert set(seen) == {here}
    seen, here = streams_of_branches(overlap=True)
    assert set(seen) == {here}


@pytest.mark.parametrize("cls", [PIIP, PIIPClassifier])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_overlapping_branches_compute_the_same(cls, device):
    plain, overlapping = tiny(cls).to(device), tiny(cls, overlap_branches=True).to(device)
    with torch.inference_mode():
        for _ in range(3 if device == "cpu" else 50):  # what streams do wrong, they do not do every time
            image = torch.randn(2, 3, 224, 224, device=device)
            torch.testing.assert_close(overlapping(image), plain(image), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_streams():
    model = tiny(PIIPClassifier, overlap_branches=True).cuda()
    image = torch.randn(1, 3, 224, 224, device="cuda")
    with torch.inference_mode():
        expected = copy.deepcopy(model)(image)
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            model(image)
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(image)
        graph.replay()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
