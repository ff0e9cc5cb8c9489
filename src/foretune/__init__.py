"""foretune tells you how a fine-tune will go before you train it.

Names are imported when they are first used, so that ``import foretune`` loads neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from foretune.errors import InputError as InputError
from foretune.lazy import __dir__ as __dir__
from foretune.lazy import __getattr__ as __getattr__
from foretune.version import __version__ as __version__

if TYPE_CHECKING:
    from foretune import testing as testing
    from foretune.api import Kernel as Kernel
    from foretune.api import Tangents as Tangents
    from foretune.api import collect as collect
    from foretune.api import search_space as search_space
    from foretune.forecast.compare import compare as compare
    from foretune.forecast.expectation import Forecast as Forecast
    from foretune.forecast.search import Recommendation as Recommendation
    from foretune.linear import gradient_descent as gradient_descent
    from foretune.linear import gradient_flow as gradient_flow
    from foretune.linear import linearise as linearise
    from foretune.linear import logistic as logistic
    from foretune.linear import ridge as ridge
    from foretune.tangents import layer_rule as layer_rule
    from foretune.task import Candidate as Candidate
    from foretune.task import Task as Task
    from foretune.task import load_task as load_task
    from foretune.task.space import Space as Space
    from foretune.train import Certificate as Certificate
    from foretune.train import GapRecorder as GapRecorder
    from foretune.train import ProximalAdamW as ProximalAdamW
    from foretune.train import certify as certify
    from foretune.train import load_adapter as load_adapter
    from foretune.train import proximal as proximal
