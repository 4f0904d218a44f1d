"""Train one nnU-Net v2 network from cases that are annotated for different subsets of the labels."""

__version__ = "0.1.0"
