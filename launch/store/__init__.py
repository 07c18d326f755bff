"""Artifacts on a POSIX directory: addresses, records, leases, atomic publishing, costs; replicas on object stores."""

from launch.store.errors import Corrupt, Full, LeaseLost, StoreError
from launch.store.records import Record
from launch.store.store import Store

__all__ = ["Corrupt", "Full", "LeaseLost", "Record", "Store", "StoreError"]
