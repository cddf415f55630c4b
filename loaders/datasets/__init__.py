"""Data sets that Python objects hold: Hugging Face, torchvision, and any object with `__len__` and `__getitem__`."""
