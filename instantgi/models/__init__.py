"""The networks: a picture becomes Gaussians in one pass."""

from instantgi.models.instantgi import InstantGI, Prediction, shipped

__all__ = ["InstantGI", "Prediction", "shipped"]
