"""The simulations that come with postformer, and how their walks are recorded to learn from."""

from typing import NamedTuple

from postformer.embodied.pushing import Pushing
from postformer.embodied.reacher import Reacher
from postformer.embodied.simulator import Simulator


class Simulation(NamedTuple):
    """An environment, how many random walks of how many actions, and steps of control of an action."""

    env: type[Simulator]
    episodes: int
    steps: int
    stride: int


SIMULATIONS = {"reacher": Simulation(Reacher, 4000, 40, 2), "pushing": Simulation(Pushing, 6000, 30, 3)}
