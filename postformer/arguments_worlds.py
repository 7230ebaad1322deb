"""The arguments of the command `episodes`. Imports no torch."""

import argparse
from collections.abc import Callable
from pathlib import Path

VERBS = {
    "record": "what an environment shows while something is done in it at random",
    "import": "a folder of LeRobot's data sets, format v3",
    "show": "what a file of episodes holds",
}


def episodes_arguments(
    p: argparse.ArgumentParser,
    positive: Callable[[str], int],
    whole: Callable[[str], int],
    size: Callable[[str], tuple[int, int]],
) -> None:
    """The arguments of each verb."""
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs", parser_class=type(p))
    for name, summary in VERBS.items():
        v = verbs.add_parser(name, help=summary, description=summary)
        if name == "show":
            v.add_argument("file", type=Path, metavar="FILE", help="a file of episodes")
            continue
        if name == "record":
            v.add_argument(
                "environment",
                metavar="ENV",
                help="reacher, pushing, or one of gymnasium's, such as CartPole-v1 or MODULE:NAME-v0",
            )
            v.add_argument(
                "--episodes", type=positive, metavar="N", help="in all (default: 4000 of reacher, 6000 of pushing, else 100)"
            )
            v.add_argument(
                "--steps", type=positive, metavar="N", help="actions of an episode, at most (default: 40, 30, else 1000)"
            )
            v.add_argument(
                "--stride", type=positive, metavar="N", help="of reacher (default: 2) and pushing (3): steps of an action"
            )
            v.add_argument("--seed", type=whole, default=0, help="of the episodes (default: 0)")
        if name == "import":
            v.add_argument("folder", type=Path, metavar="FOLDER", help="with meta/info.json")
            v.add_argument("--camera", metavar="KEY", help="whose pictures (default: the only one)")
            v.add_argument("--action", default="action", metavar="KEY", help="of the numbers of actions (default: action)")
            v.add_argument(
                "--state",
                default="observation.state",
                metavar="KEY",
                help="of the state's; 'none' (default: observation.state)",
            )
        v.add_argument("--size", type=size, metavar="ROWSxCOLUMNS", help="that pictures are brought to (default: their own)")
        v.add_argument("--out", type=Path, required=True, metavar="FILE", help="an interrupted one goes on there")
