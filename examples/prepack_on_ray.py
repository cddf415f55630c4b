"""Pre-pack shards on a Ray cluster, then read the packs as a training job would.

    python examples/prepack_on_ray.py [--address auto] [--folder ray-demo] [--images 48]

Draws shards of shapes, packs them in four tasks, and reads one epoch. Without an address, the script starts a cluster
on this machine and stops it at the end. On a real cluster, put the folder on storage that all its machines see: a
shared file system, or an address such as s3://bucket/packed. Needs patchnpack[ray]. Ends with

    48 images in 5 packs of 256 slots
    48 images read back
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from patchnpack import PackedImageLoader, Packing
from patchnpack.engines import run_ray
from patchnpack.loaders import Job, open_index, read_manifest

sys.path.insert(0, str(Path(__file__).parent))
from shapes import draw_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="host:port of the cluster, or auto; default: start one on this machine")
    parser.add_argument("--folder", type=Path, default=Path("ray-demo"))
    parser.add_argument("--images", type=int, default=48)
    options = parser.parse_args()
    draw_shapes(options.folder / "shards", options.images, 3, images_per_shard=12)
    index = open_index(str(options.folder / "shards" / "train-*.tar"))
    packed = str(options.folder / "packed")
    job = Job(source=index, out=packed, packing=Packing(seq_len=256, patch_size=32), label="cls", part_packs=2)
    run_ray(job, options.address, 4)
    counts = read_manifest(job.folder).counts
    print(f"{counts['images']} images in {counts['packs']} packs of 256 slots")
    print(f"{sum(batch.num_images for batch in PackedImageLoader(packed, batch_size=2))} images read back")


if __name__ == "__main__":
    main()
