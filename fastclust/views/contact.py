"""Contact sheets: thumbnails of a cluster's images on a page of its own, and some of every cluster's on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from fastclust.extract import shown_image
from fastclust.picture import FAINT, GUTTER, INK, MARGIN, PAPER, WARNING, text_block
from fastclust.store import Store

SIDE = 112  # pixels of a thumbnail's longer side, at most
ACROSS, MOST = 8, 48  # thumbnails in a row and on a sheet
EACH, ROWS = 10, 100  # of every cluster, on the page of all, and clusters there, at most
NAMES = 210  # pixels for what is said of a cluster there
GREY = "#d9d9d9"  # of an image that cannot be read

Thumbnail = Image.Image | None


@dataclass(frozen=True)
class Section:
    """A cluster's part of a page: a heading, remarks in lines under it, its images by place, and a caption for each."""

    heading: str
    remarks: Sequence[str]
    places: Sequence[int]
    captions: Sequence[str]
    warning: str = ""


def thumbnails(store: Store, places: Sequence[int]) -> dict[int, Thumbnail]:
    """Read what the network saw of finished images, by place, reduced to thumbnails; None where one cannot be read."""
    found: dict[int, Thumbnail] = {}
    for place in places:
        pixels, readable = shown_image(store.images[store.finished[place]], store.provenance)
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        found[place] = image if readable else None
    return found


def sheet(section: Section, images: Mapping[int, Thumbnail]) -> Image.Image:
    """Draw a cluster's images, as they are ordered, MOST at most, each with its caption; say where that is a part."""
    shown = section.places[:MOST]
    across = min(ACROSS, max(4, len(shown)))
    width = 2 * MARGIN + across * (SIDE + GUTTER) - GUTTER
    head = [text_block(section.heading, 20, width - 2 * MARGIN, 2, INK)]
    part = f"the {len(shown)} most probable of {len(section.places)} images are shown, in order"
    lines = [*section.remarks, part if len(shown) < len(section.places) else "most probable first"]
    head += [text_block(line, 14, width - 2 * MARGIN, 2, FAINT) for line in lines]
    head += [text_block(section.warning, 14, width - 2 * MARGIN, 2, WARNING)] if section.warning else []
    cells = [_cell(images[place], caption, 2) for place, caption in zip(shown, section.captions, strict=False)]
    rows = [cells[low : low + across] for low in range(0, len(cells), across)]
    heights = [max(cell.height for cell in row) + GUTTER for row in rows]
    page = Image.new("RGB", (width, 2 * MARGIN + sum(one.height for one in head) + sum(heights)), PAPER)
    y = MARGIN
    for block in head:
        page.paste(block, (MARGIN, y))
        y += block.height
    y += GUTTER
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            page.paste(cell, (MARGIN + i * (SIDE + GUTTER), y))
        y += height
    return page


def overview(title: str, sections: Sequence[Section], images: Mapping[int, Thumbnail]) -> Image.Image:
    """Draw EACH of the images of every cluster, a row a cluster, in the order of the sections; ROWS of them at most."""
    if len(sections) > ROWS:
        title = f"{title}; {ROWS} of {len(sections)} clusters are shown"
    width = 2 * MARGIN + NAMES + EACH * (SIDE + GUTTER)
    heading = text_block(title, 20, width - 2 * MARGIN, 3, INK)
    rows = []
    for section in sections[:ROWS]:
        lines = [(section.heading, 15, INK), *((line, 13, FAINT) for line in section.remarks)]
        lines += [(section.warning, 13, WARNING)] if section.warning else []
        blocks = [text_block(text, size, NAMES - GUTTER, 3, ink) for text, size, ink in lines]
        shown = section.places[:EACH]
        cells = [_cell(images[place], caption, 2) for place, caption in zip(shown, section.captions, strict=False)]
        height = max(sum(block.height for block in blocks), *(cell.height for cell in cells))
        rows.append((blocks, cells, height + GUTTER))
    page = Image.new("RGB", (width, 2 * MARGIN + heading.height + GUTTER + sum(row[2] for row in rows)), PAPER)
    draw = ImageDraw.Draw(page)
    page.paste(heading, (MARGIN, MARGIN))
    y = MARGIN + heading.height + GUTTER
    for blocks, cells, height in rows:
        draw.line((MARGIN, y - GUTTER // 2, width - MARGIN, y - GUTTER // 2), fill=GREY)
        top = y
        for block in blocks:
            page.paste(block, (MARGIN, top))
            top += block.height
        for i, cell in enumerate(cells):
            page.paste(cell, (MARGIN + NAMES + i * (SIDE + GUTTER), y))
        y += height
    return page


def _cell(image: Thumbnail, caption: str, lines: int) -> Image.Image:
    """A thumbnail, at the foot of a square, with its caption under it."""
    below = text_block(caption, 12, SIDE, lines, FAINT)
    cell = Image.new("RGB", (SIDE, SIDE + below.height + 2), PAPER)
    if image is None:
        ImageDraw.Draw(cell).rectangle((0, 0, SIDE - 1, SIDE - 1), fill=GREY)
        cell.paste(text_block("cannot be read", 12, SIDE, 1, INK, GREY), (0, SIDE // 2 - 14))
    else:
        cell.paste(image, ((SIDE - image.width) // 2, SIDE - image.height))
    cell.paste(below, (0, SIDE + 2))
    return cell
