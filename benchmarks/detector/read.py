"""Read pictures by the detector's digits, without the rules: the same network as ever reads what it finds."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.detector import crops as C
from benchmarks.detector.network import Net
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Page, Piece
from pipeline.photos.reading import Digit, Reading

REACH, UNIT = 16.0, 24.0
SIDES = (1131, 800, 565, 400, 283, 200, 141, 100, 71, 50)
torch.set_num_threads(1)


class Detector:
    def __init__(self, path, dev="cpu"):
        sd = torch.load(path, map_location="cpu")
        n = sum(v.numel() for v in sd.values())
        self.net = Net(1.0, False) if n < 200000 else Net(2.2, True)
        self.net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in sd.items()})
        self.net.eval()

    def maps(self, seen):
        h, w = seen.shape
        H, W = -(-h // 4) * 4, -(-w // 4) * 4
        x = np.full((1, 1, H, W), 0, np.float32)
        x[0, 0, :h, :w] = (seen.astype(np.float32) - 128) / 48
        with torch.no_grad():
            p, m = self.net(torch.from_numpy(x))
        return p[0].permute(1, 2, 0).numpy(), m[0].permute(1, 2, 0).numpy()


@dataclass
class Det:
    p: float
    x: float
    y: float
    w: float
    h: float
    cls: np.ndarray
    scale: int
    fit: float = 1.0
    mask: object = None
    off: tuple = None


def in_scale(mid, scale, si, least=0.2):
    likely = 1 / (1 + np.exp(-np.clip(mid[..., 0], -30, 30)))
    peaks = (likely >= cv2.dilate(likely, np.ones((3, 3), np.uint8))) & (likely > least)
    kept = []
    for y, x in sorted(zip(*np.nonzero(peaks)), key=lambda q: -likely[q]):
        near = likely[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        rows, cols = (np.arange(max(0, s - 1), max(0, s - 1) + n) for s, n in zip((y, x), near.shape))
        m = 4 * np.array([(near.sum(0) * cols).sum(), (near.sum(1) * rows).sum()]) / near.sum() + 2
        size = UNIT * np.exp(np.clip(mid[y, x, 1:3], -2.5, 2.5))
        if all(
            np.hypot(*((m - np.array([o.x, o.y]) * scale) / ((size + np.array([o.w, o.h]) * scale) / 2))) > 0.38
            for o in kept
        ):
            c = mid[y, x, 3:]
            c = np.exp(c - c.max())
            c /= c.sum()
            kept.append(
                Det(
                    float(likely[y, x]),
                    m[0] / scale,
                    m[1] / scale,
                    size[0] / scale,
                    size[1] / scale,
                    c,
                    si,
                    float(size.max()),
                )
            )
    return kept


def looks(det, grey):
    out = []
    for side in SIDES:
        s = side / max(grey.shape)
        if s <= 1.26:
            small = C.resized(grey, s)
            p, m = det.maps(C.normalise(small))
            out.append((s, p, in_scale(m, s, len(out)), small.shape))
    return out


def mask_of(d, look, shape, grown=0.75):
    """Return the digit's logit map [h,w] in picture pixels of its window, negative where another's, and the window."""
    s, pix, dets, _ = look
    x0, x1 = int(max(0, d.x - grown * d.w - 3)), int(min(shape[1], d.x + grown * d.w + 4))
    y0, y1 = int(max(0, d.y - grown * d.h - 3)), int(min(shape[0], d.y + grown * d.h + 4))
    xs, ys = np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5
    mx, my = np.meshgrid((xs * s / 2 - 0.5).astype(np.float32), (ys * s / 2 - 0.5).astype(np.float32))
    pw = cv2.remap(pix, mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ex = xs[None] * s + REACH * pw[..., 1]
    ey = ys[:, None] * s + REACH * pw[..., 2]
    near = [o for o in dets if o.p > 0.25 and abs(o.x - d.x) < 2 * (o.w + d.w) and abs(o.y - d.y) < 2 * (o.h + d.h)]

    def away(o):
        return np.hypot((ex - o.x * s) / max(8, o.w * s), (ey - o.y * s) / max(8, o.h * s))

    mine = away(d)
    own = mine < 0.75
    for o in near:
        if o is not d:
            own &= mine <= away(o)
    return np.where(own, pw[..., 0], -9.0), (x0, y0)


def pick(looks_, thr, shape):
    alld = [d for l in looks_ for d in l[2] if d.p > thr and FIT[0] < d.fit < FIT[1]]

    def quality(d):
        return d.p * np.exp(-0.5 * (np.log(d.fit / BESTFIT) / 0.7) ** 2)

    kept = []
    for d in sorted(alld, key=quality, reverse=True):
        ok = True
        for o in kept:
            ix = min(d.x + d.w / 2, o.x + o.w / 2) - max(d.x - d.w / 2, o.x - o.w / 2)
            iy = min(d.y + d.h / 2, o.y + o.h / 2) - max(d.y - d.h / 2, o.y - o.h / 2)
            if ix <= 0 or iy <= 0:
                continue
            if np.hypot((d.x - o.x) / ((d.w + o.w) / 2), (d.y - o.y) / ((d.h + o.h) / 2)) < 0.4:
                ok = False
                break
            A, B = raster(d, looks_, shape), raster(o, looks_, shape)
            both = len(np.intersect1d(A, B, assume_unique=True))
            if both > 0.5 * max(1, min(len(A), len(B))) or (
                ix * iy > 0.85 * d.w * d.h and both > 0.25 * max(1, len(A))
            ):
                ok = False
                break
        if ok:
            kept.append(d)
    return kept


FIT = (11, 64)
BESTFIT = 28


def raster(d, looks_, shape):
    if d.mask is None:
        lg, (x0, y0) = mask_of(d, looks_[d.scale], shape)
        r, c = np.nonzero(lg[::2, ::2] > 0)
        d.mask = (2 * r + y0) // 2 * 100000 + (2 * c + x0) // 2
    return d.mask


WHOLE = 0.6


def field_of(grey, d, look):
    logit, (x0, y0) = mask_of(d, look, grey.shape)
    m = int(0.5 * max(d.w, d.h)) + 4
    X0, Y0 = max(0, x0 - m), max(0, y0 - m)
    g = grey[Y0 : y0 + logit.shape[0] + m, X0 : x0 + logit.shape[1] + m]
    L = np.full(g.shape, -9.0)
    L[y0 - Y0 : y0 - Y0 + logit.shape[0], x0 - X0 : x0 - X0 + logit.shape[1]] = logit
    on = L > 0
    if on.sum() < 6:
        return None, None, None
    wide = cv2.dilate(on.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    around = (cv2.dilate(on.astype(np.uint8), photo._ellipse(2 * max(2, int(0.15 * max(d.w, d.h))) + 1)) > 0) & ~wide
    white = np.mean(g[on]) > np.mean(g[around]) if around.any() else False
    dark = 255 - g if white else g
    paper = photo._estimate_paper(dark, 0.8 * max(d.w, d.h))
    s = np.clip(1 - dark / np.maximum(paper, 1), 0, 1).astype(np.float32)
    off = ~wide
    level, noise = photo._level_and_noise(s[off]) if off.sum() > 20 else (0, 0)
    s = np.maximum(s - level, 0)
    vals = s[on]
    top = float(np.quantile(vals, 0.98))
    vals = vals[vals >= top / 2]
    peak = float(np.quantile(vals, 0.75)) if len(vals) else 0
    if peak <= 0:
        return None, None, None
    inked = s > 0.25 * peak
    own = on & inked
    # strokes that are mostly the digit's are all of it
    n, lab, stats, _ = cv2.connectedComponentsWithStats(inked.astype(np.uint8), connectivity=8)
    mine = np.bincount(lab[own], minlength=n)
    share = mine / np.maximum(1, stats[:, 4])
    share[0] = 0
    own |= share[lab] > WHOLE
    if own.sum() < 5:
        return None, None, None
    low = min(3 * noise, 0.3 * peak)
    st = np.clip((s - low) / (max(peak, low + 1e-3) - low), 0, 1) ** photo.GAMMA
    # soft edges: pixels near own ink, not another's
    reach = max(1.5, 0.06 * max(d.w, d.h))
    dist = cv2.distanceTransform(1 - own.astype(np.uint8), cv2.DIST_L2, 3)
    keep = (dist < reach) & ((L > -2.0) | own)
    rows, cols = np.nonzero(own)
    box = (X0 + int(cols.min()), Y0 + int(rows.min()), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1)
    return photo.prepare_field(np.where(keep, st, 0).astype(np.float32)), box, peak


def rows_of(boxes, shape):
    pieces = tuple(Piece(i + 1, b, b[2] * b[3] // 3, False, i + 1) for i, b in enumerate(boxes))
    page = Page(np.zeros(shape, np.float32), np.zeros(shape, np.int32), pieces, 1.0, 1.0)
    usual = float(np.median([b[3] for b in boxes]))
    tilt = reading._estimate_tilt(list(pieces), usual)
    rows = []
    large = [p for p in pieces if p.box[3] >= 0.62 * usual]
    small = [p for p in pieces if p.box[3] < 0.62 * usual]
    for p in sorted(large, key=lambda p: reading._row_position(p, tilt)):
        mid = np.mean([reading._row_position(o, tilt) for o in rows[-1]]) if rows else -np.inf
        if reading._row_position(p, tilt) - mid < 0.6 * usual:
            rows[-1].append(p)
        else:
            rows.append([p])
    cs = [float(np.mean([reading._row_position(o, tilt) for o in r])) for r in rows]
    for p in small:
        k = int(np.argmin([abs(reading._row_position(p, tilt) - c) for c in cs]))
        if abs(reading._row_position(p, tilt) - cs[k]) < 0.9 * usual:
            rows[k].append(p)
        else:
            rows.append([p])
            cs.append(reading._row_position(p, tilt))
    rows = [r for _, r in sorted(zip(cs, rows), key=lambda q: q[0])]
    return [[q.label - 1 for q in sorted(r, key=lambda q: q.box[0] + q.box[2] / 2)] for r in rows]


def read(picture, det, classifier, one=False):
    grey = picture.grey
    L = looks(det, grey)
    found = pick(L, 0.22 if not one else 0.15, grey.shape)
    items = []
    for d in found:
        f, b, peak = field_of(grey, d, L[d.scale])
        if f is not None:
            items.append((d, f, b, peak))
    if not items:
        return Reading((), "no digit", "nothing")
    P = classifier.probabilities(np.stack([f for _, f, _, _ in items]))
    digs = [Digit(int(p.argmax()), float(p.max()), classifier.verdict(p), b, f, p) for p, (d, f, b, _) in zip(P, items)]
    if one:
        h, w = grey.shape
        sc = [
            d.p
            * np.sqrt(max(b[2], b[3]))
            * (1 - 0.8 * np.hypot((b[0] + b[2] / 2) / w - 0.5, (b[1] + b[3] / 2) / h - 0.5) / 0.7071)
            for d, f, b, _ in items
        ]
        k = int(np.argmax(sc))
        return Reading((digs[k],), digs[k].verdict, "")
    rws = rows_of([b for _, _, b, _ in items], grey.shape)
    order = []
    for r in rws:
        big = [items[i][2] for i in r if items[i][0].p > 0.6] or [items[i][2] for i in r]
        xs = np.array([b[0] + b[2] / 2 for b in big])
        o = np.argsort(xs)
        mid = np.array([b[1] + b[3] / 2 for b in big])[o]
        hh = float(np.median([b[3] for b in big]))
        for i in r:
            d, _, b, _ = items[i]
            m = np.interp(b[0] + b[2] / 2, xs[o], mid)
            tall = b[3] > 0.6 * hh
            is_off = b[1] > m + 0.05 * hh or b[1] + b[3] < m - 0.05 * hh
            need = (
                0.22
                if tall and not is_off and b[1] < m - 0.2 * hh and b[1] + b[3] > m + 0.2 * hh
                else 0.7
                if is_off and b[3] < 0.75 * hh
                else 0.38
            )
            if d.p > need:
                order.append(i)
    if not order:
        return Reading((), "no digit", "")
    digs = [digs[i] for i in order]
    ds = [items[i][0] for i in order]
    sure = all(x.verdict == "digit" for x in digs) and min(d.p for d in ds) > 0.6
    allno = all(x.verdict == "no digit" for x in digs)
    digs = [x for x in digs if x.verdict != "no digit"]
    return Reading(tuple(digs), "no digit" if allno else "digit" if sure else "unsure", "")


def main(weights, folders):
    det, classifier = Detector(weights), Classifier.load()
    for folder in folders:
        tot = {}
        for row in csv.DictReader(open(folder / "labels.csv")):
            label = row["label"]
            picture = photo.open_picture(folder / row["file"])
            kind = "--one" if len(label) == 1 else "string" if label else "none"
            said = read(picture, det, classifier, one=kind == "--one")
            good = said.text == label if label else said.verdict != "digit"
            t = tot.setdefault(kind, [0, 0, 0, 0])
            t[0] += 1
            t[1] += good
            t[2] += said.verdict == "digit"
            t[3] += said.verdict == "digit" and not good
        for kind, (count, right, sure, wrong) in sorted(tot.items()):
            print(f"{folder.name:8} {kind:8} {right} of {count} right, {sure} accepted, {wrong} of them wrong")


if __name__ == "__main__":
    main(sys.argv[1], [Path(each) for each in sys.argv[2:]])
