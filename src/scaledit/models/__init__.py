"""The network: pure PyTorch, independent of diffusion."""
