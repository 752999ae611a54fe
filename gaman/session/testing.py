"""The door to the conformance suite for drivers."""

from gaman_session.testing import CONTRACT, Check

__all__ = ["CONTRACT", "Check"]
