"""Registered models in MLflow.

`register.register` creates versions, `promotion.promote` and `roll_back` move the champion, and
`references.fetch_registered` fetches the files of a named version.
"""
