from quorate import callbacks as callbacks
from quorate import clients as clients
from quorate import errors as errors
from quorate import privacy as privacy
from quorate import simulations as simulations
from quorate import strategies as strategies
from quorate.artifacts.pulling import pull as pull
from quorate.assembly import run as run
from quorate.clients.adapters import numpy_models as models
from quorate.clients.adapters import statistics as statistics
from quorate.errors import QuorateError as QuorateError
from quorate.evaluation import Evaluation as Evaluation
from quorate.parameters import Layout as Layout
from quorate.parameters import Parameters as Parameters
from quorate.plan import Buffering as Buffering
from quorate.plan import IdealSum as IdealSum
from quorate.plan import PlainSum as PlainSum
from quorate.plan import Plan as Plan
from quorate.plan import Publish as Publish
from quorate.plan import Rounds as Rounds
from quorate.plan import SecAggPlus as SecAggPlus
from quorate.plan import Training as Training
from quorate.planfile import read_plan as read_plan
from quorate.result import FinishedRun as FinishedRun
from quorate.server.devices.source import Devices as Devices
from quorate.simulations.source import Simulation as Simulation
from quorate.strategies import Strategy as Strategy
from quorate.task import Task as Task

__all__ = [
    "Buffering",
    "Devices",
    "Evaluation",
    "FinishedRun",
    "IdealSum",
    "Layout",
    "Parameters",
    "PlainSum",
    "Plan",
    "Publish",
    "QuorateError",
    "Rounds",
    "SecAggPlus",
    "Simulation",
    "Strategy",
    "Task",
    "Training",
    "callbacks",
    "clients",
    "errors",
    "models",
    "privacy",
    "pull",
    "read_plan",
    "run",
    "simulations",
    "statistics",
    "strategies",
]
