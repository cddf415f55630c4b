"""Embed documents of three pages with Qwen2-VL's vision model, and resume mid-epoch.

    python examples/documents_to_qwen2_vl.py [FOLDER]

A document is a TIFF of three pages, each of its own size. `sample="members"` keeps its pages in one pack, in order, and
`to_qwen2_vl(samples=True)` says which document each page belongs to. The vision model of transformers (random weights,
a tiny configuration) embeds the pages. The tokens of a document's pages, one after another, are what the language model
reads. The script draws the documents into the folder, embeds an epoch, and saves the loader's state after two batches.
It then creates everything again and resumes from that state. Expected, after 10 seconds:

    24 documents in 12 batches, 2572 tokens for the language model
    resumed after 2 batches: 4 + 20 documents, 0 of them twice
    the rest embedded as before, bit for bit: True
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from webdataset import ShardWriter

from patchnpack import Native, PackedBatch, PackedImageLoader, Packing

DOCUMENTS, PAGES = 24, 3
# N pages of a batch, T patches of all its pages, M = T / 4 tokens after merging 2x2 patches, D width


def draw_documents(folder: Path) -> None:
    """Write a shard of TIFFs of three pages each: lines of words, upright or on their side."""
    rng = np.random.default_rng(0)
    with ShardWriter(f"{folder}/documents-%06d.tar", maxcount=DOCUMENTS, verbose=0, encoder=False, mtime=0) as shards:
        for i in range(DOCUMENTS):
            pages = [draw_page(rng) for _ in range(PAGES)]
            pages[0].save(tif := io.BytesIO(), "TIFF", save_all=True, append_images=pages[1:])
            shards.write({"__key__": f"document-{i:02d}", "tif": tif.getvalue()})


def draw_page(rng: np.random.Generator) -> Image.Image:
    width, height = rng.permutation(rng.integers((112, 168), (168, 225))).tolist()
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for top in range(12, height - 12, 10):
        left = 10
        while (right := left + int(rng.integers(8, 32))) < width - 10:
            draw.rectangle((left, top, right, top + 4), fill=(40, 40, 60))
            left = right + 5
    return page


def create(folder: Path) -> tuple[PackedImageLoader, Qwen2VisionTransformerPretrainedModel]:
    packing = Packing(seq_len=1024, patch_size=14, grid_multiple=2, resolution=Native(edge="resize"))
    shards = f"{folder}/documents-*.tar"
    loader = PackedImageLoader(shards, packing, image="tif", sample="members", batch_size=1, shuffle=True)
    torch.manual_seed(0)
    config = Qwen2VLVisionConfig(depth=2, embed_dim=64, hidden_size=48, num_heads=2)
    return loader, Qwen2VisionTransformerPretrainedModel(config).eval()


@torch.no_grad()
def embed(model: Qwen2VisionTransformerPretrainedModel, batch: PackedBatch) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each document's key and the tokens of its pages in order, (M, D)."""
    inputs = batch.to_qwen2_vl(samples=True)
    grids = inputs["image_grid_thw"]  # (N, 3)
    tokens = model(inputs["pixel_values"], grid_thw=grids).pooler_output.split((grids.prod(1) // 4).tolist())
    for number, document in enumerate(batch.images_by_sample()):
        assert [page.frame for page in document.images] == list(range(PAGES))
        pages = (inputs["samples"] == number).nonzero().flatten()
        yield document.key, torch.cat([tokens[page] for page in pages])


def main(folder: Path) -> None:
    draw_documents(folder)
    loader, model = create(folder)
    embedded: dict[str, torch.Tensor] = {}
    for step, batch in enumerate(loader):
        embedded |= embed(model, batch)
        if step == 1:
            state, first = json.dumps(loader.state_dict()), set(embedded)
    tokens = sum(map(len, embedded.values()))
    print(f"{len(embedded)} documents in {step + 1} batches, {tokens} tokens for the language model")

    loader, model = create(folder)
    loader.load_state_dict(json.loads(state))
    rest = {key: each for batch in loader for key, each in embed(model, batch)}
    same = all(torch.equal(each, embedded[key]) for key, each in rest.items())
    print(f"resumed after 2 batches: {len(first)} + {len(rest)} documents, {len(first & set(rest))} of them twice")
    print(f"the rest embedded as before, bit for bit: {same and len(first) + len(rest) == DOCUMENTS}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
