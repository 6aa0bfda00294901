"""Samplers: where batches come from, out of a dataset and of the rows that were collected online."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
