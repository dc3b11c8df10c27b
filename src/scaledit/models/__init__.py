"""What the network is: pure PyTorch, knows nothing of diffusion."""
