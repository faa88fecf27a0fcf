"""skinray trains, evaluates and runs skin-lesion classifiers on a Ray cluster.

Data takes one way through the package: storage -> decode -> model -> rows -> sink. `skinray.cli` and the entry points
in `jobs/` call one function of `training`, `evaluation`, `scoring` or `serving`; those share `shards`, `classifier` and
`predictions`, which rest on `bundle`, `model` and `images`, which rest on `storage`, `taxonomy`, `config` and `errors`.

skinray is research software. It is not a medical device and its output is not a diagnosis.
"""

__version__ = "0.1.0"
