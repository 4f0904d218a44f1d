"""Real volumes: not part of the project; their folder is named by CONEMOS_TEST_DATA (default ../shared/data)."""

import os
from pathlib import Path

import pytest
from paths import ROOT

DATA = Path(os.environ.get("CONEMOS_TEST_DATA", ROOT.parent / "shared" / "data"))
real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real volumes in {DATA}; name their folder by CONEMOS_TEST_DATA"),
]
