"""A stage of training = a module whose forward(batch) returns (losses, report).

`losses` are weighted scalars to be summed; `report` holds detached figures to be shown.
"""
