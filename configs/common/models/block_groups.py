"""Blocks per interaction step of the published ConvNeXt and hybrid pyramids: inclusive ranges, twelve steps.

The first step ends with stage 1, the second with stage 2, the eleventh with stage 3; downsampling counts as a block. A
ViT, whose grid never changes, runs one block per step.
"""

VIT = [[i, i] for i in range(12)]
CONVNEXT_T = [[0, 2], [3, 6], [7, 8], *([i, i] for i in range(9, 17)), [17, 20]]
CONVNEXT_S = CONVNEXT_B = [[0, 2], [3, 6], [7, 10], *([i, i + 2] for i in range(11, 35, 3)), [35, 38]]
