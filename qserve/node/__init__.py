"""Who hosts: `qserve worker`, one on each host. Starts, watches, drains replica processes; renews their leases."""
