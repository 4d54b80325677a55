"""Pictures of readings for people: a contact sheet of many, and the steps from one photograph to its answer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture
from pipeline.photos.reading import Digit, Reading

CARD_WIDTH, CARD_HEIGHT, PHOTO_HEIGHT = 228, 276, 150  # pixels of a card on the contact sheet, and of its photograph
COLUMNS = 6
FIELD = 44  # pixels of a field on the contact sheet
STEP = 300  # pixels of a step of the explanation
PAPER, CARD, TEXT, FAINT_TEXT = (236, 238, 241), (255, 255, 255), (32, 36, 42), (122, 128, 138)
COLOURS = {
    "digit": (28, 138, 84),
    "unsure": (214, 134, 22),
    "no digit": (122, 128, 138),
    "unreadable": (190, 52, 52),
}
WRONG = (190, 52, 52)
OCCLUDED = 5  # pixels of the square that is hidden to see what an answer rests on (Zeiler & Fergus 2014)


@dataclass(frozen=True)
class Card:
    """A picture with its reading; ``label`` is None where it is not known, ``picture`` None where it is unreadable."""

    file: str
    picture: Picture | None
    reading: Reading
    label: str | None


def contact_sheet(cards: Sequence[Card]) -> Image.Image:
    """Draw every picture with the boxes found, the fields that the network saw, the answer, and the label beside it."""
    rows = max(1, -(-len(cards) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * CARD_WIDTH + 12, rows * CARD_HEIGHT + 12), PAPER)
    for number, card in enumerate(cards):
        place = 12 + number % COLUMNS * CARD_WIDTH, 12 + number // COLUMNS * CARD_HEIGHT
        sheet.paste(_card(card), place)
    return sheet


def _card(card: Card) -> Image.Image:
    tile = Image.new("RGB", (CARD_WIDTH - 12, CARD_HEIGHT - 12), CARD)
    draw = ImageDraw.Draw(tile)
    if card.picture is not None:
        shown = _draw_boxes(card.picture, card.reading.digits, tile.width, PHOTO_HEIGHT)
        tile.paste(shown, ((tile.width - shown.width) // 2, (PHOTO_HEIGHT - shown.height) // 2))
    for number, digit in enumerate(card.reading.digits[:4]):
        tile.paste(_draw_field(digit.field, FIELD), (8 + number * (FIELD + 4), PHOTO_HEIGHT + 8))
    y = PHOTO_HEIGHT + FIELD + 12
    answer = card.reading.text or card.reading.verdict
    draw.text((8, y), _shorten(answer, 12), COLOURS[card.reading.verdict], _font(22))
    words, colour = _judgement(card)
    draw.text((tile.width - 8, y + 6), words, colour, _font(13), anchor="ra")
    remark = card.reading.reason or f"least probability {min(digit.probability for digit in card.reading.digits):.3f}"
    draw.text((8, y + 27), _shorten(remark, 38), FAINT_TEXT, _font(11))
    draw.text((8, y + 41), _shorten(card.file, 38), FAINT_TEXT, _font(11))
    return tile


def _judgement(card: Card) -> tuple[str, tuple[int, int, int]]:
    if card.label is None:
        return "not scored", FAINT_TEXT
    return (
        ("right", COLOURS["digit"]) if is_right(card.reading, card.label) else (f"is {card.label or 'no digit'}", WRONG)
    )


def is_right(read: Reading, label: str) -> bool:
    """Tell whether a picture is read as labelled; one without digits is right unless digits are claimed."""
    return read.text == label if label else read.verdict != "digit"


def explain(picture: Picture, read: Reading, classifier: Classifier) -> Image.Image:
    """Draw the steps from the photograph to the answer: paper, lines, pieces, fields, and what the answer rests on."""
    seen = picture if read.seen is None else replace(picture, grey=read.seen)
    ink = photo.extract_ink(seen.grey)
    page = photo.segment_ink(ink, reading.SHARES[1:2])[0]
    peak = max(page.peak, 0.01)
    labels = np.where(np.isin(page.labels, [piece.label for piece in page.pieces]), page.labels, 0)
    lines = photo.ink_mask(ink, peak, photo.PALE[0]) & (labels == 0)
    steps = [
        (
            "1  upright and grey" if seen.grey is picture.grey else "1  upright and grey, the sheet alone",
            _draw_boxes(seen, (), STEP, STEP),
        ),
        (
            f"2  the paper divided away ({'white' if ink.white else 'dark'} ink)",
            _draw_strength(np.clip(ink.strength / peak, 0, 1), np.zeros_like(lines)),
        ),
        ("3  lines and pale marks taken out (red)", _draw_strength(page.strength, lines)),
        ("4  the pieces of ink", _draw_pieces(labels)),
        (f"5  what is read: {read.text or read.verdict}", _draw_boxes(seen, read.digits, STEP, STEP)),
    ]
    high = max(image.height for _, image in steps)
    digits = [_draw_evidence(digit, classifier) for digit in read.digits[:12]]
    below = max(0, -(-len(digits) // 4)) * 190
    sheet = Image.new("RGB", (len(steps) * (STEP + 16) + 16, high + 76 + below), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((16, 10), f"{read.text or '-'}   {read.verdict}   {read.reason}", COLOURS[read.verdict], _font(20))
    for number, (title, image) in enumerate(steps):
        x = 16 + number * (STEP + 16)
        draw.text((x, 42), title, TEXT, _font(13))
        sheet.paste(image, (x, 64))
    for number, image in enumerate(digits):
        sheet.paste(image, (16 + number % 4 * 392, high + 76 + number // 4 * 190))
    return sheet


def _draw_evidence(digit: Digit, classifier: Classifier) -> Image.Image:
    """Draw a digit's field, the part of it that the answer rests on, and the probabilities with the runner-up."""
    tile = Image.new("RGB", (380, 178), CARD)
    draw = ImageDraw.Draw(tile)
    tile.paste(_draw_field(digit.field, 112), (8, 28))
    tile.paste(_draw_occlusion(digit.field, occlusion(digit.field, digit.digit, classifier)), (128, 28))
    draw.text((8, 8), "field", FAINT_TEXT, _font(12))
    draw.text((128, 8), "the answer rests on", FAINT_TEXT, _font(12))
    second = int(np.argsort(digit.probabilities)[-2])
    draw.text(
        (8, 148), f"{digit.name}, then {digit.classes[second]}   {digit.verdict}", COLOURS[digit.verdict], _font(16)
    )
    likeliest = np.sort(np.argsort(-digit.probabilities, kind="stable")[:10])  # as many as there is room for
    for row, value in enumerate(likeliest.tolist()):
        y, name, probability = 28 + row * 14, digit.classes[value], digit.probabilities[value]
        colour = COLOURS["digit"] if value == digit.digit else FAINT_TEXT
        draw.rectangle((266, y, 266 + round(64 * probability), y + 9), colour)
        draw.text((252 if len(name) == 1 else 268, y - 3), _shorten(name, 10), TEXT, _font(12))
        draw.text((334, y - 3), f"{probability:.3f}", FAINT_TEXT, _font(11))
    return tile


