"""The cost of segmentors: the head by hand, windows of the published size."""

from __future__ import annotations

from piip.analysis import analyze, build_on_meta, natural_size
from piip.model_zoo import get_config


def test_semantic_fpn_by_hand() -> None:
    model = build_on_meta(get_config("ADE20K-SemanticSegmentation/semantic_fpn_lsnet_t_40k.py").model)
    assert natural_size(model) == 512
    cost = analyze(model)
    assert cost.size == (512, 512)
    head = cost.parts["sem_seg_head"]
    assert head.params == 1_643_158
    # Pixels at strides 8, 16, 32, 64; every further convolution of a level works on a doubled map.
    pixels = {k: (512 // 2**k) ** 2 for k in (3, 4, 5, 6)}
    first, further = 9 * 256 * 128, 9 * 128 * 128
    by_hand = sum(first * n for n in pixels.values()) + further * (pixels[4] + pixels[5] + pixels[4])
    assert head.macs == by_hand + 128 * 150 * pixels[3]
    assert not any("sem_seg_head" in note for note in cost.notes)


def test_upernet_counts_its_auxiliary_head_as_parameters() -> None:
    model = build_on_meta(get_config("ADE20K-SemanticSegmentation/upernet_piip_h6b_512_192_80k.py").model)
    head = analyze(model).parts["sem_seg_head"]
    assert head.params == sum(p.numel() for p in model.sem_seg_head.parameters())
    side, wide = 128, 1536
    assert head.macs > 9 * 4 * wide * wide * side**2  # the fusion of all levels alone
