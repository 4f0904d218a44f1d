"""Train one nnU-Net v2 network from cases that are annotated for different subsets of the labels.

The names of `__init__.pyi` are imported when they are first used: nnU-Net and PyTorch take seconds.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