def occlusion(field: np.ndarray, digit: int, classifier: Classifier) -> np.ndarray:
    """Return how much the probability of ``digit`` falls when what is around a pixel is hidden: [28, 28] in 0..1."""
    half = OCCLUDED // 2
    hidden = np.repeat(field[None], field.size, axis=0)
    for number, (y, x) in enumerate(np.ndindex(field.shape)):
        hidden[number, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = 0
    whole = classifier.probabilities(field[None])[0, digit]
    fall = whole - classifier.probabilities(hidden)[:, digit].reshape(field.shape)
    return np.clip(fall, 0, 1)


def few_colours(image: Image.Image) -> Image.Image:
    """Return the picture in 128 colours: a quarter of the bytes, for what git keeps."""
    return image.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file that holds pixels and nothing else."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def _draw_boxes(picture: Picture, digits: Sequence[Digit], width: int, height: int) -> Image.Image:
    """Return a picture at a size that fits, with a coloured box around each digit."""
    tall, wide = picture.grey.shape
    scale = min(width / wide, height / tall)
    shape = max(1, round(wide * scale)), max(1, round(tall * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = Image.fromarray(cv2.resize(picture.grey, shape, interpolation=smooth)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for digit in digits:
        x, y, w, h = (value / picture.factor * scale for value in digit.box)
        draw.rectangle((x - 2, y - 2, x + w + 1, y + h + 1), outline=COLOURS[digit.verdict], width=2)
    return image


def _draw_field(field: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(field).resize((size, size), Image.Resampling.NEAREST).convert("RGB")


def _draw_occlusion(field: np.ndarray, fall: np.ndarray) -> Image.Image:
    weight = fall / max(1e-6, float(fall.max()))
    rgb = np.stack([np.maximum(field, 255 * weight), field * (1 - 0.7 * weight), field * (1 - 0.9 * weight)], -1)
    return Image.fromarray(rgb.astype(np.uint8)).resize((112, 112), Image.Resampling.NEAREST)


def _draw_strength(strength: np.ndarray, lines: np.ndarray) -> Image.Image:
    rgb = np.repeat((255 * strength).astype(np.uint8)[..., None], 3, -1)
    rgb[lines] = (200, 60, 60)
    return _resize_step(rgb)


def _draw_pieces(labels: np.ndarray) -> Image.Image:
    hues = (np.arange(labels.max() + 1) * 67 % 180).astype(np.uint8)
    palette = np.stack([hues, np.full_like(hues, 150), np.full_like(hues, 240)], -1)
    palette[0] = 0
    return _resize_step(cv2.cvtColor(palette[labels], cv2.COLOR_HSV2RGB))


def _resize_step(rgb: np.ndarray) -> Image.Image:
    scale = STEP / max(rgb.shape[:2])
    shape = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return Image.fromarray(cv2.resize(rgb, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST))


def _shorten(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
