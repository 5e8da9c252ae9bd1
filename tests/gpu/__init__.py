"""What a GPU does with this project: `python -m tests.gpu [--device cpu --small]`.

Each check ends with one line; a JSON of all follows. It needs `dpmpp_core` alone, no Ray, MLflow or
network. Without a GPU it prints "no GPU: nothing measured".
"""
