"""Logged data: reading, checking, making and describing it."""

from segue.data.collecting import collect as collect
from segue.data.collecting import collect_random as collect_random
from segue.data.collecting import save as save
from segue.data.collecting import vacant as vacant
from segue.data.dataset import Dataset as Dataset
from segue.data.dataset import check_against as check_against
from segue.data.dataset import validate as validate
from segue.data.formats import from_arrays as from_arrays
from segue.data.formats import load as load
from segue.data.inspect import inspect as inspect
from segue.data.inspect import render as render
