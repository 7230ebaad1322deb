"""Episodes recorded from any environment with gymnasium's interface (Towers et al. 2024, arXiv 2407.17032), as data to learn from.

Each episode is a function of the environment, the policy, the seed and its number: a recording that was killed goes on where it was, and
ends the same.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from postformer.data.episode_file import About
from postformer.data.episode_writer import EpisodeWriter
from postformer.data.sources import DataError

Act = Callable[[Any, Mapping[str, Any]], Any]
"""What is done, of an observation and what the environment says beside it (its `info`)."""
Policy = Callable[[np.random.Generator], Act]
"""Makes what acts in one episode from that episode's random numbers, so that nothing is left of the one before."""
MOST_CHANNELS = 4
TOGETHER = 32
"""Walks that are simulated at once."""
Show = Callable[[int, int], None]
"""Told how many episodes are there, and how many there will be."""


def record(
    env: Any,
    policy: Policy,
    episodes: int,
    path: str | Path,
    seed: int = 0,
    *,
    steps: int = 1000,
    size: tuple[int, int] | None = None,
    about: About | None = None,
    progress: Show | None = None,
) -> int:
    """Records as many episodes into a file as are missing there, and returns how many those were. An episode ends where the environment
    says so, or after `steps`; pictures are brought to `size` (rows, columns), without regard to their shape.

    What is seen is a picture, the observation or its "pixels"; `info["state"]` is the state, if it is there. Of several discrete actions
    one is stored as 1 and the others as 0. `about` tells more of the episodes, such as names; what it leaves out of the environment, its
    keywords and its frames a second is asked from the environment.

    Raises ValueError for numbers below 1, and DataError for observations that are no pictures and for a file of other episodes.
    """
    if min(episodes, steps) < 1:
        raise ValueError(f"episodes={episodes} and steps={steps} must be at least 1")
    told = _about(env, about or About(), seed)
    told = told if size is None else dataclasses.replace(told, keywords={**told.keywords, "size": list(size)})
    with EpisodeWriter(path, told, again=True) as writer:
        begun = writer.episodes
        for number in range(begun, episodes):
            rng = np.random.default_rng([seed, number])
            first = int(rng.integers(1 << 31))
            seen, actions, states = _episode(env, policy(rng), first, steps, size)
            writer.add(seen, actions, states, seed=first)
            if progress is not None:
                progress(writer.episodes, episodes)
        return writer.episodes - begun


def record_walks(
    env: Any,
    episodes: int,
    path: str | Path,
    seed: int = 0,
    *,
    steps: int = 40,
    stride: int = 1,
    progress: Show | None = None,
) -> int:
    """Records as many random walks of a `Simulator` into a file as are missing there, many at once, and returns how many those were. Each
    is a function of the seed and its number and has `steps` actions, of `stride` steps of control each, after which there is a picture.

    Raises ValueError for numbers below 1, and DataError for a file of other episodes.
    """
    if min(episodes, steps, stride) < 1:
        raise ValueError(f"episodes={episodes}, steps={steps} and stride={stride} must be at least 1")
    walks = About(
        frames_per_second=env.metadata["render_fps"] / stride,
        state_names=env.names,
        environment=type(env).__name__,
        keywords={"steps": steps, "stride": stride},
        seed=seed,
    )
    with EpisodeWriter(path, walks, again=True) as writer:
        begun = writer.episodes
        for first in range(begun, episodes, TOGETHER):
            numbers = range(first, min(first + TOGETHER, episodes))
            made = env.episodes(numbers, steps, seed=seed, stride=stride)
            for number, seen, actions, states in zip(
                numbers, made["observations"], made["actions"], made["states"], strict=True
            ):
                writer.add(seen, actions, states, seed=number)
            if progress is not None:
                progress(writer.episodes, episodes)
        return writer.episodes - begun


def anything(space: Any) -> Policy:
    """Of a space of actions any one in each step. Raises ValueError for one without bounds."""
    if hasattr(space, "n"):
        return lambda rng: lambda seen, info: int(rng.integers(space.n)) + int(space.start)
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"actions have no bounds: {space}; give a policy of your own")
    return lambda rng: lambda seen, info: rng.uniform(space.low, space.high).astype(space.dtype)


def _about(env: Any, told: About, seed: int) -> About:
    spec = getattr(env, "spec", None)
    metadata: Mapping[str, Any] = getattr(env, "metadata", None) or {}
    return dataclasses.replace(
        told,
        environment=told.environment or (spec.id if spec else type(env).__name__),
        keywords=told.keywords or dict(spec.kwargs if spec else {}),
        frames_per_second=told.frames_per_second or float(metadata.get("render_fps") or 0),
        seed=seed,
    )


def _episode(
    env: Any, act: Act, seed: int, steps: int, size: tuple[int, int] | None
) -> tuple[UInt8[np.ndarray, "t c h w"], Float[np.ndarray, "d k"], Float[np.ndarray, "t s"] | None]:
    """One episode's observations, actions and states. Raises DataError for states that are there at some steps alone."""
    observed, info = env.reset(seed=seed)
    seen, actions, states = [_sized(_picture(observed), size)], [], [info.get("state")]
    for _ in range(steps):
        action = act(observed, info)
        observed, _, terminated, truncated, info = env.step(action)
        actions.append(_numbers(env, action))
        seen.append(_sized(_picture(observed), size))
        states.append(info.get("state"))
        if terminated or truncated:
            break
    missing = sum(state is None for state in states)
    if 0 < missing < len(states):
        raise DataError(f"info['state'] is missing in {missing} of {len(states)} steps of the episode with seed {seed}")
    known = None if missing else np.stack([np.asarray(state, np.float32).ravel() for state in states])
    return np.stack(seen), np.stack(actions), known


def _numbers(env: Any, action: Any) -> Float[np.ndarray, "k"]:
    """An action as it is stored."""
    space: Any = getattr(env, "action_space", None)
    if hasattr(space, "n"):
        return (np.arange(space.n) == int(action) - int(space.start)).astype(np.float32)
    return np.array(action, np.float32).ravel()


def _picture(observed: Any) -> UInt8[np.ndarray, "c h w"]:
    """An observation as it is stored: bytes, or floats from 0 to 1 made bytes, with channels before or behind rows and columns, or none."""
    picture = np.asarray(observed.get("pixels") if isinstance(observed, Mapping) else observed)
    if picture.dtype.kind == "f" and picture.size and picture.min() >= 0 and picture.max() <= 1:
        picture = np.rint(picture * 255).astype(np.uint8)
    picture = picture[None] if picture.ndim == 2 else picture
    if picture.dtype != np.uint8 or picture.ndim != 3 or min(picture.shape[0], picture.shape[2]) > MOST_CHANNELS:
        raise DataError(
            f"an observation of {picture.dtype} and shape {picture.shape} is no picture, which is bytes or from 0 to 1, [h, w] or of up to "
            f"{MOST_CHANNELS} channels, alone or as 'pixels'; gymnasium.wrappers.AddRenderObservation shows one"
        )
    first = picture.shape[0] <= MOST_CHANNELS < picture.shape[2]
    return np.ascontiguousarray(picture if first or picture.shape[0] == 1 else picture.transpose(2, 0, 1))


def _sized(picture: UInt8[np.ndarray, "c h w"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "c h2 w2"]:
    """Brought to a size, without aliasing."""
    if size is None or picture.shape[1:] == size:
        return picture
    found = F.interpolate(torch.from_numpy(picture)[None].float(), size, mode="bilinear", antialias=True)
    return found[0].round().clamp(0, 255).byte().numpy()
