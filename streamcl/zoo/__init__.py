"""Real data and a small real model that need no download at run time: what runs out of the box and in the tests."""

from streamcl.zoo.stream import TASKS, load_task, resolve, write_stream

__all__ = ["TASKS", "load_task", "resolve", "write_stream"]
