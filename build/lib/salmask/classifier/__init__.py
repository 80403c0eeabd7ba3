"""The only room that touches a user's network."""

from salmask.classifier.network import Classifier

__all__ = ["Classifier"]
