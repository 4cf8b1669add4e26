"""Models as large as the memory: built without weights, announced, filled without a second copy."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from piip import model_zoo
from piip.checkpoint import large, load_official, load_weights, to_official
from piip.checkpoint.convert import write_weights
from piip.errors import CheckpointError, ConfigError
from piip.model_zoo import zoo
from piip.modeling import PIIP, InternViTBranch, TimmBranch
from piip.modeling.without_weights import build_without_weights
from tests.checkpoint.memory import MEASURE, run
from tests.checkpoint.test_weights import shard

DIGITS = "quickstart/mask_rcnn_piip_digits"


def pyramid(fine=64, coarse=128, depth=4):
    """The shape of PIIP-H6B in small."""
    small = L(InternViTBranch)(embed_dim=fine, depth=depth, num_heads=4)
    rms = {"norm": "RMS", "qk_norm": True, "qkv_bias": False, "window_size": 16}
    large = L(InternViTBranch)(embed_dim=coarse, depth=depth, num_heads=4, **rms)
    return L(PIIP)(branches=[small, large], resolutions=[1024, 512], interaction_indexes=depth)


def piip_h6b():
    """The detector, without its seven billion weights."""
    return build_without_weights(model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_piip_h6b_1024_512_1x").model)


def test_the_largest_model_is_built_without_its_weights():
    model = piip_h6b()
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.backbone.bottom_up.parameters()) == 7_293_644_290
    assert large.meta_bytes(model) == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", [DIGITS, "quickstart/dino_piip_digits"])
def test_only_parameters_are_without_values(config):
    node = model_zoo.get_config(config).model
    empty, real = build_without_weights(node), instantiate(node)
    assert {n: p.requires_grad for n, p in empty.named_parameters()} == {
        n: p.requires_grad for n, p in real.named_parameters()
    }
    assert all(p.is_meta for p in empty.parameters())
    buffers = dict(empty.named_buffers())
    assert "pixel_mean" in buffers
    for name, buffer in real.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    # The way of building leaves nothing behind.
    assert not any(p.is_meta for p in instantiate(node).parameters())


@pytest.mark.parametrize("config", [DIGITS, "quickstart/dino_piip_digits"])
def test_a_model_without_weights_becomes_the_saved_one(tmp_path, config):
    node = model_zoo.get_config(config).model
    source = instantiate(node).eval()
    write_weights(tmp_path / "w.pth", to_official(source))
    model = build_without_weights(node).eval()
    assert load_weights(model, str(tmp_path / "w.pth")).complete
    for (name, tensor), other in zip(source.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert all(p.requires_grad for p in model.parameters())
    image = [{"image": torch.randint(0, 256, (3, 64, 96)).float()}]
    with torch.no_grad():
        a, b = (m(image)[0]["instances"].get_fields() for m in (source, model))
    assert torch.equal(a["scores"], b["scores"])


def test_the_file_may_change_after_loading(tmp_path):
    source = instantiate(pyramid())
    write_weights(tmp_path / "w.safetensors", source.state_dict())
    model = build_without_weights(pyramid())
    load_weights(model, str(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


def test_bfloat16_is_kept_or_converted_on_the_way(tmp_path):
    source = instantiate(pyramid())
    write_weights(tmp_path / "w.safetensors", source.state_dict(), "bfloat16")
    for dtype in (torch.bfloat16, torch.float32):
        model = build_without_weights(pyramid()).to(dtype)
        load_weights(model, str(tmp_path / "w.safetensors"))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert torch.equal(
            model.merge.projections[0][0].weight.float(), source.merge.projections[0][0].weight.bfloat16().float()
        )
    out = model(torch.randn(1, 3, 128, 128))
    assert out["c4"].shape == (1, 128, 8, 8)


@pytest.mark.parametrize("form", ["one file", "several files"])
def test_loading_takes_the_memory_of_the_weights_once(tmp_path, form):
    source = instantiate(pyramid(512, 768, depth=6)).bfloat16()
    size = sum(p.numel() * p.element_size() for p in source.parameters())
    assert size > 100e6
    if form == "one file":
        path = tmp_path / "w.pth"
        write_weights(path, to_official(source))
    else:
        path = shard(tmp_path, to_official(source))
    del source
    code = f"""
