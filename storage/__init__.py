"""Bytes and their keys: the only layer that knows Zarr, safetensors and MLflow.

    keys         what determines an artefact, as one short string; references to artefacts
    artefacts    artefacts that are either complete or not there, in a folder or a bucket
    gc           garbage collection: what is there, what is damaged, what may go
    arrays       named tensors of one artefact, as a Zarr group
    checkpoints  model weights, as safetensors
    tracking     runs, parameters, metrics and figures, in MLflow

Nothing is imported here: `storage.tracking` alone takes a second or two to load MLflow.
"""
