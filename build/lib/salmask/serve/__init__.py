"""The page in the browser: drop a picture, see what the decision rests on."""

from salmask.serve.looks import Example, Looks, Visit
from salmask.serve.page import Limits, build_page, serve

__all__ = ["Example", "Limits", "Looks", "Visit", "build_page", "serve"]
