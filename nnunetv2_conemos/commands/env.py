"""`conemos env`: print the line that lets nnU-Net find the trainers."""

from __future__ import annotations

import argparse
import os

from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, export_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Use it as: eval "$(conemos env)"'


def run(args: argparse.Namespace) -> None:
    print(export_line(os.environ.get(VARIABLE), doorway_folder()))
