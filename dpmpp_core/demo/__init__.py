"""The built-in demo data set: people, cameras and occluders drawn from a seed."""

from dpmpp_core.demo.generate import DemoSummary, Drawn, Task, draw_here, draw_shots, generate

__all__ = ["DemoSummary", "Drawn", "Task", "draw_here", "draw_shots", "generate"]
