"""Phases of a run, the jitted programs that they dispatch, and the loop that takes them through environments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
