"""The field's claims, each measured on this machine."""

from postformer.claims.ledger import Claim
from postformer.claims.long_text import LongText

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in (LongText(),)}
