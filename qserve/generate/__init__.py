"""Files that run a cluster under a supervisor: systemd, Compose or Kubernetes. Pure: a Stack in, texts out, no secrets.

Each generator returns texts by file name. What a file needs a person to do stands at its head.
"""

from qserve.generate.compose import compose
from qserve.generate.kubernetes import kubernetes
from qserve.generate.scaling import Scaling
from qserve.generate.stack import Stack, grace_for, pools_of
from qserve.generate.systemd import Place, systemd
from qserve.generate.text import together

__all__ = ["Place", "Scaling", "Stack", "compose", "grace_for", "kubernetes", "pools_of", "systemd", "together"]
