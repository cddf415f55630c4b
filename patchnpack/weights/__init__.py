"""Weights of other libraries, read into a `NaViT` and written from one: equal outputs for equal weights.

```
timm          VisionTransformer, NaFlexVit      from_timm, to_timm
big_vision    vit, naflex_vit, SigLIP           from_big_vision, to_big_vision
```

What maps and what does not is in docs/weights.md. Every name has a place or is an error; nothing in a file is executed.
"""

from patchnpack.weights.big_vision import from_big_vision, to_big_vision
from patchnpack.weights.timm import from_timm, to_timm

__all__ = ["from_big_vision", "from_timm", "to_big_vision", "to_timm"]
