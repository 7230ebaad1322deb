"""The command `episodes`, recordings of environments and imported data sets to learn worlds from; and how many goals a model of one plans
to. Imports no torch before it runs."""

import argparse
from pathlib import Path
from typing import Any

from postformer.commands import progress_bars
from postformer.config import UserError
from postformer.interval import wilson

EPISODES, STEPS = 100, 1000
"""Of an environment of gymnasium's, where nothing else is said."""
POSED = 1_000_000
"""Goals of a seed are those of so many times it, and on."""
WAYS = {
    "cem": "plans in its imagination",
    "reach": "what it tells at once",
    "oracle": "plans in the simulator",
    "straight": "straight for the goal",
    "random": "any actions",
}
"""To a goal, of a model and its rivals."""


def episodes(args: argparse.Namespace) -> int:
    if args.verb == "show":
        return _show(args)
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file in it")
    with progress_bars() as show:
        verb = "recording" if args.verb == "record" else "importing"
        progress = lambda done, total: show(f"{verb} {args.out}", done, total)  # noqa: E731
        new = _record(args, progress) if args.verb == "record" else _import(args, progress)
    print(f"{new:,} episodes added")
    return _show(argparse.Namespace(file=args.out))


def _record(args: argparse.Namespace, progress: Any) -> int:
    try:
        from postformer.embodied.simulations import SIMULATIONS
    except ImportError as e:
        raise UserError(str(e)) from e
    from postformer.embodied.recording import anything, record, record_walks

    if found := SIMULATIONS.get(args.environment):
        if args.size:
            raise UserError(f"--size: pictures of {args.environment} have a size of their own; leave it out")
        return record_walks(
            found.env(),
            args.episodes or found.episodes,
            args.out,
            args.seed,
            steps=args.steps or found.steps,
            stride=args.stride or found.stride,
            progress=progress,
        )
    if args.stride:
        raise UserError(f"--stride: is for {' and '.join(SIMULATIONS)}; a run makes blocks of actions by data.stride")
    env = _environment(args.environment, tuple(SIMULATIONS))
    try:
        policy = anything(env.action_space)
        return record(
            env,
            policy,
            args.episodes or EPISODES,
            args.out,
            args.seed,
            steps=args.steps or STEPS,
            size=args.size,
            progress=progress,
        )
    except ValueError as e:
        raise UserError(f"{args.environment}: {e}") from e
    finally:
        env.close()


def _environment(name: str, own: tuple[str, ...]) -> Any:
    """One of gymnasium's, which shows pictures. Raises UserError."""
    import gymnasium

    try:
        env = gymnasium.make(name, render_mode="rgb_array")
        seen: Any = env.observation_space
        shows = "pixels" in seen.spaces if hasattr(seen, "spaces") else len(seen.shape or ()) in (2, 3)
        return env if shows else gymnasium.wrappers.AddRenderObservation(env)
    except (gymnasium.error.Error, ImportError, TypeError) as e:
        why = " ".join(str(e).split())
        raise UserError(f"{name}: {why}; take {', '.join(own)} or an environment of gymnasium's that renders rgb_array") from e


def _import(args: argparse.Namespace, progress: Any) -> int:
    from postformer.data.lerobot import import_lerobot

    state = None if args.state == "none" else args.state
    return import_lerobot(
        args.folder, args.out, camera=args.camera, size=args.size, action=args.action, state=state, progress=progress
    )


def _show(args: argparse.Namespace) -> int:
    from postformer.data.episode_file import read_contents

    found = read_contents(args.file)
    about, (channels, rows, columns) = found.about, found.shape
    lengths = found.lengths
    told = {
        "environment": about.environment or "not told",
        "episodes": f"{len(lengths):,} of {lengths.min()} to {lengths.max()} actions, {lengths.sum():,} in all",
        "pictures": f"{rows} x {columns} in {channels} channels",
        "an action": f"{found.actions} numbers" + _names(about.action_names),
        "a state": f"{found.states} numbers" + _names(about.state_names) if found.states else "none",
        "frames a second": f"{about.frames_per_second:g}" if about.frames_per_second else "not told",
        "file": f"{args.file.stat().st_size / 1e6:,.1f} MB" + ("" if found.closed else ", not closed by what wrote it"),
    }
    for name, value in told.items():
        print(f"{name:<16} {value}")
    return 0


def _names(names: tuple[str, ...]) -> str:
    return f": {', '.join(names)}" if names else ""


def evaluate_goals(args: argparse.Namespace) -> int:
    """How many goals plans lead to, beside the simulator's own, going straight, and any actions."""
    from postformer.config import read
    from postformer.train.session import model_folder, open_model

    folder = model_folder(args.checkpoint)
    model: Any = open_model(folder).eval()
    if model.config["kind"] != "world" or not (folder / "run.json").exists():
        raise UserError(
            f"--goals: {args.checkpoint} is no run of a model of a world; train world-rooms, world-reacher or world-pushing"
        )
    try:
        from postformer.embodied.tasks import TASKS, policy
        from postformer.embodied.trials import problems, tried

        name = _task_of(read(folder / "run.json")["data"], args.checkpoint, tuple(TASKS))
        task = TASKS[name]
        env = task.env()
    except ImportError as e:
        raise UserError(str(e)) from e
    posed = problems(env, range((1 + args.seed) * POSED, (1 + args.seed) * POSED + args.goals))
    ways = [way for way in WAYS if way != "reach" or model.reach is not None]
    rows = []
    with progress_bars() as show:
        for at, way in enumerate(ways):
            show(f"{name}: {args.goals} goals", at, len(ways))
            try:
                rows.append((WAYS[way], tried(env, policy(task, env, way, model), posed, task.steps)))
            except ValueError as e:
                raise UserError(f"--goals: {args.checkpoint}: {e}") from e
    print(
        f"{name}: {args.goals} goals, {task.steps} steps; reached by the task's rule at the end, by a stricter one, and ever (95% interval)"
    )
    for way, found in rows:
        counts = (found.at_end[:, 0], found.at_end[:, 1], found.ever[:, 0])
        print(f"{way:<28}" + "  ".join(_share(int(count.sum()), args.goals) for count in counts))
    return 0


def _task_of(data: Any, checkpoint: str, tasks: tuple[str, ...]) -> str:
    """The task that a run's data belong to. Raises UserError."""
    from postformer.data.episode_file import read_contents

    if data["kind"] == "rooms":
        return "rooms" if data.get("fixed", True) else "moving"
    if data["kind"] != "episodes":
        raise UserError(f"--goals: {checkpoint} learned data of the kind '{data['kind']}', in which nothing is done")
    name = read_contents(Path(data["path"])).about.environment.lower()
    if name not in tasks:
        raise UserError(f"--goals: {checkpoint} learned '{name}', which poses no goals; those that do: {', '.join(tasks)}")
    return name


def _share(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count / of:6.1%} [{low:.1%}, {high:.1%}]"
