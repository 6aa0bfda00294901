"""Methods: one method, one file. Offline algorithms (backbones) and the methods that fine-tune them online."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
