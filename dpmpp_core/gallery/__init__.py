"""A folder of photos that can be searched for a person: index, hits, pages.

Imports nothing, so that what draws a page need not load torch.
"""
