"""What operators run on: plain PyTorch, C++ built on demand, Triton.

Each module of an operator has ``forward`` and ``backward``; ``missing()``, which says why this machine cannot run it,
or None; and ``obstacle(*inputs)``, which says why it cannot take these tensors, or None. :mod:`.choice` picks one.
Those of SKA have ``forward_normed``, too, and those of deformable attention may have ``forward_joined``: more of what
is around the operator in fused models.
"""
