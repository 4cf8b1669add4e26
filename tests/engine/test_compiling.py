"""torch.compile: the same numbers and names, few graphs, refusals."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import instantiate
from torch import nn
from torch._dynamo.utils import counters

from piip.engine.compiling import compile_network
from piip.errors import ConfigError, DependencyError
from piip.modeling import PIIP, LSNet, ViTBranch
from tests.engine.running import fail, load, train
from tests.engine.tiny_piip_config import model as classifier

TINY = "tests/engine/tiny_piip_config.py"


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Detector(nn.Module):
    """What matters here of a detector: that it has a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(image).values())


def pyramid(depth: int = 4) -> Detector:
    branches = [ViTBranch(width, depth, 2, window_size=4, pretrain_img_size=64) for width in (32, 64)]
    backbone = PIIP(branches, [128, 64], depth, {"num_heads": 2}, out_features=("c4",))
    for parameter in backbone.parameters():  # gates start at zero
        nn.init.normal_(parameter, std=0.1)
    return Detector(backbone)


def test_compiled_pyramid_computes_and_learns_the_same():
    plain, compiled = pyramid(), pyramid()
    compiled.load_state_dict(plain.state_dict())
    compile_network(compiled, True, backend="aot_eager")
    image = torch.randn(1, 3, 128, 160)
    for model in (plain, compiled):
        model(image)[0].square().mean().backward()
    torch.testing.assert_close(compiled(image), plain(image), rtol=1e-4, atol=1e-5)
    for (name, want), got in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-5 * float(want.grad.abs().max()), msg=name)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_equal_blocks_share_their_code():
    model = pyramid(depth=5).eval()
    parts = compile_network(model, True, backend="eager")
    assert len(parts) == 2 * 5 + 5 + 1  # blocks, interactions, merging; this neck has no parameters
    with torch.no_grad():
        model(torch.randn(1, 3, 128, 128))
    assert counters["stats"]["unique_graphs"] == 2 + 1 + 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_backbone_is_one_graph(dynamic):
    model = pyramid(depth=1).backbone.eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic)
    for sides in ((128, 192), (192, 256)):
        image = torch.randn(1, 3, *sides)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), model(image))


def test_graphs_of_cuda_are_of_the_whole_network():
    model = pyramid()
    assert compile_network(model, "reduce-overhead", backend="aot_eager") == [model.backbone]


def test_networks_without_branches_are_compiled_once_for_all_sizes():
    model = Detector(LSNet([16, 32, 48, 64], [1, 1, 1, 1], out_features=["c4"])).eval()
    assert compile_network(model, True, backend="eager") == [model.backbone]
    with torch.no_grad():
        for side in (384, 448, 512, 576, 640):  # torch chooses other convolutions for small maps, and compiles again
            model(torch.randn(1, 3, side, side + 64))
    assert counters["stats"]["unique_graphs"] < 4  # the first size, and any


def test_nothing_to_do():
    assert compile_network(pyramid(), False) == compile_network(nn.Identity(), None) == []


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"compile='reduce_overhead' must be true.*Did you mean 'reduce-overhead'"):
        compile_network(pyramid(), "reduce_overhead")
    with pytest.raises(ConfigError, match="Identity has no backbone or network"):
        compile_network(nn.Identity(), True)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DependencyError, match=r"needs a C\+\+ compiler on a CPU"):
        compile_network(pyramid(), True)


def test_training_and_evaluation_say_what_they_cannot_compile(tmp_path):
    config = "--config-file", "tests/engine/tiny_config.py"
    folder = f"train.output_dir={tmp_path}"
    train(tmp_path, "train.max_iter=2")
    for options in (config, (*config, "--eval-only")):
        assert "TinyNet has no backbone or network to compile" in fail(*options, folder, "train.compile=true")
    assert "train.compile='fast' must be true" in fail(*config, folder, "train.compile=fast")
    spread = "train.parallel=fsdp"
    assert "does not work with a model that is spread" in fail(*config, folder, "train.compile=true", spread)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", [True, "reduce-overhead"])
def test_compiled_on_a_gpu(mode):
    model = pyramid().cuda().eval()
    image = torch.randn(1, 3, 128, 160, device="cuda")
    with torch.no_grad():
        (want,) = model(image)
        compile_network(model, mode)
        for _ in range(3):  # CUDA graphs are recorded at the second call
            torch.testing.assert_close(model(image)[0], want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.slow
def test_compiled_training_ends_with_nearly_the_same_weights(tmp_path):
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    train(plain, config=TINY)
    train(compiled, "train.compile=true", config=TINY)
    want, got = (load(folder / "model_final.pth")["model"] for folder in (plain, compiled))
    assert list(want) == list(got) == list(instantiate(classifier).state_dict())
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-2, atol=1e-4, msg=name)
