"""Load weights of other libraries into a `NaViT` and save them back; outputs are equal for equal weights.

```
timm          VisionTransformer, NaFlexVit                  from_timm, to_timm
big_vision    vit, naflex_vit, SigLIP                       from_big_vision, to_big_vision
transformers  SigLIP, SigLIP 2, DINOv2, ViT                 from_transformers
ONNX          any NaViT                                     export_model
files         any of these, or a checkpoint                 open_model, export_model
```

docs/weights.md lists what maps. A weight without a counterpart is an error. Loading never executes code from a file.
"""

from patchnpack.weights.big_vision import from_big_vision, to_big_vision
from patchnpack.weights.export import export_model
from patchnpack.weights.files import open_model
from patchnpack.weights.timm import from_timm, to_timm
from patchnpack.weights.transformers import from_transformers

__all__ = [
    "export_model",
    "from_big_vision",
    "from_timm",
    "from_transformers",
    "open_model",
    "to_big_vision",
    "to_timm",
]
