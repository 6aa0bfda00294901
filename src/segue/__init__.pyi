from .core import Linear as Linear
from .core import Pretrained as Pretrained
from .core import Spec as Spec
from .core import Transition as Transition
from .data import load as load
from .errors import DataError as DataError
from .errors import SegueError as SegueError
from .runs.agent import Agent as Agent
from .runs.evaluate import evaluate as evaluate
from .runs.improve import improve as improve
from .runs.run import resume as resume
from .runs.run import run as run
from .sweeps.driver import sweep as sweep
from .sweeps.plan import Sweep as Sweep
from .tasks.budget import PAPER as PAPER
from .tasks.budget import QUICK as QUICK
from .tasks.budget import SMALL as SMALL
from .tasks.recipes import direct as direct
from .tasks.recipes import opt as opt
from .tasks.recipes import porl as porl
from .tasks.recipes import rlpd as rlpd
from .tasks.recipes import wsrl as wsrl
from .tasks.suite import task as task

__version__: str
