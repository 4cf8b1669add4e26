"""What operators run on: plain PyTorch, C++ built on demand, Triton.

Each module of an operator has ``forward`` and ``backward``; ``missing()``, which says why this machine cannot run it,
or None; and ``obstacle(*inputs)``, which says why it cannot take these tensors, or None. :mod:`.choice` picks one.
"""
