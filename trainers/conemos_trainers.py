"""The doorway: nnU-Net finds the trainers here, when nnUNet_extTrainer names this folder.

The classes live in the installed package, because nnU-Net forgets the modules it imports from such a folder: a class
defined here would change identity at each look-up and could not be pickled.
"""

from nnunetv2_conemos.methods import *  # noqa: F403
from nnunetv2_conemos.training.stock import *  # noqa: F403
