"""Time and memory of networks against the number of labels K, side by side with stock nnU-Net."""
