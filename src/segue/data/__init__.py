"""Reads, checks, makes and describes logged data."""

from segue.data.collecting import collect as collect
from segue.data.collecting import collect_random as collect_random
from segue.data.dataset import Dataset as Dataset
from segue.data.dataset import validate as validate
from segue.data.inspection import inspect as inspect
from segue.data.inspection import render as render
from segue.data.loading import from_arrays as from_arrays
from segue.data.loading import load as load
from segue.data.matching import check_against as check_against
from segue.data.saving import save as save
from segue.data.saving import vacant as vacant
