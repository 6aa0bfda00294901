"""The online replay, and the samplers that draw batches from it and from a dataset."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
