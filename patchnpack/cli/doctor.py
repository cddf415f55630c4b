"""The findings of `patchnpack doctor`: installed libraries, what they support, and what is missing."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import PIL
import simplejpeg
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from patchnpack.loaders.imaging.formats import DICOM, HEIC, READERS, VIDEOS
from patchnpack.loaders.imaging.readers.boxed.heif import has_heif
from patchnpack.loaders.imaging.readers.dicom import has_pydicom
from patchnpack.loaders.imaging.readers.video.reader import has_av
from patchnpack.models.attention import attention_backend

_LIBRARIES = ("torch", "numpy", "numba", "pyarrow", "webdataset", "simplejpeg", "imagecodecs")
_EXTRAS = {"pillow-heif": "heif", "PyAV": "video", "pydicom": "dicom"}  # that bring a decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Versions, devices and missing requirements of this installation.

    Attributes:
        versions: version of each library, with this package and Python first.
        pil: the package that provides PIL, "Pillow" or "pillow-simd".
        pil_version: the version of that package.
        pil_written_over: the version of pillow-simd whose files Pillow has overwritten, or None.
        formats: the formats of images and videos that are read, by the library that decodes them.
        formats_missing: the formats that are not read, by the library that would decode them.
        libjpeg_turbo: the version of libjpeg-turbo in simplejpeg, or None if unknown.
        cpus: number of CPUs that this process may use.
        cpus_in_machine: number of CPUs in the machine.
        cuda: name of each CUDA device.
        cuda_built: the CUDA version that torch was built for, or None for a CPU build.
        attention: the backend that "auto" selects on each device type.
        missing: unmet requirements of each extra, as pip spells them; empty if the extra is complete.
    """

    versions: dict[str, str]
    pil: str
    pil_version: str
    pil_written_over: str | None
    formats: dict[str, tuple[str, ...]]
    formats_missing: dict[str, tuple[str, ...]]
    libjpeg_turbo: str | None
    cpus: int
    cpus_in_machine: int
    cuda: tuple[str, ...]
    cuda_built: str | None
    attention: dict[str, str]
    missing: dict[str, tuple[str, ...]]


def diagnose() -> Diagnosis:
    """Inspect the libraries and the machine of this process.

    >>> diagnose().attention["cpu"]
    'split'
    """
    machine, simd = os.cpu_count() or 1, _installed("pillow-simd")
    cuda = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Diagnosis(
        versions={
            "patchnpack": metadata.version("patchnpack"),
            "python": platform.python_version(),
            **{library: metadata.version(library) for library in _LIBRARIES},
            "torch": torch.__version__,  # includes the build, such as +cpu
        },
        pil="pillow-simd" if simd == PIL.__version__ else "Pillow",
        pil_version=PIL.__version__,
        pil_written_over=None if simd == PIL.__version__ else simd,
        formats=_formats(_is_read),
        formats_missing=_formats(lambda format: not _is_read(format)),
        libjpeg_turbo=_turbo_version(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine,
        cpus_in_machine=machine,
        cuda=cuda,
        cuda_built=torch.version.cuda,
        attention={device: attention_backend(device) for device in ("cpu", *(["cuda"] if cuda else []))},
        missing=missing_by_extra(metadata.requires("patchnpack") or []),
    )


def missing_by_extra(requires: list[str]) -> dict[str, tuple[str, ...]]:
    """List, for each extra, the requirements that no installed package meets.

    Args:
        requires: requirement strings from the metadata of a distribution.

    >>> missing_by_extra(['numpy>=1', 'numpy>=1; extra == "a"', 'numpy<1; extra == "b"'])
    {'a': (), 'b': ('numpy<1',)}
    """
    missing: dict[str, tuple[str, ...]] = {}
    for requirement in map(Requirement, requires):
        extra = re.search(r"extra == ['\"]([^'\"]+)", str(requirement.marker or ""))
        if not extra or not requirement.marker or not requirement.marker.evaluate({"extra": extra[1]}):
            continue
        version = _installed(requirement.name)
        met = version is not None and requirement.specifier.contains(version, prereleases=True)
        needed = () if met else (f"{requirement.name}{requirement.specifier}",)
        missing[extra[1]] = missing.get(extra[1], ()) + needed
    return missing


def findings(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Format a diagnosis as (subject, finding) pairs with remedies; an empty subject continues the line above."""
    d = diagnosis
    lines = [*d.versions.items(), ("PIL", f"{d.pil} {d.pil_version}")]
    if d.pil_written_over:
        text = (
            f"Pillow has overwritten pillow-simd {d.pil_written_over}, which pip still lists; run `make simd` in a "
            "checkout to restore it, or `pip uninstall pillow pillow-simd` and install one of them"
        )
        lines.append(("", text))
    elif d.pil == "Pillow":
        lines.append(("", "pillow-simd resizes faster; run `make simd` in a checkout, or see CONTRIBUTING.md"))
    turbo = f"libjpeg-turbo {d.libjpeg_turbo}" if d.libjpeg_turbo else "libjpeg-turbo of unknown version"
    for decoder, names in d.formats.items():
        detail = f" ({turbo})" if decoder == "simplejpeg" else ""
        lines.append(("formats", f"{', '.join(names)} by {decoder}{detail}"))
    for decoder, names in d.formats_missing.items():
        text = f"{', '.join(names)} not read: {decoder} is missing; run: pip install 'patchnpack[{_EXTRAS[decoder]}]'"
        lines.append(("formats", text))
    lines.append(("CPUs", f"{d.cpus} of {d.cpus_in_machine} available to this process"))
    if d.cuda:
        lines.append(("CUDA", f"{d.cuda_built}: {', '.join(d.cuda)}"))
    else:
        build = f"built for CUDA {d.cuda_built}" if d.cuda_built else "a CPU build"
        lines.append(("CUDA", f"no device; torch is {build}"))
    lines.append(("attention", ", ".join(f"{backend} on {device}" for device, backend in d.attention.items())))
    for extra, missing in d.missing.items():
        text = f"missing {', '.join(missing)}; run: pip install 'patchnpack[{extra}]'" if missing else "complete"
        lines.append((f"extra {extra}", text))
    return lines


def _is_read(format: int) -> bool:
    """Whether the decoder of a format is installed."""
    if format == DICOM:
        return has_pydicom()
    return has_heif() if format == HEIC else format not in VIDEOS or has_av()


def _formats(wanted: Callable[[int], bool]) -> dict[str, tuple[str, ...]]:
    """The names of these formats, by the library that decodes them."""
    found: dict[str, tuple[str, ...]] = {}
    for reader in READERS:
        if wanted(reader.format):
            found[reader.decoder] = (*found.get(reader.decoder, ()), reader.name)
    return found


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(canonicalize_name(distribution))
    except metadata.PackageNotFoundError:
        return None


def _turbo_version() -> str | None:
    # simplejpeg links libjpeg-turbo statically and does not expose its version; the binary contains it as text.
    found = re.search(rb"libjpeg-turbo version (\d[\d.]*)", Path(simplejpeg._jpeg.__file__).read_bytes())
    return found[1].decode() if found else None
