"""Blocks per interaction step of pyramids with networks in stages: inclusive ranges, twelve steps.

In the published ConvNeXt and hybrid pyramids the first step ends with stage 1, the second with stage 2, the eleventh
with stage 3; downsampling counts as a block. In ours with LSNet the first one takes in the stem, too, and the sixth one
ends stage 3. A ViT, whose grid never changes, runs one block per step.
"""

VIT = [[i, i] for i in range(12)]
CONVNEXT_T = [[0, 2], [3, 6], [7, 8], *([i, i] for i in range(9, 17)), [17, 20]]
CONVNEXT_S = CONVNEXT_B = [[0, 2], [3, 6], [7, 10], *([i, i + 2] for i in range(11, 35, 3)), [35, 38]]


def _lsnet_groups(stage2: int, stage3: int) -> list[list[int]]:
    """From the first blocks of the stages 2 and 3, the later ones being alike in all sizes."""
    ends = [stage2 - 1, stage3 - 1, *(stage3 + i for i in (1, 3, 5, 8, 9, 11, 13, 15, 17, 19))]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [[first, last] for first, last in zip(starts, ends, strict=True)]


LSNET_T, LSNET_S, LSNET_B = _lsnet_groups(2, 5), _lsnet_groups(3, 6), _lsnet_groups(6, 13)
