"""Replace Pillow by pillow-simd in this Python, or print in one line why Pillow stays.

pillow-simd is a fork of Pillow with faster resizing. Both install the folder `PIL`, so only one can be installed, but
pip treats them as unrelated projects. With pillow-simd alone, `pip check` reports that `pillow` is missing, and the
next install that requires it writes Pillow over pillow-simd. Therefore the swap also installs a stand-in: an empty
`pillow` package with the version of pillow-simd.

A build supports the formats whose headers are installed, and PNG and JPEG at least. patchnpack reads the other formats
without PIL, so it loses none.

Pillow is removed only after a new build has passed a trial, so a failure leaves it unchanged.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

HEADERS = {
    "Python.h": "apt install python3-dev",
    "zlib.h": "apt install zlib1g-dev",
    "jpeglib.h": "apt install libjpeg-dev",
}

# Runs in a separate process with only the new build: a build for another CPU dies of an illegal instruction.
TRIAL = """
import io
from PIL import Image
picture = Image.linear_gradient("L").convert("RGB")
for kind in ("JPEG", "PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    assert Image.open(file).convert("RGB").resize((100, 50), Image.Resampling.BICUBIC).size == (100, 50)
"""


def obstacle() -> str | None:
    """Return why pillow-simd cannot be built here, with the fix, or None."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return f"pillow-simd needs x86-64 and this is {machine}"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    for header, remedy in HEADERS.items():
        command = [*compiler, "-fsyntax-only", "-x", "c", f"-I{sysconfig.get_path('include')}", "-"]
        # jpeglib.h uses FILE without including it.
        source = f"#include <stdio.h>\n#include <{header}>\n"
        try:
            result = subprocess.run(command, input=source, text=True, capture_output=True)
        except FileNotFoundError:
            return f"the C compiler `{compiler[0]}` is not installed (Debian: apt install gcc)"
        if result.returncode:
            return f"the C compiler does not find {header} (Debian: {remedy})"
    return None


def stand_in(version: str, folder: Path) -> Path:
    """Write a wheel for a `pillow` of this version that installs no files, and return its path."""
    info = f"pillow-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: pillow\nVersion: {version}\n"
        f"Summary: Stands for pillow-simd, which provides PIL here.\nRequires-Dist: pillow-simd=={version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: patchnpack\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text.encode())}\n"
    path = folder / f"pillow-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(name, text)
    return path


def pip(*arguments: str | Path) -> None:
    """Run pip of this Python; on failure, raise a CalledProcessError that holds the output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def running() -> tuple[str, str]:
    """Return the name and version of the PIL that a new process would import."""
    code = "import PIL; print(PIL.__version__)"
    version = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    return ("pillow-simd" if version and listed() == version else "Pillow"), version


def listed() -> str | None:
    """Return the version of pillow-simd that pip lists, even if Pillow has overwritten its files."""
    try:
        return metadata.version("pillow-simd")
    except metadata.PackageNotFoundError:
        return None


def restore() -> None:
    """Install Pillow, whichever of the two is installed now."""
    pip("uninstall", "--yes", "pillow", "pillow-simd")
    pip("install", "--constraint", "constraints.txt", "pillow")


def swap(*, fresh: bool) -> str | None:
    """Build pillow-simd, try it, and replace Pillow by it.

    Args:
        fresh: build even if pip has cached an earlier build.

    Returns:
        Why Pillow stays, or None if pillow-simd is now in use.
    """
    reason = obstacle()
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("Building pillow-simd; the first time takes a minute", flush=True)
        try:
            where: list[str | Path] = ["--wheel-dir", folder, *(["--no-cache-dir"] if fresh else [])]
            pip("wheel", "--no-deps", "--constraint", "constraints.txt", "--group", "simd", *where)
        except subprocess.CalledProcessError as error:
            log = Path(sys.prefix) / "pillow-simd-build.log"
            log.write_text(error.stdout)
            return f"pillow-simd did not build; see {log}"
        wheel = next(folder.glob("pillow_simd-*.whl"))
        version = wheel.name.split("-")[1]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "trial")
        trial = {**os.environ, "PYTHONPATH": str(folder / "trial")}
        result = subprocess.run([sys.executable, "-c", TRIAL], env=trial, capture_output=True, text=True)
        if result.returncode:
            last = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
            return f"pillow-simd was built but does not work here: {last[0]}"
        try:
            pip("uninstall", "--yes", "pillow", "pillow-simd")
            pip("install", "--no-index", "--no-deps", wheel, stand_in(version, folder))
        except subprocess.CalledProcessError as error:
            restore()
            return f"pillow-simd could not be installed: {error.stdout.strip().splitlines()[-1]}"
    return None


def main() -> None:
    """Swap or restore, and print one line with the result."""
    parser = argparse.ArgumentParser(description="Replace Pillow by pillow-simd.")
    parser.add_argument("--restore", action="store_true", help="reinstall Pillow")
    parser.add_argument("--rebuild", action="store_true", help="build again even if pillow-simd is in use")
    arguments = parser.parse_args()

    name, version = running()
    reason = None
    if arguments.restore:
        reason = "as requested (SIMD=0)"
        if not version or listed():  # removing a pillow-simd that Pillow has overwritten would remove Pillow too
            restore()
    elif name == "Pillow" or arguments.rebuild:
        reason = swap(fresh=arguments.rebuild)
    name, version = running()
    line = f"PIL is {name} {version}"
    if reason:
        line += f": {reason}"
    print(line)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    main()
