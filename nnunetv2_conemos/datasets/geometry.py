"""Where the voxels of a file lie: size, spacing, origin and direction."""

from __future__ import annotations

from pathlib import Path

import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO


def grid_of(file: Path) -> dict[str, tuple[float, ...]] | None:
    """Size, spacing, origin and direction from the header; None where there is none to trust, or it cannot be read."""
    if not file.name.endswith((*SimpleITKIO.supported_file_endings, ".nii")):
        return None
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    kinds = ("Size", "Spacing", "Origin", "Direction")
    return {kind.lower(): tuple(getattr(reader, f"Get{kind}")()) for kind in kinds}
