"""Learned symmetries: measures on a group whose generators or widths are trained with the model."""
