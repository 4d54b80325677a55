"""Crops of drawn pages with their truth, from grey pictures that are normalised locally."""

from __future__ import annotations
from typing import NamedTuple
import cv2, numpy as np
from benchmarks.detector import pages
from benchmarks.detector.glyphs import Writer
from benchmarks.detector.pages import Page

SIDE = 160
LEAST, MOST = 13.0, 60.0
UNIT, REACH = 24.0, 16.0
CROPS = 4
SIGMA = 14.0


class Crop(NamedTuple):
    seen: np.ndarray
    digit: np.ndarray
    way: np.ndarray
    middle: np.ndarray
    either: np.ndarray
    size: np.ndarray
    kind: np.ndarray


def normalise(grey):
    """uint8 [h,w] -> uint8, 128 where nothing is; darker below."""
    g = grey.astype(np.float32)
    m = cv2.GaussianBlur(
        g, (0, 0), SIGMA, borderType=cv2.BORDER_REFLECT_101 if min(g.shape) > 1 else cv2.BORDER_REPLICATE
    )
    d = cv2.GaussianBlur((g - m) ** 2, (0, 0), SIGMA)
    return np.clip(np.rint(128 + 36 * (g - m) / (np.sqrt(d) + 3)), 0, 255).astype(np.uint8)


def resized(grey, scale):
    shape = max(4, round(grey.shape[1] * scale)), max(4, round(grey.shape[0] * scale))
    return cv2.resize(grey, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def cut(rng, page):
    usual = float(np.median(page.boxes[:, 2:].max(1))) if len(page.boxes) else 40.0
    least, most = (LEAST, MOST) if rng.random() < 0.75 else (5, 200)
    grey = page.grey
    scale = float(np.clip(least * (most / least) ** rng.random() / usual, SIDE / 8 / max(grey.shape), 1.6))
    small = resized(grey, scale)
    height, width = small.shape
    x, y = (int(rng.integers(min(0, side - SIDE), max(0, side - SIDE) + 1)) for side in (width, height))
    if max(height, width) <= SIDE // 2 - 4:
        x, y = (-int(rng.integers(0, SIDE // 2 - side)) for side in (width, height))
    elif len(page.boxes) and min(height, width) > SIDE and rng.random() < 0.6:
        box, place = scale * page.boxes[rng.integers(len(page.boxes))], SIDE * rng.uniform(0.2, 0.8, 2)
        x = int(np.clip(box[0] + box[2] / 2 - place[0], 0, width - SIDE))
        y = int(np.clip(box[1] + box[3] / 2 - place[1], 0, height - SIDE))
    m = 48  # context for the normalisation
    rows, columns = (slice(max(0, start - m), min(side, start + SIDE + m)) for start, side in ((y, height), (x, width)))
    norm = normalise(small[rows, columns])
    seen = np.full((SIDE, SIDE), 128, np.uint8)
    r, c = (slice(max(0, start), min(side, start + SIDE)) for start, side in ((y, height), (x, width)))
    seen[r.start - y : r.stop - y, c.start - x : c.stop - x] = norm[
        r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start
    ]
    return _with_truth(seen, page, scale, (x, y)), max(height, width) <= SIDE // 2 - 4


def _with_truth(seen, page, scale, corner):
    half, quarter = SIDE // 2, SIDE // 4
    reach = max(1, round(1.5 / scale))
    owners = cv2.dilate(page.owner, np.ones((reach, reach), np.uint8))
    (h, w), (x, y) = owners.shape, corner
    down, across = (((2 * np.arange(half) + 1 + start) / scale).astype(int) for start in (y, x))
    inside = ((down >= 0) & (down < h))[:, None] & ((across >= 0) & (across < w))
    owner = np.where(inside, owners[down.clip(0, h - 1)][:, across.clip(0, w - 1)], 0)
    top, left, bottom, right = (max(0, int(v / scale)) for v in (y, x, y + SIDE, x + SIDE))
    whole, shown = (
        np.bincount(p.ravel(), minlength=len(page.boxes) + 1) for p in (page.owner, page.owner[top:bottom, left:right])
    )
    crop = Crop(
        seen,
        np.zeros((half, half), np.uint8),
        np.zeros((half, half, 2), np.int8),
        np.zeros((quarter, quarter), np.uint8),
        np.zeros((quarter, quarter), np.uint8),
        np.zeros((quarter, quarter, 2), np.float16),
        np.zeros((quarter, quarter), np.uint8),
    )
    for number, box in enumerate(page.boxes, 1):
        if shown[number] < 4:
            continue
        uncut = np.prod((np.minimum((w, h), box[:2] + box[2:]) - np.maximum(0, box[:2])) / box[2:])
        share = max(0.0, float(uncut)) * shown[number] / whole[number]
        own = owner == number
        place = scale * box - (x, y, 0, 0)
        size = place[2:].max()
        if share < 0.5 or not 0.8 * LEAST < size < 1.25 * MOST:
            continue
        if share < 0.8 or not LEAST <= size <= MOST:
            crop.digit[own] = 2
            _allow(crop.either, place)
        else:
            crop.digit[own] = 1
            _teach(crop, own, place, page.labels[number - 1])
    return crop


def _allow(either, place):
    column, row = np.clip((place[:2] + place[2:] / 2) / 4, 0, len(either) - 1).astype(int)
    near = max(1, int(place[2:].max() / 8))
    either[max(0, row - near) : row + near + 1, max(0, column - near) : column + near + 1] = 1


def _teach(crop, own, place, label):
    x, y = place[:2] + place[2:] / 2
    rows, columns = np.nonzero(own)
    crop.way[rows, columns, 0] = np.clip(np.rint(2 * (x - 2 * columns - 1)), -127, 127)
    crop.way[rows, columns, 1] = np.clip(np.rint(2 * (y - 2 * rows - 1)), -127, 127)
    if not (0 <= x < SIDE and 0 <= y < SIDE):
        return
    steps, (wide, high) = 4 * np.arange(SIDE // 4) + 2, np.maximum(2.5, 0.14 * place[2:])
    hill = np.exp(-(((steps - x) / wide) ** 2 + ((steps[:, None] - y) / high) ** 2) / 2)
    hill[int(y / 4), int(x / 4)] = 1
    stronger = np.rint(255 * hill).astype(np.uint8) > crop.middle
    np.maximum(crop.middle, np.rint(255 * hill).astype(np.uint8), out=crop.middle)
    near = (hill > 0.3) & stronger
    crop.size[near] = np.log(np.maximum(2, place[2:]) / UNIT)
    crop.kind[near] = label + 1


def _four(parts):
    half = len(parts[0]) // 2
    corner = [p[:half, :half] for p in parts]
    return np.vstack([np.hstack(corner[:2]), np.hstack(corner[2:])])


_W = {}


def work(args):
    """Return the crops of some pages, stacked."""
    path, seed, first, count = args
    cv2.setNumThreads(1)
    if "data" not in _W:
        _W["data"] = tuple(np.load(f"{path}/train-{kind}.npy") for kind in ("images", "labels"))
    key = (seed, first // 2000)
    if _W.get("key") != key:
        im, lb = _W["data"]
        rng = np.random.default_rng([seed, first // 2000, 1])
        ch = rng.choice(len(im), 2000, replace=False)
        _W["writer"] = Writer(im[ch], lb[ch], rng, european=0.5)
        _W["key"] = key
    out, waiting = [], []
    for n in range(first, first + count):
        rng = np.random.default_rng([seed, n])
        page = pages.draw(rng, _W["writer"])
        for _ in range(CROPS):
            crop, is_small = cut(rng, page)
            (waiting if is_small else out).append(crop)
        while len(waiting) >= 4:
            out.append(Crop(*(_four(p) for p in zip(*waiting[:4]))))
            waiting = waiting[4:]
    return tuple(np.stack(p) for p in zip(*out))
