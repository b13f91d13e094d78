"""What a network still remembers, or can be made to remember again."""

from tfmemloc.audits.durability import (
    Durability,
    DurabilityConfig,
    audit_durability,
)
