"""The door to the conformance suite for drivers."""

from gaman_session.testing import CONTRACT, OWNER_CONTRACT, Check, OwnerCheck

__all__ = ["CONTRACT", "OWNER_CONTRACT", "Check", "OwnerCheck"]
