from .phases import Collect as Collect
from .phases import Online as Online
from .phases import Train as Train
from .pipeline import pipeline as pipeline
from .stabilised import Stabilised as Stabilised
