"""`convert="scale"` maps the range of a type to that of another, end to end."""

from __future__ import annotations

import numpy as np
import pytest

from patchnpack.packer.convert import converted
from patchnpack.packer.dtypes import Dtype

ENDS: dict[Dtype, tuple[int, int]] = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("given", ["uint8", "uint16", "int16"])
def test_scale_maps_the_ends_of_a_range_to_those_of_another(given: Dtype, dtype: Dtype) -> None:
    values = np.array(ENDS[given], given).reshape(1, 2, 1)
    found = converted(values, "scale", 1, dtype, 8 * values.itemsize)
    ends = (-1, 1) if dtype == "float32" else ENDS[dtype]
    if given != "int16":  # unsigned values take the part above 0
        ends = (0, ends[1])
    assert (found.dtype, tuple(found.ravel().tolist())) == (np.dtype(dtype), ends)
