"""Phases of a run, their jitted programs, and the loop that drives them with environments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
