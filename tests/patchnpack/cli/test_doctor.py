from __future__ import annotations

import dataclasses
from importlib import metadata

import PIL
import pytest
import torch

from patchnpack.cli import doctor
from patchnpack.cli.doctor import Diagnosis, diagnose, findings, missing_by_extra


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


def line(diagnosis: Diagnosis, subject: str, **changes: object) -> str:
    return dict(findings(dataclasses.replace(diagnosis, **changes)))[subject]  # type: ignore[arg-type]


def test_versions_are_those_that_run(diagnosis: Diagnosis) -> None:
    assert diagnosis.versions["torch"] == torch.__version__
    assert diagnosis.versions["patchnpack"] == metadata.version("patchnpack")
    assert diagnosis.pil_version == PIL.__version__


def test_libjpeg_turbo_names_its_version(diagnosis: Diagnosis) -> None:
    assert diagnosis.libjpeg_turbo is not None
    assert diagnosis.libjpeg_turbo.count(".") >= 1
    assert diagnosis.libjpeg_turbo[-1].isdigit()


@pytest.mark.parametrize(
    ("simd", "runs"), [("12.1.1.post0", "pillow-simd"), ("12.0.0.post0", "Pillow"), (None, "Pillow")]
)
def test_pil_is_pillow_simd_only_where_its_version_is_the_one_imported(
    simd: str | None, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"pillow": "12.1.1.post0", "pillow-simd": simd}
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else real(name))
    monkeypatch.setattr(PIL, "__version__", "12.1.1.post0")
    assert diagnose().pil == runs
    assert diagnose().pil_written_over == (simd if runs == "Pillow" else None)


def test_every_declared_extra_is_judged(diagnosis: Diagnosis) -> None:
    assert set(diagnosis.missing) == set(metadata.metadata("patchnpack").get_all("Provides-Extra") or ())


def test_only_what_no_installed_version_meets_is_missing() -> None:
    requires = ["numpy", 'torch>=1; extra == "x"', 'torch>=999; extra == "x"', 'no-such-thing[a]>=2; extra == "y"']
    assert missing_by_extra(requires) == {"x": ("torch>=999",), "y": ("no-such-thing>=2",)}


def test_a_requirement_for_another_platform_is_not_missing() -> None:
    assert missing_by_extra(['no-such-thing; sys_platform == "none" and extra == "x"']) == {}


def test_pillow_is_told_how_to_become_pillow_simd(diagnosis: Diagnosis) -> None:
    assert "make simd" in line(diagnosis, "", pil="Pillow", pil_written_over=None)
    simd = dataclasses.replace(diagnosis, pil="pillow-simd", pil_written_over=None)
    assert "" not in dict(findings(simd))


def test_pillow_over_pillow_simd_is_told_how_to_have_one_of_them(diagnosis: Diagnosis) -> None:
    found = findings(dataclasses.replace(diagnosis, pil="Pillow", pil_written_over="12.1.1.post0"))
    text = " ".join(finding for subject, finding in found if not subject)
    assert text.startswith("installed over pillow-simd 12.1.1.post0, which pip still lists: `make simd`")
    assert "pip uninstall pillow pillow-simd" in text


def test_findings_name_devices_unread_formats_and_the_install_of_an_extra(diagnosis: Diagnosis) -> None:
    assert line(diagnosis, "CUDA", cuda=(), cuda_built="12.8") == "no device; this torch is built for CUDA 12.8"
    assert line(diagnosis, "CUDA", cuda=("H200", "H200"), cuda_built="12.8") == "12.8: H200, H200"
    assert line(diagnosis, "PIL", pil_cannot_read=("WebP", "AVIF")).endswith("cannot read WebP, AVIF")
    assert line(diagnosis, "extra ray", missing={"ray": ("ray>=2",)}) == "missing ray>=2: pip install 'patchnpack[ray]'"
    assert line(diagnosis, "extra ray", missing={"ray": ()}) == "complete"
