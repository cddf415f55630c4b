"""Load weights of other libraries into a `NaViT` and save them back; outputs are equal for equal weights.

```
timm          VisionTransformer, NaFlexVit      from_timm, to_timm
big_vision    vit, naflex_vit, SigLIP           from_big_vision, to_big_vision
```

docs/weights.md lists what maps. A weight without a counterpart is an error. Loading never executes code from a file.
"""

from patchnpack.weights.big_vision import from_big_vision, to_big_vision
from patchnpack.weights.timm import from_timm, to_timm

__all__ = ["from_big_vision", "from_timm", "to_big_vision", "to_timm"]
