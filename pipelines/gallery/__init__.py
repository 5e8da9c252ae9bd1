"""Gallery indexes on Ray Data, and search in them.

`index.build_index` and `add_images` write an index, `search.Searcher` searches it,
`calibration.calibrate_index` fits probabilities, and `app.serve_app` serves the web app.
"""