from tests.checkpoint.test_large import *
with measure():
    model = build_without_weights(pyramid(512, 768, depth=6)).bfloat16()
    assert load_weights(model, {str(path)!r}).complete
"""
    assert run(MEASURE + code)["anonymous"] < 1.25 * size


def test_a_model_without_weights_takes_complete_checkpoints_alone(tmp_path):
    node = model_zoo.get_config(DIGITS).model
    backbone = instantiate(node).backbone.bottom_up
    torch.save(to_official(backbone), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"bare\.pth.*are not in the checkpoint \(.*takes complete checkpoints"):
        load_weights(build_without_weights(node), str(tmp_path / "bare.pth"))
    empty = build_without_weights(node.backbone.bottom_up)
    assert load_official(empty, to_official(backbone)).complete
    assert not any(p.is_meta for p in empty.parameters())


def test_a_timm_branch_is_built_without_weights():
    model = build_without_weights(L(TimmBranch)(model_name="test_vit", weights=None))
    assert all(p.is_meta for p in model.parameters())


def test_too_little_memory_is_told_before_anything_is_read(monkeypatch):
    model = piip_h6b()
    monkeypatch.setattr(large, "available_memory", lambda device: 20 * 2**30)
    with pytest.raises(
        CheckpointError,
        match=r"needs 27\.3 GiB for its weights in float32, and 20\.0 GiB are available on cpu; .*bfloat16.* 13\.6 GiB",
    ):
        load_weights(model, "/nowhere/h6b.pth")
    monkeypatch.setattr(large, "available_memory", lambda device: 9 * 2**30)
    with pytest.raises(CheckpointError, match=r"needs 13\.6 GiB for its weights in bfloat16, and 9\.0 .* more memory"):
        large.check_memory(model.bfloat16())
    with pytest.raises(CheckpointError, match=r"needs 54\.5 GiB for .*, their gradients and the optimizer, and 9\.0"):
        large.check_memory(model, copies=4)


def test_available_memory_is_some_of_the_machine():
    with open("/proc/meminfo") as f:
        total = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemTotal"))
    assert 0 < large.available_memory() <= total
    assert large.available_memory("meta") is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_batch_job_is_known(tmp_path, version):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    files = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    own.write_text({1: "5:cpu:/other\n9:memory:/slurm/job_7\n", 2: "0::/slurm/job_7\n"}[version])
    job = root / ("memory" if version == 1 else "") / "slurm" / "job_7"
    job.mkdir(parents=True)
    assert large._cgroup_memory(str(own), str(root)) == []
    for folder, limit in ((job, "1000000"), (job.parent, "max")):
        (folder / files[0]).write_text(f"{limit}\n")
        (folder / files[1]).write_text("900000\n")
        (folder / "memory.stat").write_text("anon 5\nactive_file 20000\ninactive_file 30000\n")
    assert large._cgroup_memory(str(own), str(root)) == [150_000]
    assert large._cgroup_memory("/nowhere") == []


@pytest.mark.gpu
def test_weights_go_straight_to_the_gpu(tmp_path):
    source = instantiate(pyramid())
    write_weights(tmp_path / "w.safetensors", source.state_dict())
    model = build_without_weights(pyramid())
    load_weights(model, str(tmp_path / "w.safetensors"), "cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert large.available_memory("cuda") > 0


def test_trained_models_come_in_bfloat16_without_a_float32_copy(tmp_path, monkeypatch):
    """With weights of our own in the place where a download would put the released ones."""
    source = instantiate(model_zoo.get_config(DIGITS).model)
    write_weights(tmp_path / "w.pth", to_official(source))
    monkeypatch.setattr(zoo, "published_row", lambda name: {"checkpoint": str(tmp_path / "w.pth")})
    model = model_zoo.get(DIGITS, trained=True, dtype="bfloat16").eval()
    assert {p.dtype for p in model.backbone.bottom_up.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.roi_heads.parameters()} == {torch.float32}
    with torch.no_grad():
        (out,) = model([{"image": torch.randint(0, 256, (3, 64, 96)).float()}])
    assert out["instances"].image_size == (64, 96)
    plain = model_zoo.get(DIGITS, trained=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), source.parameters(), strict=True))
    with pytest.raises(ConfigError, match="dtype='half' is unknown; use float32, bfloat16 or float16"):
        model_zoo.get(DIGITS, dtype="half")
