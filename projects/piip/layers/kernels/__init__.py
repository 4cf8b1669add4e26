"""What operators run on: plain PyTorch, C++ built on demand, Triton.

Each module of an operator has ``forward``, ``backward`` and ``obstacle(x, w)``, which says why it cannot take these
tensors. The operator chooses between them.
"""
