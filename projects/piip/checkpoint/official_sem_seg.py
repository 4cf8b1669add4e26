"""Names in the released PIIP segmentors: mmsegmentation's own for UPerNet and its auxiliary head."""

from __future__ import annotations

__all__ = ["UPERNET_RULES"]

_CONVS = {
    r"pooling\.(\d)\.1": r"decode_head.psp_modules.\1.1",
    r"pooling_fusion": r"decode_head.bottleneck",
    r"laterals\.(\d)": r"decode_head.lateral_convs.\1",
    r"outputs\.(\d)": r"decode_head.fpn_convs.\1",
    r"fusion": r"decode_head.fpn_bottleneck",
    r"auxiliary\.convs\.(\d)": r"auxiliary_head.convs.\1",
}

# Ours -> released, as regular expressions and what to put for them.
UPERNET_RULES = [
    (r"^sem_seg_head\.auxiliary\.predictor\.", "auxiliary_head.conv_seg."),
    (r"^sem_seg_head\.predictor\.", "decode_head.conv_seg."),
    *((rf"^sem_seg_head\.{ours}\.norm\.", f"{theirs}.bn.") for ours, theirs in _CONVS.items()),
    *((rf"^sem_seg_head\.{ours}\.", f"{theirs}.conv.") for ours, theirs in _CONVS.items()),
]
