"""Ten minutes on a GPU: tests, speed beside stock nnU-Net, and four arms trained on Hippocampus."""
