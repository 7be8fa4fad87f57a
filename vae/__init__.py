"""The model, its training and its scores. Imports nothing here, so that `vae.config` stays quick."""
