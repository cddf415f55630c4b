from __future__ import annotations

import dataclasses
from importlib import metadata

import PIL
import pytest
import torch

from patchnpack.cli import doctor
from patchnpack.cli.doctor import Diagnosis, diagnose, findings, missing_by_extra
from patchnpack.loaders.imaging.formats import READERS


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


def line(diagnosis: Diagnosis, subject: str, **changes: object) -> str:
    return dict(findings(dataclasses.replace(diagnosis, **changes)))[subject]  # type: ignore[arg-type]


def test_versions_match_the_imported_libraries(diagnosis: Diagnosis) -> None:
    assert diagnosis.versions["torch"] == torch.__version__
    assert diagnosis.versions["patchnpack"] == metadata.version("patchnpack")
    assert diagnosis.pil_version == PIL.__version__


def test_libjpeg_turbo_version_is_found(diagnosis: Diagnosis) -> None:
    assert diagnosis.libjpeg_turbo is not None
    assert diagnosis.libjpeg_turbo.count(".") >= 1
    assert diagnosis.libjpeg_turbo[-1].isdigit()


@pytest.mark.parametrize(
    ("simd", "runs"), [("12.1.1.post0", "pillow-simd"), ("12.0.0.post0", "Pillow"), (None, "Pillow")]
)
def test_pil_is_pillow_simd_only_if_its_version_is_imported(
    simd: str | None, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"pillow": "12.1.1.post0", "pillow-simd": simd}
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else real(name))
    monkeypatch.setattr(PIL, "__version__", "12.1.1.post0")
    assert diagnose().pil == runs
    assert diagnose().pil_written_over == (simd if runs == "Pillow" else None)


def test_every_format_is_read_by_one_decoder_whatever_pil_was_built_with(
    diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for names in diagnosis.formats.values() for name in names]
    missing = [name for names in diagnosis.formats_missing.values() for name in names]
    assert sorted([*names, *missing]) == sorted(reader.name for reader in READERS)
    text = "; ".join(finding for subject, finding in findings(diagnosis) if subject == "formats")
    assert "JPEG by simplejpeg (libjpeg-turbo " in text
    assert "PNG, WebP, TIFF, AVIF, JPEG XL, JPEG 2000 by imagecodecs" in text
    monkeypatch.setattr(doctor, "has_heif", lambda: False)
    monkeypatch.setattr(doctor, "has_av", lambda: False)
    monkeypatch.setattr(doctor, "has_pydicom", lambda: False)
    videos = ("MP4", "WebM", "AVI")
    assert diagnose().formats_missing == {"pillow-heif": ("HEIC",), "pydicom": ("DICOM",), "PyAV": videos}


def test_every_declared_extra_is_checked(diagnosis: Diagnosis) -> None:
    assert set(diagnosis.missing) == set(metadata.metadata("patchnpack").get_all("Provides-Extra") or ())


def test_only_unmet_requirements_are_missing() -> None:
    requires = ["numpy", 'torch>=1; extra == "x"', 'torch>=999; extra == "x"', 'no-such-thing[a]>=2; extra == "y"']
    assert missing_by_extra(requires) == {"x": ("torch>=999",), "y": ("no-such-thing>=2",)}


def test_a_requirement_for_another_platform_is_not_missing() -> None:
    assert missing_by_extra(['no-such-thing; sys_platform == "none" and extra == "x"']) == {}


def test_pillow_comes_with_the_command_for_pillow_simd(diagnosis: Diagnosis) -> None:
    assert "make simd" in line(diagnosis, "", pil="Pillow", pil_written_over=None)
    simd = dataclasses.replace(diagnosis, pil="pillow-simd", pil_written_over=None)
    assert "" not in dict(findings(simd))


def test_pillow_over_pillow_simd_comes_with_the_repair_commands(diagnosis: Diagnosis) -> None:
    found = findings(dataclasses.replace(diagnosis, pil="Pillow", pil_written_over="12.1.1.post0"))
    text = " ".join(finding for subject, finding in found if not subject)
    assert "pillow-simd 12.1.1.post0" in text
    assert "`make simd`" in text
    assert "`pip uninstall pillow pillow-simd`" in text


def test_findings_name_devices_unsupported_formats_and_install_commands(diagnosis: Diagnosis) -> None:
    no_device = line(diagnosis, "CUDA", cuda=(), cuda_built="12.8")
    assert "no device" in no_device
    assert "12.8" in no_device
    assert line(diagnosis, "CUDA", cuda=("H200", "H200"), cuda_built="12.8") == "12.8: H200, H200"
    formats = line(diagnosis, "formats", formats_missing={"pillow-heif": ("HEIC",)})
    assert formats.startswith("HEIC not read: pillow-heif is missing")
    assert formats.endswith("pip install 'patchnpack[heif]'")
    videos = line(diagnosis, "formats", formats_missing={"PyAV": ("MP4", "WebM", "AVI")})
    assert videos.endswith("MP4, WebM, AVI not read: PyAV is missing; run: pip install 'patchnpack[video]'")
    missing = line(diagnosis, "extra ray", missing={"ray": ("ray>=2",)})
    assert "ray>=2" in missing
    assert missing.endswith("pip install 'patchnpack[ray]'")
    assert line(diagnosis, "extra ray", missing={"ray": ()}) == "complete"
