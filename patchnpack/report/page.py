"""A report as one HTML page with inline charts, no script and no external resources."""

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
from patchnpack.packer.analysis.setting import Sweep
from patchnpack.packer.batch.pictures.drawing import draw_packs
from patchnpack.packer.files import atomic_write, make_folder_of
from patchnpack.report.table import facts

_NEEDS = ("matplotlib", "jinja2")
_MAX_PACKS = 2  # packs in the picture
_MAX_KEYS = 12  # keys per pack in the text


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of packs with their pixels.

    Attributes:
        image: the picture.
        keys: the keys of the images in each pack.
    """

    image: Image.Image
    keys: Sequence[Sequence[str]]

    @property
    def text(self) -> str:
        """The alternative text of the picture."""
        packs = []
        for number, keys in enumerate(self.keys):
            more = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
            packs.append(f"pack {number + 1} holds {', '.join(islice(keys, _MAX_KEYS))}{more}")
        return f"Packs as rows of patches, and their images reassembled: {'; '.join(packs)}."


def check_page(path: str | Path) -> None:
    """Create the folder of a page before any work; raise ValueError if the page cannot be written."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an HTML page needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'patchnpack[report]'"
        )
    make_folder_of(path)


def picture_of(loader: PackedImageLoader) -> Picture:
    """Draw the packs of a loader's first batch with their pixels."""
    batch = next(iter(loader))
    return Picture(
        image=draw_packs(batch, max_packs=_MAX_PACKS, width=1400), keys=[keys for keys in batch.keys if keys]
    )


def render_page(
    report: PackingReport,
    sweep: Sweep,
    advice: Advice,
    *,
    title: str,
    picture: Picture | None = None,
    bad_images: int = 0,
    without_image: int = 0,
) -> str:
    """Render the page as HTML.

    Args:
        report: the report of the configuration.
        sweep: a sweep of the same images.
        advice: the advice from the sweep.
        title: the title of the page, such as the names of the shards.
        picture: a picture of packs, or None.
        bad_images: number of bad images that the report leaves out.
        without_image: number of samples of the source that have no image.
    """
    # The two imports below need the extra `report`, which the terminal tables do without.
    from jinja2 import Environment, StrictUndefined

    from patchnpack.report.charts import charts

    template = resources.files("patchnpack.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        report=report,
        facts=facts(report, bad=bad_images, without_image=without_image),
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
    without_image: int = 0,
) -> None:
    """Write the page of `render_page` to a file atomically.

    Args:
        path: the file to write.
        report, sweep, advice, title, picture, bad_images, without_image: as in `render_page`.

    Raises:
        ValueError: the extra `report` is not installed, or the folder cannot be written.
    """
    check_page(path)
    page = render_page(
        report, sweep, advice, title=title, picture=picture, bad_images=bad_images, without_image=without_image
    )
    atomic_write(path, lambda file: file.write(page.encode()))


def _data_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
