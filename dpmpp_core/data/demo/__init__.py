"""The built-in demo data set: drawn people, cameras and occluders, made from a seed."""

from dpmpp_core.data.demo.generate import DemoSummary, generate, unpack_mask

__all__ = ["DemoSummary", "generate", "unpack_mask"]
