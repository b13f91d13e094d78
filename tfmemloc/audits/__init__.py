"""What a network still remembers, or can be made to remember again."""

from tfmemloc.audits.durability import (
    Durability,
    DurabilityConfig,
    audit_durability,
)
from tfmemloc.audits.extraction import (
    Extraction,
    ExtractionConfig,
    audit_extraction,
)
from tfmemloc.audits.membership import (
    Membership,
    MembershipConfig,
    audit_membership,
)
from tfmemloc.audits.of_runs import confidences_of_runs
from tfmemloc.audits.recitation import (
    Recitation,
    RecitationConfig,
    audit_recitation,
)
from tfmemloc.audits.single_model import (
    SingleModelAudit,
    SingleModelConfig,
    audit_single_model,
)
from tfmemloc.audits.worst_group import (
    GroupAccuracy,
    GroupConfig,
    audit_groups,
)
