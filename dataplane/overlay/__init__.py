"""How packets reach the pods of other nodes.

Promises: what is in the kernel is compared before it is written, what is right is not touched, and what someone else
deletes is put back within a second. Depends on pyroute2. Knows nodes only as `Peer` rows.
"""

from .backend import Attachment, OverlayBackend, OverlayConfig, OverlayError
from .vxlan import Vxlan

__all__ = ["Attachment", "OverlayBackend", "OverlayConfig", "OverlayError", "Vxlan"]
