"""A page that draws a file of Gaussians in a browser; `view` fills it in."""

from instantgi.viewer.view import page_of

__all__ = ["page_of"]
