"""A report as one HTML page: every chart inline, no script, nothing fetched."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path

from PIL import Image

from patchnpack.loaders import PackedImageLoader
from patchnpack.packer.analysis.advice import Advice
from patchnpack.packer.analysis.report import PackingReport
from patchnpack.packer.analysis.sweep import Sweep
from patchnpack.packer.batch.drawing import draw_packs
from patchnpack.packer.files import atomic_write, make_folder_of
from patchnpack.report.table import facts

_NEEDS = ("matplotlib", "jinja2")
_SHOWN = 2  # packs with their pixels
_NAMED = 12  # of their keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Packs with their pixels.

    Attributes:
        image: the picture.
        keys: for each pack, the images' keys.
    """

    image: Image.Image
    keys: Sequence[Sequence[str]]

    @property
    def text(self) -> str:
        """What is to be seen, in words."""
        packs = []
        for number, keys in enumerate(self.keys):
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            packs.append(f"pack {number + 1} holds {', '.join(islice(keys, _NAMED))}{more}")
        return f"Packs as rows of patches, and their images put together again: {'; '.join(packs)}."


def check_page(path: str | Path) -> None:
    """Makes the folder of a page, and raises a ValueError if it cannot be written, before any work is done."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"a page needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'patchnpack[report]'"
        )
    make_folder_of(path)


def picture_of(loader: PackedImageLoader) -> Picture:
    """The packs of a loader's next batch, drawn with their pixels."""
    batch = next(iter(loader))
    return Picture(image=draw_packs(batch, max_packs=_SHOWN, width=1400), keys=[keys for keys in batch.keys if keys])


def render_page(
    report: PackingReport,
    sweep: Sweep,
    advice: Advice,
    *,
    title: str,
    picture: Picture | None = None,
    bad_images: int = 0,
) -> str:
    """The page as text.

    Args:
        report: of the configuration.
        sweep: over others, of the same images.
        advice: by the sweep.
        title: what the images are.
        picture: packs with their pixels.
        bad_images: images that were left out since their headers cannot be used.
    """
    from jinja2 import Environment, StrictUndefined

    from patchnpack.report.charts import charts

    template = resources.files("patchnpack.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        report=report,
        facts=facts(report, bad=bad_images),
        sweep=sweep,
        advice=advice,
        charts={chart.name: chart for chart in charts(report, sweep)},
        picture=picture,
        picture_url=None if picture is None else _data_url(picture.image),
    )


def write_page(
    path: str | Path,
    report: PackingReport,
    sweep: Sweep,
    advice: Advice,
    *,
    title: str,
    picture: Picture | None = None,
    bad_images: int = 0,
) -> None:
    """Writes the page of `render_page`, whole or not at all."""
    page = render_page(report, sweep, advice, title=title, picture=picture, bad_images=bad_images)
    atomic_write(path, lambda file: file.write(page.encode()))


def _data_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
