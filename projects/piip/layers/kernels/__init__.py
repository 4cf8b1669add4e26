"""What operators run on: plain PyTorch, C++ and Triton. Which one is chosen is decided by the operator."""
