"""Methods, one in each file: offline algorithms (backbones), and methods that fine-tune them online."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
