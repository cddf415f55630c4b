"""`draw_packs`: a picture of packs, token by token, with each image rebuilt below."""

from __future__ import annotations

import copy
import html
import io
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

from patchnpack.packer.batch.packed_image import PackedImage
from patchnpack.packer.batch.pictures.canvas import (
    COLOURS,
    FAINT,
    GROUND,
    INK,
    PAPER,
    RULE,
    as_colors,
    colour_of,
    font,
    hatch,
    printable,
    rgb,
    text_on,
    write,
)
from patchnpack.packer.batch.pictures.overlays import HasTargets, Overlays, overlays_of, thumbs
from patchnpack.packer.text import counted, floor_percent

# L token slots per pack, P patch size, C channels, n slots per line, s width of a slot in pixels

_MARGIN, _TAB, _EDGE, _LINE_GAP = 32, 16, 4, 6
_MIN_SLOT, _MAX_SLOT, _MAX_STRIP = 7, 32, 420
_THUMBS, _FRAME, _CAPTION, _CARD_GAP = (240, 200, 160, 120), 4, 132, 20
_OUTLINE, _OUTLINE_TAB = 8, 22  # around the images of a sample, and above them for its name


class Drawable(HasTargets, Protocol):
    """What drawing needs of a `PackedBatch`."""

    patches: torch.Tensor
    image_mask: torch.Tensor
    keys: list[list[str]]

    @property
    def num_images(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    def images(self) -> Iterator[PackedImage]: ...


def draw_packs(
    batch: Drawable, *, max_packs: int = 8, width: int = 1600, classes: Sequence[str] | None = None
) -> Image.Image:
    """Draw the first `max_packs` packs of a batch and their images as an RGB picture.

    ```
    Pack 1   2 images   14 of 16 tokens   87.5 % full
    |1 1 1 1 1 1|2 2|      token slots in order, line by line, each with its patch; one colour and number per image
    |2 2 2 2 2 2|///|      hatched: padding
    [1]       [ 2 ]        the images, assembled from patches and coords, at one scale; hatched: dropped tokens
    ```

    The images of a sample that has several are outlined together, and each names its frame. Masks are tinted over the
    images, a colour per class except 0, and grey where they say nothing; boxes, outlines and visible points are drawn
    in them with the number of their class. A second mask, and each map, is a picture of its own beside the image.

    Args:
        batch: transparent pixels of RGBA patches are drawn over white. Patches of other types or bands are drawn as
            `as_colors` makes them.
        max_packs: number of packs to draw; a line at the end counts the packs left out.
        width: width of the picture in pixels, at least 480. The height follows from the content.
        classes: names of the labels 0, 1, 2 ..., written with the keys. Without them no label is shown.

    Raises:
        ValueError: `max_packs` or `width` is too small, or a label has no name.

    With one build of PIL, the same batch gives the same picture. No plotting library is needed.

    >>> import torch
    >>> from patchnpack import PackedBatch
    >>> batch = PackedBatch(
    ...     patches=torch.zeros(1, 4, 2 * 2 * 3, dtype=torch.uint8),
    ...     segment_ids=torch.tensor([[1, 1, 0, 0]]),
    ...     coords=torch.tensor([[[0, 0], [1, 0], [0, 0], [0, 0]]]),
    ...     grids=torch.tensor([[[2, 1]]]),
    ...     image_sizes=torch.tensor([[[4, 2]]]),
    ...     image_mask=torch.tensor([[True]]),
    ...     labels=torch.tensor([[0]]),
    ...     rows=torch.tensor([[0]]),
    ...     keys=[["a"]],
    ...     patch_size=2,
    ... )
    >>> draw_packs(batch, width=640).width
    640
    """
    L, P = batch.segment_ids.shape[1], batch.patch_size
    channels = batch.patches.shape[-1] // P**2
    if max_packs < 1:
        raise ValueError(f"max_packs is {max_packs}; it must be at least 1")
    if width < 480:
        raise ValueError(f"width is {width} pixels; it must be at least 480, or captions would not fit")
    if channels not in (1, 3, 4) or batch.patches.dtype != torch.uint8:
        batch = copy.copy(batch)
        batch.patches = as_colors(batch.patches, channels, batch.segment_ids > 0)
        channels = batch.patches.shape[-1] // P**2

    walk, room = batch.images(), width - 2 * _MARGIN
    packs = [list(islice(walk, count)) for count in batch.image_mask[:max_packs].sum(1).tolist()]
    segments = batch.segment_ids[:max_packs].cpu().numpy()
    patches = batch.patches[:max_packs].reshape(len(packs), L, P, P, channels).cpu().numpy()
    walk_overlays = overlays_of(batch)
    drawn = [list(islice(walk_overlays, len(pack))) for pack in packs]
    pictures = max((overlays.pictures for pack in drawn for overlays in pack), default=1)
    scale = _thumb_scale(packs, P, room, pictures)

    panels = [_header(batch, room, any(_dropped(image) for pack in packs for image in pack))]
    for b, pack in enumerate(packs):
        panels.append(_title(b, pack, L, room))
        panels.append(_strip(patches[b], segments[b], room))
        panels.extend(_gallery(pack, drawn[b], classes, scale, room))
    if left := len(batch.keys) - len(packs):
        panels.append(_line([(f"and {left} more {'pack' if left == 1 else 'packs'}", 17, FAINT)], room))
    return _stack(panels, width)


def draw_html(batch: Drawable, *, max_packs: int = 2) -> str:
    """Draw the first packs of a batch as HTML that needs no other file, as `PackedBatch` does in a notebook.

    Args:
        batch: as for `draw_packs`.
        max_packs: number of packs to draw.
    """
    title, _, text = html.escape(repr(batch)).partition("\n")
    file = io.BytesIO()
    # JPEG: a PNG of photographs is several times as large, and a notebook stores it with every run.
    draw_packs(batch, max_packs=max_packs, width=960).save(file, "JPEG", quality=80)
    picture = b64encode(file.getvalue()).decode()
    return (
        f'<details open><summary>{title}</summary><pre style="margin:4px 0">{text}</pre>'
        f'<img alt="{title}" src="data:image/jpeg;base64,{picture}" style="max-width:100%"></details>'
    )


def _strip(patches: np.ndarray, segments: np.ndarray, room: int) -> Image.Image:
    """Draw one pack's slots as a film strip with numbered tabs.

    `patches` is (L, P, P, C), `segments` (L,).
    """
    n, s = _slots(len(segments), room)
    lines = _runs(segments, n, s)
    tops = np.cumsum([0] + [s + 2 * _EDGE + _LINE_GAP + _TAB * any(run[3] for run in line) for line in lines])
    pixels = np.full((int(tops[-1]) - _LINE_GAP, n * s, 3), PAPER, np.uint8)
    for i, line in enumerate(lines):
        body = pixels[tops[i + 1] - _LINE_GAP - s - 2 * _EDGE : tops[i + 1] - _LINE_GAP]
        for start, end, number, _ in line:
            box = body[:, start * s : end * s]
            box[:] = colour_of(number) if number else hatch(*box.shape[:2])
            if number:
                _fill_slots(box[_EDGE:-_EDGE], patches[i * n + start : i * n + end])
            if start:
                body[:, start * s - 1 : start * s + 1] = PAPER
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for top, line in zip(tops.tolist(), lines, strict=False):
        for start, _, number, labelled in line:
            if labelled:
                _tab(draw, start * s + (start > 0), top, number)
    return picture


def _slots(length: int, room: int) -> tuple[int, int]:
    """Slots per line and pixels per slot.

    These are the largest slots that keep the strip about `_MAX_STRIP` pixels high.
    """
    for s in range(_MAX_SLOT, _MIN_SLOT - 1, -1):
        lines = -(-length // (room // s))
        if lines * (s + 2 * _EDGE + _LINE_GAP) <= _MAX_STRIP:
            break
    # Make lines equally long, and let slots grow into the room left.
    n = -(-length // lines)
    return n, min(room // n, s + 4)


def _runs(segments: np.ndarray, n: int, s: int) -> list[list[tuple[int, int, int, bool]]]:
    """The runs of one segment in each line of n slots.

    A run is its first slot, end, segment, and whether it is labelled here.

    A segment is labelled once, on the first line with room for the label.
    """
    lines, before, waiting = [], -1, False
    for first in range(0, len(segments), n):
        ids = segments[first : first + n]
        starts = np.flatnonzero(np.diff(ids, prepend=-1)).tolist()
        line = []
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            number = int(ids[start])
            waiting = waiting or number != before if start == 0 else True
            labelled = waiting and _tab_width(number) < (end - start) * s
            line.append((start, end, number, labelled))
            before, waiting = number, waiting and not labelled
        lines.append(line)
    return lines


def _fill_slots(box: np.ndarray, patches: np.ndarray) -> None:
    """Draw patches (n, P, P, C) side by side into `box` (s, n * s, 3), with lines between."""
    s, gap = len(box), int(len(box) >= 10)
    # One resize for all: a box filter mixes no neighbours, since patch edges fall on edges of drawn pixels.
    row = rgb(np.concatenate(patches, axis=1)).resize((len(patches) * (s - gap), s - gap), Image.Resampling.BOX)
    cells = np.asarray(row).reshape(s - gap, len(patches), s - gap, 3)
    box.reshape(s, len(patches), s, 3)[: s - gap, :, gap:] = cells


def _tab(draw: ImageDraw.ImageDraw, x: int, y: int, number: int) -> None:
    colour = colour_of(number) if number else GROUND
    corners = (True, True, False, False)
    draw.rounded_rectangle((x, y, x + _tab_width(number) - 2, y + _TAB), 3, colour, corners=corners)
    write(draw, x + 5, y + 1, _tab_text(number), 13, text_on(colour))


def _tab_text(number: int) -> str:
    return str(number) if number else "padding"


def _tab_width(number: int) -> int:
    return int(font(13).getlength(_tab_text(number))) + 11


def _gallery(
    pack: list[PackedImage], drawn: list[Overlays], classes: Sequence[str] | None, scale: float, room: int
) -> list[Image.Image]:
    """The images of one pack in rows, each above its caption; those of one sample are outlined together."""
    counts = Counter(image.sample for image in pack)
    several = len(counts) < len(pack)
    edge, top = (_OUTLINE, _OUTLINE_TAB) if several else (0, 0)
    rows: list[list[tuple[int, Image.Image]]] = []
    left = 0
    cards = [
        _card(n, image, overlays, classes, scale, frame=counts[image.sample] > 1)
        for n, (image, overlays) in enumerate(zip(pack, drawn, strict=True), 1)
    ]
    for sample, group in groupby(zip(pack, cards, strict=True), lambda each: each[0].sample):
        whole = [card for _, card in group]
        wide = sum(card.width + _CARD_GAP for card in whole) - _CARD_GAP
        if left < wide <= room - 2 * edge:  # a sample that fits into a row is not split
            left = 0
        for card in whole:
            if card.width > left:
                rows.append([])
                left = room - 2 * edge
            rows[-1].append((sample, card))
            left -= card.width + _CARD_GAP
    first = pack[0].sample if pack else 0
    pictures, named = [], set[int]()
    for row in rows:
        picture = Image.new("RGB", (room, max(card.height for _, card in row) + top + edge), PAPER)
        draw, x = ImageDraw.Draw(picture), edge
        for sample, placed in groupby(row, lambda each: each[0]):
            start = x
            for _, card in placed:
                picture.paste(card, (x, picture.height - edge - card.height))
                x += card.width + _CARD_GAP
            if counts[sample] > 1:
                draw.rounded_rectangle(
                    (start - edge, 0, x - _CARD_GAP + edge - 1, picture.height - 1), 5, outline=FAINT
                )
                name = "continued" if sample in named else f"{counts[sample]} images"
                write(draw, start, 3, f"sample {sample - first + 1}: {name}", 14, FAINT)
                named.add(sample)
        pictures.append(picture)
    return pictures


def _card(
    number: int,
    image: PackedImage,
    overlays: Overlays,
    classes: Sequence[str] | None,
    scale: float,
    *,
    frame: bool,
) -> Image.Image:
    (gw, gh), colour = image.grid, colour_of(number)
    pictures = thumbs(image, overlays, scale)
    wide, high = sum(each.width + _FRAME for each in pictures) + _FRAME, pictures[0].height + 2 * _FRAME
    captions = [_shorten(image.key), f"{gw}x{gh} patches", f"{len(image.coords)} of {gw * gh} tokens"]
    if classes is not None:
        captions.insert(1, _class_name(image, classes))
    if frame:
        captions.insert(1, f"frame {image.frame}")
    captions += overlays.captions()
    badge = int(font(15).getlength(str(number))) + 10
    least = max(_CAPTION, badge + 6 + int(font(15).getlength(printable(captions[0]))) + 1)
    top = high + 6
    card = Image.new("RGB", (max(wide, least), top + 20 * len(captions)), PAPER)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, wide - 1, high - 1), colour)
    x = _FRAME
    for picture in pictures:
        card.paste(picture, (x, _FRAME))
        x += picture.width + _FRAME
    draw.rounded_rectangle((0, top, badge - 1, top + 18), 3, colour)
    write(draw, 5, top + 1, str(number), 15, text_on(colour))
    write(draw, badge + 6, top + 1, captions[0], 15, INK)
    for i, caption in enumerate(captions[1:], 1):
        write(draw, 0, top + 1 + 20 * i, caption, 14, FAINT)
    return card


def _thumb_scale(packs: list[list[PackedImage]], P: int, room: int, pictures: int) -> float:
    """Pixels per patch, the largest at which each pack's images fit in one row, within limits.

    An image has `pictures` pictures beside each other, which fit in any case.
    """
    grids = [[image.grid for image in pack] for pack in packs]
    longest = max((max(grid) for pack in grids for grid in pack), default=1)
    for limit in _THUMBS:
        scale = min(P, limit / longest)
        wide = [[gw * scale * pictures + (1 + pictures) * _FRAME for gw, _ in pack] for pack in grids]
        if all(sum(max(_CAPTION, each) + _CARD_GAP for each in pack) <= room for pack in wide):
            break
    return min(scale, (room - 2 * _OUTLINE - (1 + pictures) * (1 + _FRAME)) / (pictures * longest))


def _header(batch: Drawable, room: int, dropped: bool) -> Image.Image:
    P, (B, L) = batch.patch_size, batch.segment_ids.shape
    picture = Image.new("RGB", (room, 62), PAPER)
    draw = ImageDraw.Draw(picture)
    title = f"{B} {'pack' if B == 1 else 'packs'} of {L} token slots"
    x = write(draw, 0, 0, title, 26, INK) + 20
    several = batch.num_samples < batch.num_images
    samples = f" in {counted(batch.num_samples, 'sample')}" if several else ""
    write(draw, x, 8, f"{batch.num_images} images{samples}, patches of {P}x{P} pixels", 17, FAINT)
    x = 0
    legend = [(None, "tokens of one image: one colour, one number"), (False, "padding"), (True, "dropped token")]
    for back, text in legend[: 2 + dropped]:
        sample = np.full((16, 22, 3), COLOURS[0], np.uint8) if back is None else hatch(16, 22, back=back)
        picture.paste(Image.fromarray(sample), (round(x), 40))
        x = write(draw, x + 30, 39, text, 15, FAINT) + 28
    return picture


def _title(b: int, pack: list[PackedImage], L: int, room: int) -> Image.Image:
    tokens = sum(len(image.coords) for image in pack)
    images, full = counted(len(pack), "image"), f"{floor_percent(tokens, L)} full"
    words = [images, f"{tokens} of {L} tokens", full] if pack else ["empty"]
    return _line([(f"Pack {b + 1}", 21, INK), *((word, 17, FAINT) for word in words)], room, rule=True)


def _line(words: list[tuple[str, int, tuple[int, int, int]]], room: int, rule: bool = False) -> Image.Image:
    picture = Image.new("RGB", (room, 44), PAPER)
    draw = ImageDraw.Draw(picture)
    if rule:
        draw.line((0, 6, room, 6), RULE)
    x = 0.0
    for text, size, fill in words:
        x = write(draw, x, 38 - round(size * 1.05), text, size, fill) + 24
    return picture


def _stack(panels: list[Image.Image], width: int) -> Image.Image:
    gap = 14
    height = 2 * _MARGIN + sum(panel.height for panel in panels) + gap * (len(panels) - 1)
    picture = Image.new("RGB", (width, height), PAPER)
    y = _MARGIN
    for panel in panels:
        picture.paste(panel, (_MARGIN, y))
        y += panel.height + gap
    return picture


def _dropped(image: PackedImage) -> int:
    return image.grid[0] * image.grid[1] - len(image.coords)


def _class_name(image: PackedImage, classes: Sequence[str]) -> str:
    if not isinstance(image.label, int) or image.label < 0:
        return ""
    if image.label >= len(classes):
        raise ValueError(f"image {image.key!r} has label {image.label}, but classes names only {len(classes)} labels")
    return classes[image.label]


def _shorten(key: str, limit: int = 14) -> str:
    return key if len(key) <= limit else f"{key[: limit // 2 - 3]}...{key[-limit // 2 :]}"
