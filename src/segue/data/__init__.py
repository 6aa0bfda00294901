"""Logged data: reading, checking, making and describing it."""

from .collect import collect_random as collect_random
from .collect import save as save
from .dataset import Dataset as Dataset
from .dataset import check_against as check_against
from .dataset import validate as validate
from .formats import from_arrays as from_arrays
from .formats import load as load
from .inspect import inspect as inspect
from .inspect import render as render
