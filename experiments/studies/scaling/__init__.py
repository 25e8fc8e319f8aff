"""How the held-out loss of POLAR's pre-training falls with compute."""
