from .arb import ARB as ARB
from .balanced import Balanced as Balanced
from .next_actions import WithNextAction as WithNextAction
from .returns_to_go import WithReturns as WithReturns
from .sampler import Paired as Paired
from .sampler import Ratio as Ratio
from .sampler import Uniform as Uniform
from .subset import Subset as Subset
