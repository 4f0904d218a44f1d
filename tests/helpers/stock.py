"""nnU-Net as it is where this package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = (
    "import sys; sys.modules['nnunetv2_conemos'] = None  # importing it fails from now on\n"
    "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as predict\n"
    "predict()"
)


def predict_without_the_plugin(model: Path, images: Path, output: Path, *more: str) -> None:
    """nnUNetv2_predict_from_modelfolder in a process of its own, without external trainer folders."""
    words = ["-i", str(images), "-o", str(output), "-m", str(model), "-f", "0", *more]
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    done = subprocess.run([sys.executable, "-c", CODE, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
