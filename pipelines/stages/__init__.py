"""The stages of a pipeline, one function each that takes a `Run` and returns a `Stage`.

They are `prepare`, `saliency`, `train_prompts`, `train_metric`, `evaluate_model`, `robustness`,
`build_report`, `synthesize`, and of pre-training `pretrain` and `captions`.
"""
