from __future__ import annotations

from typing import Any

import pytest

from patchnpack.models import NaViTConfig


def test_a_single_mean_applies_to_all_channels() -> None:
    config = NaViTConfig(num_classes=2, channels=3, mean=(0.5,), std=(0.1, 0.2, 0.3))
    assert config.mean == (0.5, 0.5, 0.5)
    assert config.std == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, r"depth is 0; it must be at least 1"),
        ({"num_classes": -1}, r"num_classes is -1.*0 for no head"),
        ({"width": 100}, r"width 100 is not a multiple of heads 3; choose a width of 99 or 102"),
        ({"mlp_ratio": 0}, r"mlp_ratio 0 leaves no hidden unit"),
        ({"drop_path": 1.0}, r"drop_path is 1.0; it must be at least 0 and less than 1"),
        ({"mean": (0.5, 0.5)}, r"mean has 2 values for 3 channels; give one value, or one per channel"),
        ({"std": (0.0,)}, r"std is \(0.0,\); each must be finite, and a std above 0"),
        ({"position": "2d"}, r"position is '2d'; choose one of absolute, fractional"),
        ({"position_combine": "sum"}, r"position_combine is 'sum'; choose one of auto, add, stack, product"),
        ({"position": "sinusoidal", "position_combine": "add"}, r"is 'add'; sinusoids are the same .* choose 'stack'"),
        ({"position": "sinusoidal", "position_combine": "product"}, r"is 'product'; sinusoids are the same"),
        ({"position_resize": "nearest"}, r"position_resize is 'nearest'; choose one of bilinear, bicubic"),
        ({"patch_resize": "area"}, r"patch_resize is 'area'; choose one of bilinear, bicubic"),
        ({"pooling": "token"}, r"pooling is 'token'; choose one of attention, mean, max, cls"),
        ({"last_norm": "both"}, r"last_norm is 'both'; choose one of tokens, pooled, none"),
        ({"registers": -1}, r"registers is -1; it must be at least 0"),
        ({"rope_base": 0.0}, r"rope_base is 0.0; it must be above 0"),
        ({"position": "rope", "width": 18}, r"6 features per head, but rope rotates pairs.*multiple of 12"),
        (
            {"width": 15, "position_combine": "stack"},
            r"width 15 cannot be split .*'stack'; choose a multiple of 2",
        ),
        (
            {"width": 18, "position": "fourier", "position_combine": "stack"},
            r"'fourier' with 'stack'; choose a multiple of 4",
        ),
        ({"backend": "fast"}, r"'fast' is unknown; choose one of auto"),
    ],
)
def test_an_impossible_model_is_refused_with_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaViTConfig(**{"num_classes": 2, **changes})


def test_columns_and_rows_are_added_except_for_sinusoids() -> None:
    both = NaViTConfig(num_classes=2, position=("sinusoidal", "fourier"))
    assert (both.combine("sinusoidal"), both.combine("fourier")) == ("stack", "add")
    assert NaViTConfig(num_classes=2).combine("absolute") == "add"
    assert NaViTConfig(num_classes=2, position="fourier", position_combine="product").combine("fourier") == "product"
