"""Turn closed contours into voxels and back, in the plane of a slice and in units of pixels.

The centre of the pixel in column x and row y lies at (x, y). A pixel belongs to contours where its centre lies inside
an odd number of them: holes are contours within contours, or are connected to the outer contour by a channel of no
width (both as in DICOM PS3.3 C.8.8.6.3). A centre on a left or upper edge is inside, one on a right or lower edge is
outside, so that structures which share an edge share no pixel and leave none between them. Point-in-polygon functions
of libraries leave open what they do on edges, and take one polygon at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rasterise(contours: Sequence[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Return the boolean mask [rows,columns] of closed contours, each [points,2] as (x, y): even-odd of all edges."""
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    upward = starts[:, 1] <= ends[:, 1]
    x0, y0 = np.where(upward, starts.T, ends.T)
    x1, y1 = np.where(upward, ends.T, starts.T)
    first, last = np.ceil(y0).clip(0, rows).astype(int), np.ceil(y1).clip(0, rows).astype(int)
    counts = last - first  # rows y of an edge: y0 <= y < y1
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    x = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    crossings = np.zeros((rows, columns + 1), dtype=np.int32)
    np.add.at(crossings, (row, np.ceil(x).clip(0, columns).astype(int)), 1)
    return np.cumsum(crossings, axis=1)[:, :columns] % 2 == 1


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """Return closed contours [points,2] as (x, y) around a boolean mask [rows,columns], holes as contours of their own.

    They run half-way between the centres of pixels inside and outside, so `rasterise` gives the same mask. Contours of
    holes run clockwise, all others counter-clockwise (y down: the other way round).
    """
    from contourpy import contour_generator

    found = contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    return [without_collinear(np.asarray(line)[:-1] - 1) for line in found]


def without_collinear(contour: np.ndarray) -> np.ndarray:
    """Return a closed contour [points,2] without points in the middle of straight lines."""
    before, after = contour - np.roll(contour, 1, axis=0), np.roll(contour, -1, axis=0) - contour
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return contour[np.abs(turns) > 1e-9]


def signed_area(contour: np.ndarray) -> float:
    """Return the area in pixels inside a closed contour [points,2], with the sign of the direction in which it runs."""
    x, y = contour.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
