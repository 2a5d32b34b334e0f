"""Peers: other ways to do the same work, run in the same rounds as the node so that their ratio means something."""
