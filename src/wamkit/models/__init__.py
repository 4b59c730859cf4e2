"""The table of model families; a family's module is imported when it is asked for.

A family is a folder with a `config.py` that loads no torch, whose configuration derives from
`wamkit.model_config.ModelConfig`, and a class that is `FAMILY` in the module that the table names. Commands, recipes,
training, evaluation and serving know a family by what is listed here alone.

Of the class:

- `SIZES`: name -> function that gives the configuration of that size. The first is the published one; `tiny` takes
  `num_views`, `action_dim` and `state_dim`, and costs seconds on a CPU.
- `fit_codecs(config, batches, generator, folder)`: fits the codecs that a configuration names, or finds pretrained
  ones, and saves them. It gets `config.codec_batches` batches.
- `create(config, codecs, *, seed, initial=None, profile="exact", may_resize=(), dtype=None)`: a model behind saved
  codecs, with fresh weights or with those at the path `initial`, in any layout that the family reads.
- `check_initial(config, path, *, profile, may_resize)`: refuses by their headers what `create` could not start from.
- `inspect(config, path, *, profile, may_resize, read)`: what weights are and whether `create` can start from them, as
  `wamkit.weight_findings.Findings`.
- `read_config(data)`: the configuration in a policy folder.
- `load(config, weights, codecs, *, source, dtype, pretrained)`: a model from the pieces of a policy folder.
- `cache_encoder(config, codecs, device)`: what a cache of a dataset is made with, a `codecs.base.CacheEncoder`.

A profile names a kind of published weights, and so what they may lack; every family has `exact`, which lacks nothing.
`may_resize` names modules whose shapes may differ besides. What they lack is fresh, by the seed.

Of the object: `types.Trainable` and `types.Acting`, which refuse what a robot may send (a sentence too long) with
`types.InputError`; a server tells robots of such errors alone. And

- `config`; `to(device)`, which moves network and codecs and returns the object; `device`, where the network is.
- `network`: its weights are what is trained and saved. The elements of its outermost `ModuleList`s are what is
  sharded, and computed twice, as one.
- `with_weights(weights)`: the same with other weights, behind the same codecs, to be measured.
- `validate(batch, *, streams, num_steps)`: JSON-ready errors on windows that were not trained on, of the parts that
  were trained so far.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

FAMILIES: dict[str, str] = {
    "wav": "wamkit.models.wav.family",
    "worldvla": "wamkit.models.worldvla.family",
}


def family_module(name: str) -> ModuleType:
    """The module of a family; its `FAMILY` is the family's class.

    Raises:
        ValueError: unknown family.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown model family {name!r}; known families are {sorted(FAMILIES)}")
    return import_module(FAMILIES[name])
